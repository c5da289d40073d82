"""OpenAI's older completions, asked by its client: texts and token ids, echo, log-probabilities, refusals by name."""

import json
import math

import openai
import pytest


def ask(server, prompt, **options):
    return server.client.completions.create(model="fake", prompt=prompt, **options)


def test_a_text_is_continued_without_a_chat_format(server):
    answer = ask(server, "one two three", max_tokens=9)
    assert (answer.object, answer.choices[0].text, answer.choices[0].finish_reason) == (
        "text_completion",
        "one two three",
        "stop",
    )
    prompt, params = server.model.last_engine.seen[-1]
    assert bytes(prompt.token_ids) == b"one two three" and params.max_tokens == 9
    assert answer.usage.prompt_tokens == len(prompt.token_ids) and answer.usage.completion_tokens == 4


def test_without_a_limit_sixteen_tokens_are_made_as_openai_has_it(server):
    assert ask(server, "count").choices[0].finish_reason == "length"
    assert server.model.last_engine.seen[-1][1].max_tokens == 16


@pytest.mark.parametrize(
    "prompt", [["a b", "c"], [list(b"a b"), list(b"c")]], ids=["several texts", "several token arrays"]
)
def test_several_prompts_have_their_choices_in_order(server, prompt):
    answer = ask(server, prompt, n=2)
    assert [(one.index, one.text) for one in answer.choices] == [(0, "a b"), (1, "a b"), (2, "c"), (3, "c")]
    assert answer.usage.prompt_tokens == 4  # each prompt once


def test_one_token_array_is_taken_as_it_is(server):
    assert ask(server, list(b"a b")).choices[0].text == "a b"
    assert server.model.last_engine.seen[-1][0].token_ids == list(b"a b")


@pytest.mark.parametrize("prompt", ["a b", list(b"a b")])
def test_echo_with_log_probabilities_has_those_of_the_prompt(server, prompt):
    choice = ask(server, prompt, echo=True, logprobs=1, max_tokens=1).choices[0]
    echoed = prompt if isinstance(prompt, str) else server.model.tokenizer.decode(prompt, skip_special=False)
    assert choice.text == echoed + ask(server, prompt, max_tokens=1).choices[0].text
    found = choice.logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset) == 4
    # The fake says -n of the prompt's token n, and that token + 1 would be likelier.
    assert found.token_logprobs == [None, -1.0, -2.0, -0.5]
    assert found.top_logprobs[0] is None and max(found.top_logprobs[1].values()) == -0.25


def test_echo_without_log_probabilities_reads_no_prompt_again(server):
    assert ask(server, "a", echo=True).choices[0].text == "aa"
    assert not server.model.last_engine.seen[-1][1].prompt_logprobs


def test_no_token_is_given_where_none_is_asked_for(server):
    answer = ask(server, "a b", echo=True, logprobs=0, max_tokens=0)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("a b", "length")
    assert len(answer.choices[0].logprobs.tokens) == 3 and answer.usage.completion_tokens == 0
    with pytest.raises(openai.BadRequestError, match="echo"):
        ask(server, "a b", max_tokens=0)


@pytest.mark.parametrize("options", [{}, {"echo": True}, {"echo": True, "logprobs": 2}, {"n": 2}])
def test_a_stream_joins_to_the_plain_answer(server, options):
    plain = ask(server, "one two", **options)
    chunks = list(ask(server, "one two", stream=True, stream_options={"include_usage": True}, **options))
    assert chunks[-1].usage == plain.usage and not chunks[-1].choices
    for choice in plain.choices:
        parts = [one for chunk in chunks for one in chunk.choices if one.index == choice.index]
        assert "".join(one.text for one in parts) == choice.text
        assert [one.finish_reason for one in parts][-1] == choice.finish_reason
        if choice.logprobs:
            for name in ("tokens", "token_logprobs", "top_logprobs"):
                joined = [value for one in parts for value in getattr(one.logprobs, name)]
                assert joined == getattr(choice.logprobs, name)


def test_the_likeliest_of_several_are_given(server):
    answer = ask(server, "a b", n=1, best_of=3)
    assert len(answer.choices) == 1 and answer.usage.completion_tokens == 9


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"n": 17}, "n"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [2**40]}, "prompt[0]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [10_000_000]}, "prompt"),
        ({"stop": ["x" * 257]}, "stop[0]"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10_000}, "prompt"),
        ({"tools": []}, "tools"),
    ],
)
def test_what_is_not_done_or_out_of_range_is_refused_by_name(server, options, param):
    body = {"model": "fake", "prompt": "a", **options}
    status, answer = server.raw(json.dumps(body).encode(), path="/v1/completions")
    error = json.loads(answer)["error"]
    assert (status, error["param"]) == (400, param), error


def test_a_neutral_suffix_is_no_suffix(server):
    assert ask(server, "a", suffix="").choices[0].text == "a"
    assert ask(server, "a", suffix=None).choices[0].text == "a"


def test_lm_evals_own_request_gets_what_its_parser_reads(server):
    """As `lm_eval.models.openai_completions.LocalCompletionsAPI` asks and reads."""
    context, continuation = list(b"the cat"), list(b" sat")
    body = {"model": "fake", "prompt": [context + continuation], "temperature": 0, "max_tokens": 1, "logprobs": 1}
    status, answer = server.raw(json.dumps({**body, "seed": 1234, "echo": True}).encode(), path="/v1/completions")
    assert status == 200
    [choice] = json.loads(answer)["choices"]
    own = choice["logprobs"]["token_logprobs"][len(context) : -1]
    top = choice["logprobs"]["top_logprobs"][len(context) : -1]
    assert own == [-float(n) for n in range(len(context), len(context) + len(continuation))]
    assert all(math.isclose(max(one.values()), -0.25) for one in top)  # so that it is not greedy


def test_tokens_of_a_text_go_there_and_back(server):
    def post(path, **body):
        status, answer = server.raw(json.dumps(body).encode(), path=path)
        return status, json.loads(answer)

    status, found = post("/tokenize", prompt="the cat", add_special_tokens=False)
    assert (status, found["count"]) == (200, len(found["tokens"]))
    assert post("/detokenize", tokens=found["tokens"])[1] == {"prompt": "the cat"}
    _, named = post("/tokenize", prompt="the cat", add_special_tokens=False, return_token_strs=True)
    assert "".join(named["token_strs"]) == "the cat"
    status, info = server.raw(b"", path="/tokenizer_info", method="GET")
    info = json.loads(info)
    assert info["eos_token"] == "<|eot|>" and "<|header_start|>" in info["chat_template"]
    # lm-eval asks for the ids of these names; inside a text they stay text.
    special = server.model.tokenizer.special["<|eot|>"]
    assert post("/tokenize", prompt="<|eot|>", add_special_tokens=False)[1]["tokens"] == [special]
    assert special not in post("/tokenize", prompt="a<|eot|>", add_special_tokens=False)[1]["tokens"]
    assert post("/tokenize", messages=[{"role": "user", "content": "a"}])[1]["count"] > 1
    for body in ({}, {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}):
        assert post("/tokenize", **body)[0] == 400
    assert post("/detokenize", tokens=[10_000_000])[0] == 400
    assert post("/tokenize", prompt="a", model="other")[0] == 404
