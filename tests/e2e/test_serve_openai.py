"""`herd serve` on a whole model folder, spoken to by OpenAI's own client."""

import base64
import io
import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
from PIL import Image

from herd.cli import main

MODEL = "random"
# Without training the likeliest words after this go on without an end.
QUESTION = [{"role": "user", "content": "the cat sat on"}]


@contextmanager
def start(folder: Path, *options: str, port: str = "0") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "herd", "serve", str(folder), "--port", port, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()  # one that should have ended has; no failing test waits for it


def address(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    line = process.stdout.readline()
    match = re.search(r"http://[0-9.:]+", line)
    assert match, f"{line!r} names no address: {process.stderr.read() if process.stderr else ''}"
    return match[0]


@pytest.fixture(scope="module")
def url(tiny_folder: Path) -> Iterator[str]:
    with start(tiny_folder) as process:
        yield address(process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert errors == ""
    assert process.returncode == 0


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, messages: list[dict[str, object]] = QUESTION, **options: object) -> object:
    options = {"max_tokens": 16, "temperature": 0, **options}
    return client.chat.completions.create(model=MODEL, messages=messages, **options)


def text_of(answer: object) -> str:
    return answer.choices[0].message.content


def with_pictures(*colours: str) -> list[dict[str, object]]:
    parts: list[dict[str, object]] = []
    for colour in colours:
        file = io.BytesIO()
        Image.new("RGB", (150, 70), colour).save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode()
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "the cat"}]}]


def test_the_folder_is_the_model(client, url):
    assert [model.id for model in client.models.list()] == [MODEL]
    health = json.load(urllib.request.urlopen(f"{url}/health"))
    assert health == {"status": "ok", "model": MODEL}
    assert "<!doctype html>" in urllib.request.urlopen(url).read().decode()


def test_a_stream_joins_to_the_plain_greedy_answer(client):
    plain = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text_of(plain)
    assert chunks[-1].usage == plain.usage
    assert plain.usage.completion_tokens == 16 or plain.choices[0].finish_reason == "stop"


def test_an_answer_is_what_the_engine_gives_without_a_server(client, tiny_folder):
    from herd.engine.load import load
    from herd.engine.sampler import SamplingParams

    model = load(tiny_folder)
    engine = model.engine()
    expected = engine.generate_batch([model.render(QUESTION)], SamplingParams(max_tokens=16))
    engine.close()
    assert text_of(ask(client)) == expected[0]


def test_a_picture_is_seen_and_counts_as_tokens(client):
    bare, red, both = (ask(client, with_pictures(*colours)) for colours in ([], ["red"], ["red", "blue"]))
    assert bare.usage.prompt_tokens < red.usage.prompt_tokens < both.usage.prompt_tokens
    one = red.usage.prompt_tokens - bare.usage.prompt_tokens
    assert both.usage.prompt_tokens - red.usage.prompt_tokens == one
    assert text_of(bare) != text_of(red)


def test_tools_and_their_results_are_given_to_the_model(client):
    tools = [{"type": "function", "function": {"name": "clock"}}]
    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    dialogue = [*QUESTION, {"role": "assistant", "tool_calls": [call]}]
    dialogue.append({"role": "tool", "content": "noon", "tool_call_id": "1"})
    bare, reported, answered = ask(client), ask(client, tools=tools), ask(client, dialogue, tools=tools)
    assert bare.usage.prompt_tokens < reported.usage.prompt_tokens < answered.usage.prompt_tokens
    assert answered.choices[0].finish_reason in {"stop", "length"}


def test_requests_at_the_same_time_get_the_answers_that_they_get_alone(client):
    questions = [[{"role": "user", "content": f"the cat sat on {n} mats"}] for n in range(6)] + [with_pictures("red")]
    alone = [text_of(ask(client, question)) for question in questions]
    with ThreadPoolExecutor(len(questions)) as pool:
        together = list(pool.map(lambda question: text_of(ask(client, question)), questions))
    assert together == alone


def test_the_same_seed_draws_the_same_answer_and_another_seed_another(client):
    first, second, other = (text_of(ask(client, temperature=1.5, seed=seed)) for seed in (1, 1, 2))
    assert first == second != other


def test_several_answers_of_a_seed_differ_and_come_again(client):
    first, again = (ask(client, n=3, seed=4, temperature=1.5) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices] and len(set(texts)) == 3
    assert texts[0] == text_of(ask(client, seed=4, temperature=1.5))


def test_log_probabilities_of_a_greedy_answer_are_the_highest_and_spell_it(client):
    answer = ask(client, logprobs=True, top_logprobs=3).choices[0]
    reported = answer.logprobs.content
    assert b"".join(bytes(one.bytes) for one in reported).decode(errors="replace") == answer.message.content
    assert all(one.logprob == one.top_logprobs[0].logprob <= 0 and len(one.top_logprobs) == 3 for one in reported)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_by_a_schema_is_valid_although_the_model_knows_nothing(client, stream):
    schema = {"type": "object", "properties": {"cats": {"type": "integer", "maximum": 99}}, "required": ["cats"]}
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema | {"additionalProperties": False}}}
    answer = ask(client, response_format=asked, max_tokens=200, temperature=1, seed=1, stream=stream)
    text = "".join(c.choices[0].delta.content or "" for c in answer) if stream else text_of(answer)
    assert set(json.loads(text)) == {"cats"}


def test_a_tool_that_must_be_called_is_called(client):
    parameters = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rom"]}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters, "strict": True}}]
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        options = {"tools": tools, "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 100}
        answer = ask(client, **options).choices[0]
        [call] = answer.message.tool_calls
        assert (answer.finish_reason, call.function.name) == ("tool_calls", "weather")
        assert json.loads(call.function.arguments)["city"] in {"Oslo", "Rom"}


def test_a_stop_string_cuts_the_answer_where_it_begins(client):
    whole = text_of(ask(client, max_tokens=40))
    stop = whole[len(whole) // 2 :][:3]
    assert text_of(ask(client, max_tokens=40, stop=stop)) == whole[: whole.index(stop)]


def test_the_likelihood_of_a_continuation_over_http_is_that_of_the_scorer(client, tiny_folder):
    """As lm-eval asks: token ids of context and continuation, echoed with log-probabilities."""
    from herd.engine.load import load
    from herd.engine.model import Prompt
    from herd.engine.score import log_likelihoods

    model = load(tiny_folder)
    context, continuation = ([model.config.special.bos, *model.tokenizer.encode("the cat sat")], [17, 5, 30])
    [expected] = log_likelihoods(model, [(Prompt(token_ids=context), continuation)])
    asked = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    answer = client.completions.create(model=MODEL, prompt=[context + continuation, context], **asked)
    found = answer.choices[0].logprobs
    assert sum(found.token_logprobs[len(context) : -1]) == pytest.approx(expected, abs=0.05)  # bf16
    assert all(
        own <= max(top.values()) for own, top in zip(found.token_logprobs[1:], found.top_logprobs[1:], strict=True)
    )
    assert found.token_logprobs[0] is None and len(answer.choices[1].logprobs.tokens) == len(context) + 1


def test_a_streamed_completion_has_the_plain_one_s_tokens_at_the_same_places(client):
    options = {"max_tokens": 12, "temperature": 0, "echo": True, "logprobs": 2}
    plain = client.completions.create(model=MODEL, prompt="der Hund läuft", **options).choices[0]
    assert plain.text.startswith("der Hund läuft")
    parts = [chunk.choices[0] for chunk in client.completions.create(
        model=MODEL, prompt="der Hund läuft", stream=True, **options
    )]  # fmt: skip
    assert "".join(part.text for part in parts) == plain.text
    for name in ("tokens", "token_logprobs", "text_offset"):
        joined = [value for part in parts if part.logprobs for value in getattr(part.logprobs, name)]
        assert joined == getattr(plain.logprobs, name), name
    begins = dict(zip(plain.logprobs.text_offset, plain.logprobs.tokens, strict=True))
    whole = {at: token for at, token in begins.items() if "\ufffd" not in token and not token.startswith("<|")}
    assert len(whole) > 5 and all(plain.text.startswith(token, at) for at, token in whole.items())


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"n": 20}, "n"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"extra_body": {"regex": "a("}}, "regex"),
        ({"logit_bias": {"100000": 1}}, None),
        ({"temperature": 3}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "the cat " * 4096}]}, "messages"),
        ({"extra_body": {"typical_p": 0.5}}, "typical_p"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_field(client, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **options)
    assert caught.value.param == param


def test_streams_that_clients_leave_give_their_slots_back(client):
    for _ in range(12):
        stream = ask(client, max_tokens=2000, stream=True)
        next(iter(stream))
        stream.close()
    assert ask(client.with_options(timeout=20)).usage.completion_tokens > 0


def test_ctrl_c_ends_the_server_in_good_order_even_while_it_answers(tiny_folder):
    with start(tiny_folder) as process:
        client = openai.OpenAI(base_url=f"{address(process)}/v1", api_key="none", max_retries=0)
        stream = ask(client, max_tokens=4000, stream=True)
        next(iter(stream))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        stream.close()
    assert "Traceback" not in errors
    assert process.returncode == 0


def test_what_cannot_be_served_is_reported_in_one_line(tmp_path, url, capsys):
    port = url.rsplit(":", 1)[1]
    for folder, asked, says in [
        (tmp_path / "nowhere", "0", "nowhere is not a folder"),
        (tmp_path, "0", "has neither config.json nor params.json"),
        (tmp_path, port, f"cannot listen on 127.0.0.1 port {port}"),
    ]:
        assert main(["serve", str(folder), "--port", asked]) == 1
        errors = capsys.readouterr().err
        assert says in errors
        assert "Traceback" not in errors
        assert len(errors.strip().splitlines()) == 1
