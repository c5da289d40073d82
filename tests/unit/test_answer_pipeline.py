"""One pipeline: server, stream, terminal, batch generation and Python give the same reply; what filters do to it."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_herd import FakeModel
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from herd.data.tokens.tool_calls import Call
from herd.engine.answer import Piece, TokenLogprob
from herd.engine.filters import StreamFilter, Verdict
from herd.engine.load import load
from herd.engine.pipeline import AnswerPipeline
from herd.engine.reply import ReplyBuilder, join_reply
from herd.engine.sampler import SamplingParams
from herd.serve.api.app import create_app
from herd.serve.batch import generate
from herd.serve.models import one_model
from herd.serve.session import ChatSession

TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "clock"}},
]
Outcome = tuple[str, str, list[tuple[str, str]]]
"""Text, finish reason, and the name and arguments of each tool call."""


def outcomes(pipeline: AnswerPipeline, text: str, tmp_path: Path, **options: Any) -> dict[str, Outcome]:
    """What each way makes of one request."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **options}
    client = TestClient(create_app(one_model(pipeline, name="m")))
    plain = client.post("/v1/chat/completions", json=body).json()
    events = client.post("/v1/chat/completions", json={**body, "stream": True}).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: "))["choices"][0] for line in events if "{" in line]
    streamed = {
        "message": {
            "content": "".join(chunk["delta"].get("content") or "" for chunk in chunks),
            "tool_calls": [call for chunk in chunks for call in chunk["delta"].get("tool_calls", ())],
        },
        "finish_reason": chunks[-1]["finish_reason"],
    }
    found = {"server": of_choice(plain["choices"][0]), "stream": of_choice(streamed)}

    params = SamplingParams(max_tokens=options.get("max_tokens", 128), stop=tuple(options.get("stop", ())))
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n" + json.dumps({"messages": body["messages"]}))
    generate(pipeline, tmp_path / "in.jsonl", tmp_path / "out.jsonl", params)
    by_openai, by_own = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    found["generate"] = of_choice(by_openai["response"]["body"]["choices"][0])

    reply = pipeline.model.chat(body["messages"], params, tools=options.get("tools", ()))
    calls = [(call.name, call.arguments_json) for call in reply.tool_calls]
    found["Model.chat"] = (reply.text, str(reply.finish_reason), calls)
    if "tools" not in options:  # which these two do not offer
        found["generate, own line"] = (by_own["text"], by_own["finish_reason"], [])
        found["terminal"] = asyncio.run(said(ChatSession(pipeline, params), text))
    return found


def of_choice(choice: dict[str, Any]) -> Outcome:
    functions = [call["function"] for call in choice["message"].get("tool_calls") or ()]
    calls = [(function["name"], function["arguments"]) for function in functions]
    return choice["message"]["content"] or "", choice["finish_reason"], calls


async def said(session: ChatSession, text: str) -> Outcome:
    reply = join_reply([part async for part in session.ask(text)])
    assert session.conversation.messages[-1] == {"role": "assistant", "content": reply.text}
    return reply.text, str(reply.finish_reason), []


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("one two three", {}, ("one two three", "stop", [])),
        ("count", {"max_tokens": 4}, ("1 2 3 4 ", "length", [])),
        ("count", {"stop": ["5 6", "never"]}, ("1 2 3 4 ", "stop", [])),
        ("[clock()]", {}, ("[clock()]", "stop", [])),
        ("[clock()]", {"tools": TOOLS}, ("", "tool_calls", [("clock", "{}")])),
        (
            'Let me see.\n [weather(city="Oslo"), clock()]',
            {"tools": TOOLS},
            ("Let me see.", "tool_calls", [("weather", '{"city": "Oslo"}'), ("clock", "{}")]),
        ),
        (
            '[weather(a=1, b="x y z")]',
            {"tools": TOOLS, "max_tokens": 3},
            ("", "length", [("weather", '{"a": 1, "b": "x')]),
        ),
        ("I call [weather(city=here)] now ", {"tools": TOOLS}, ("I call [weather(city=here)] now ", "stop", [])),
        ('[weather(a="b c")]', {"tools": TOOLS, "stop": ["c"]}, ('[weather(a="b ', "stop", [])),
    ],
)
def test_every_way_gives_the_same_text_reason_and_calls(
    text: str, options: dict[str, Any], expected: Outcome, tmp_path: Path
) -> None:
    found = outcomes(FakeModel().pipeline, text, tmp_path, **options)
    assert found == dict.fromkeys(found, expected)


def test_every_way_gives_what_a_real_model_says(tiny_folder: Path, tmp_path: Path) -> None:
    model = load(tiny_folder, dtype=torch.float32)
    text = "the cat sat on"
    try:
        found = outcomes(model.pipeline, text, tmp_path, max_tokens=12)
        whole = found["server"][0]
        assert len(whole) > 4 and found == dict.fromkeys(found, (whole, "length", []))
        (tmp_path / "out.jsonl").unlink()
        stop = whole[len(whole) // 2 :][:3]
        found = outcomes(model.pipeline, text, tmp_path, max_tokens=12, stop=[stop])
        assert found == dict.fromkeys(found, (whole[: whole.index(stop)], "stop", []))
        assert model.generate("the cat", SamplingParams(max_tokens=3)).num_tokens == 3
    finally:
        model.pipeline.engine.close()


class Holding:
    """Holds each text back until the next comes."""

    verdict: Verdict | None = None

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        shown, self._held = self._held, text
        return shown

    def finish(self) -> str:
        return self._held


class Forbidding:
    """Ends the reply at a word, with a text in its place."""

    def __init__(self, word: str = "3") -> None:
        self.word, self.verdict = word, None

    def push(self, text: str) -> str:
        if self.word not in text:
            return text
        self.verdict = Verdict(finish_reason="content_filter", explanation=f"{self.word} was said")
        return "(no more)"

    def finish(self) -> str:
        return ""


class Shouting:
    verdict: Verdict | None = None

    def push(self, text: str) -> str:
        return text.upper()

    def finish(self) -> str:
        return "!"


def build(texts: Sequence[str], *filters: StreamFilter, tools: Sequence[str] = ()) -> Any:
    """The reply to pieces of these texts."""
    builder, parts = ReplyBuilder(tools, filters), []
    for i, text in enumerate(texts):
        reason = "stop" if i == len(texts) - 1 else None
        logprob = TokenLogprob(token_id=i, logprob=-1.0, sampled_logprob=-1.0)
        parts.append(builder.push(Piece(text=text, token_ids=[i], finish_reason=reason, logprobs=(logprob,))))
        if parts[-1].finish_reason:
            break
    return join_reply(parts)


@given(texts=st.lists(st.sampled_from(["a", " ", "[", "clock", "(", ")", "]", "x"]), min_size=1), num=st.integers(1, 3))
def test_what_filters_only_hold_back_changes_nothing_in_the_end(texts: list[str], num: int) -> None:
    plain, held = build(texts, tools=["clock"]), build(texts, *(Holding() for _ in range(num)), tools=["clock"])
    assert held == plain


def test_filters_run_in_their_order_and_what_one_held_back_goes_through_the_next() -> None:
    assert build(["ab", "cd"], Holding(), Shouting()).text == "ABCD!"
    assert build(["a", "b"], Shouting(), Forbidding("B"), Shouting()).text == "A(NO MORE)!"


def test_a_verdict_drops_the_call_that_was_under_way_and_the_log_probabilities() -> None:
    texts = ["I look ", "[clock(), ", "weather(", "bomb=1)]"]
    whole = build(texts, Holding(), tools=["clock", "weather"])
    assert whole.tool_calls == (Call(name="clock", arguments={}), Call(name="weather", arguments={"bomb": 1}))
    assert len(whole.logprobs) == 4
    ended = build(texts, Forbidding("bomb"), tools=["clock", "weather"])
    assert (ended.text, ended.tool_calls, ended.logprobs) == ("I look(no more)", (), ())
    assert (ended.finish_reason, ended.explanation, ended.num_tokens) == ("content_filter", "bomb was said", 4)


def test_a_filter_ends_the_reply_and_the_generation_in_every_way(tmp_path: Path) -> None:
    model = FakeModel()
    filters: list[Callable[[], StreamFilter]] = [Holding, Forbidding]
    pipeline = AnswerPipeline(model, model.engine(), filters=filters)
    model.__class__ = type("Guarded", (FakeModel,), {"pipeline": pipeline})
    found = outcomes(pipeline, "count", tmp_path)
    shown, reason, calls = found.pop("terminal")  # where the reader is told why
    assert (shown, reason, calls) == ("1 2 (no more)\n\n3 was said", "content_filter", [])
    assert found == dict.fromkeys(found, ("1 2 (no more)", "content_filter", []))
    assert pipeline.engine.running == 0 and pipeline.engine.num_cancelled == len(found) + 1


def test_a_stream_that_is_closed_keeps_what_was_said_and_one_that_said_nothing_its_picture() -> None:
    async def talk() -> None:
        session = ChatSession(FakeModel().pipeline, SamplingParams(max_tokens=1000))
        session.conversation.attached = [{"type": "text", "text": "see: "}]
        parts = session.ask("count")
        await anext(parts)
        await parts.aclose()
        assert session.conversation.messages == [] and len(session.conversation.attached) == 1
        session.conversation.attached = []
        async with aclosing(session.ask("count")) as parts:
            async for part in parts:
                if part.text.startswith("3"):
                    break
        assert [message["content"] for message in session.conversation.messages] == ["count", "1 2 3 "]

    asyncio.run(talk())


def test_a_program_that_ends_without_closing_its_engine_ends_in_good_order(tiny_folder: Path) -> None:
    program = f"""
import atexit, threading
atexit.register(lambda: print([thread.name for thread in threading.enumerate()]))  # called last
import herd
reply = herd.load({str(tiny_folder)!r}).generate("Once", herd.SamplingParams(max_tokens=4))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "['MainThread']\n", "")
