"""Several answers to a request, their log-probabilities and their forms."""

import openai
import pytest
from serve_world import eventually

from herd.engine.answer import TokenLogprob
from herd.engine.reply import Reply
from herd.engine.sampler import choice_seeds
from herd.engine.structure import ANY_OBJECT, Structure
from herd.serve.api.chat import likeliest_replies


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers_come_under_their_numbers_with_seeds_of_their_own(server, stream):
    options = {"stream_options": {"include_usage": True}} if stream else {}
    answer = server.ask("a b c", n=3, seed=5, stream=stream, **options)
    if stream:
        *chunks, last = list(answer)
        assert [chunk.choices[0].index for chunk in chunks[:3]] == [0, 1, 2]
        texts = ["".join(c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == i) for i in range(3)]
        reasons = [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason]
        usage = last.usage
    else:
        assert [one.index for one in answer.choices] == [0, 1, 2]
        texts, reasons = (
            [f(one) for one in answer.choices] for f in (lambda c: c.message.content, lambda c: c.finish_reason)
        )
        usage = answer.usage
    assert (texts, reasons, usage.completion_tokens) == (["a b c"] * 3, ["stop"] * 3, 12)
    seeds = [params.seed for _, params in server.model.last_engine.seen[-3:]]
    assert sorted(seeds) == sorted(choice_seeds(5, 3)) and len(set(seeds)) == 3


def test_of_several_answers_one_that_fails_ends_all(server):
    engine = server.model.last_engine
    for stream in (False, True):
        with pytest.raises(openai.APIError, match="the reason is in its log"):
            list(server.ask("a fail", n=2, stream=stream))
    assert eventually(lambda: engine.running == 0)


def test_the_best_of_several_answers_are_those_of_the_likeliest_tokens():
    def reply(*logprobs: float) -> Reply:
        given = tuple(TokenLogprob(token_id=0, logprob=one, sampled_logprob=one) for one in logprobs)
        return Reply(text=str(logprobs), num_tokens=len(logprobs), finish_reason="stop", logprobs=given)

    short, long, poor = reply(-1.0), reply(-0.5, -0.5, -0.5), reply(-2.0, -0.1)
    assert likeliest_replies([poor, short, long], 2) == [long, short]  # by the mean: to be long is no fault


def test_best_of_counts_all_that_was_made(server):
    answer = server.ask("a b c", n=2, extra_body={"best_of": 3})
    assert (len(answer.choices), answer.usage.completion_tokens) == (2, 12)
    assert answer.choices[0].logprobs is None


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_come_in_openais_shape(server, stream):
    answer = server.ask("a b", logprobs=True, top_logprobs=2, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    reported = [one for choice in choices if choice.logprobs for one in choice.logprobs.content]
    assert [one.logprob for one in reported] == [-0.5, -1.0, -1.5]
    assert bytes(reported[0].bytes).decode(errors="replace") == reported[0].token
    assert [(top.logprob, top.token) for top in reported[1].top_logprobs] == [(-1.0, reported[1].token), (-9.0, "!")]
    assert server.model.last_engine.seen[-1][1].logprobs == 2


def test_a_form_reaches_the_engine_and_a_faulty_one_the_client(server):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    for options, form in [
        ({"response_format": asked}, Structure.from_schema(schema)),
        ({"response_format": {"type": "json_object"}}, ANY_OBJECT),
        ({"extra_body": {"regex": "a+"}}, Structure(kind="regex", source="a+")),
        ({"extra_body": {"grammar": "start: /a/"}}, Structure(kind="grammar", source="start: /a/")),
        ({"response_format": {"type": "text"}}, None),
    ]:
        server.ask("a", **options)
        assert server.model.last_engine.seen[-1][1].structure == form
    asked["json_schema"]["schema"] = {"type": "array", "uniqueItems": True}
    for options, param, says in [
        ({"response_format": asked}, "response_format", '"uniqueItems" is not supported'),
        ({"extra_body": {"regex": "a("}}, "regex", "unclosed group"),
        ({"extra_body": {"grammar": "start: b"}}, "grammar", "b"),
    ]:
        with pytest.raises(openai.BadRequestError, match=says) as caught:
            server.ask("a", **options)
        assert caught.value.param == param
