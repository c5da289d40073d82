"""Embeddings, moderations and metrics: asked by OpenAI's client where it has them."""

import base64
import json
import math
import struct
import urllib.request
from collections.abc import Iterator
from types import SimpleNamespace

import openai
import pytest
from fake_herd import CONTEXT, FakeModel
from prometheus_client.parser import text_string_to_metric_families
from serve_world import Running, picture, serving
from test_guard_stream import BAD, WordGuard

from herd.engine.pipeline import AnswerPipeline
from herd.guard.model_guard import Verdict
from herd.guard.stream import GuardGate
from herd.serve import server as api
from herd.serve.models import one_model


class BatchGuard(WordGuard):
    """As the real one, several at a time; pictures are unsafe."""

    def judge_all(self, conversations):
        return [self.judge(messages) for messages in conversations]

    def judge(self, messages):
        content = messages[-1]["content"]
        if isinstance(content, str):
            return super().judge(messages)
        unsafe = any(part["type"] == "image" for part in content)
        return Verdict(unsafe=unsafe, score=float(unsafe), categories=("S12",) if unsafe else ())


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    model = FakeModel()
    engine = model.engine()
    with api.listen("127.0.0.1", 0) as listener:
        gate = GuardGate(BatchGuard())
        app = api.create_app(one_model(AnswerPipeline(model, engine, gate=gate), name="fake"), guard_name="guard")
        with serving(app, engine, listener):
            yield Running(model, listener.getsockname()[1])


@pytest.mark.parametrize("given", ["ab", ["ab", "c"], [97, 98], [[97, 98], [99]]])
def test_each_text_has_a_vector(server, given):
    answer = server.client.embeddings.create(model="fake", input=given)
    vectors = [one.embedding for one in answer.data]
    assert vectors == ([[2, 97, 98], [1, 99]] if isinstance(given[0], list) or given == ["ab", "c"] else [[2, 97, 98]])
    assert answer.usage.prompt_tokens == sum(int(vector[0]) for vector in vectors)


def test_vectors_come_as_numbers_or_as_base64_floats(server):
    body = {"model": "fake", "input": "ab"}
    for form in ("float", "base64"):
        status, answer = server.raw(json.dumps(body | {"encoding_format": form}).encode(), path="/v1/embeddings")
        [one] = json.loads(answer)["data"]
        packed = one["embedding"]
        assert status == 200
        assert (packed if form == "float" else list(struct.unpack("<3f", base64.b64decode(packed)))) == [2, 97, 98]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"dimensions": 8}, "dimensions"),
        ({"input": []}, "input"),
        ({"input": ["a"] * 129}, "input"),
        ({"input": "a" * (CONTEXT + 1)}, "input"),
        ({"input": [2**30]}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_embeddings_that_cannot_be_are_refused_by_name(server, fields, param):
    body = {"model": "fake", "input": "a", **fields}
    status, answer = server.raw(json.dumps(body).encode(), path="/v1/embeddings")
    assert (status, json.loads(answer)["error"]["param"]) == (400, param)


def test_the_engine_s_vectors_are_the_mean_of_the_hidden_states(tiny_folder):
    import torch

    from herd.engine.load import load

    model = load(tiny_folder, dtype=torch.float32)
    engine = model.engine(max_num_seqs=2, max_model_len=64)
    try:
        prompts = [model.prompt_of_text(text) for text in ("the cat", "der Hund läuft")]
        vectors = engine.embed(prompts)
        for prompt, vector in zip(prompts, vectors, strict=True):
            ids = torch.tensor(prompt.token_ids)
            starts = torch.tensor([0, len(ids)])
            with torch.inference_mode():
                hidden = model.transformer(ids, positions_N=torch.arange(len(ids)), starts_S=starts)
            wanted = hidden.mean(0) / hidden.mean(0).norm()
            assert torch.allclose(torch.tensor(vector), wanted, atol=1e-5)
            assert math.isclose(sum(x * x for x in vector), 1, rel_tol=1e-5)
        assert vectors[0] != vectors[1]
    finally:
        engine.close()


def test_moderations_are_the_guard_s_verdicts(guarded):
    answer = guarded.client.moderations.create(input=["hello", f"say {BAD}"])
    assert [one.flagged for one in answer.results] == [False, True] and answer.model == "guard"
    bad = answer.results[1]
    assert bad.categories.violence is True and bad.categories.hate is False
    assert bad.category_scores.violence == 1.0 and bad.category_scores.hate == 0.0
    assert bad.categories.to_dict()["S1"] is True
    assert guarded.client.moderations.create(input="hello").results[0].flagged is False


def test_a_picture_is_moderated_with_its_text(guarded):
    [result] = guarded.client.moderations.create(input=[{"type": "text", "text": "so?"}, picture(3, 2)]).results
    assert result.flagged and result.categories.sexual
    assert result.category_applied_input_types.sexual == ["text", "image"]
    with pytest.raises(openai.BadRequestError, match="does not do"):
        guarded.client.moderations.create(
            input=[{"type": "image_url", "image_url": {"url": "http://169.254.169.254/x"}}]
        )


def test_without_a_guard_there_are_no_moderations(server):
    with pytest.raises(openai.NotFoundError, match="--guard"):
        server.client.moderations.create(input="a")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_a_guard_judges_what_a_chat_asks(guarded, stream, n):
    answer = guarded.ask(f"say {BAD}", stream=stream, n=n)
    if stream:
        chunks = [choice for chunk in answer for choice in chunk.choices]
        assert "".join(one.delta.content or "" for one in chunks) == ""
        refusals = [one.delta.refusal for one in chunks if one.delta.refusal]
        reasons = [one.finish_reason for one in chunks if one.finish_reason]
    else:
        refusals = [one.message.refusal for one in answer.choices]
        reasons = [one.finish_reason for one in answer.choices]
        assert all(one.message.content is None for one in answer.choices)
    assert reasons == ["content_filter"] * n
    assert len(refusals) == n and all("S1 Violent Crimes" in one for one in refusals)
    assert guarded.model.last_engine.seen == []


def test_a_guard_judges_what_a_text_to_be_continued_says(guarded):
    for prompt in (f"say {BAD}", guarded.model.tokenizer.encode(f"say {BAD}")):
        choice = guarded.client.completions.create(model="fake", prompt=prompt, echo=True, logprobs=1).choices[0]
        assert (choice.finish_reason, choice.text) == ("content_filter", "")
    assert guarded.model.last_engine.seen == []


def test_metrics_count_requests_and_tokens_in_prometheus_s_format(server):
    def read():
        text = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics").read().decode()
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name, *sorted(sample.labels.values())] = sample.value
        return found

    def grown(name, *labels):
        return after.get((name, *labels), 0) - before.get((name, *labels), 0)

    before = read()
    server.ask("one two")
    list(server.ask("one two", stream=True))
    server.client.completions.create(model="fake", prompt="one")
    with pytest.raises(openai.BadRequestError):
        server.ask("a", n=99)
    server.raw(b"", path="/no/such/path/1", method="GET")
    server.raw(b"", path="/no/such/path/2", method="GET")
    after = read()
    chat = "/v1/chat/completions"
    assert grown("herd_requests_total", *sorted(("200", chat))) == 2
    assert grown("herd_requests_total", *sorted(("400", chat))) == 1
    assert grown("herd_requests_total", *sorted(("404", "other"))) == 2
    assert grown("herd_completion_tokens_total") == 3 + 3 + 2
    assert grown("herd_prompt_tokens_total") > 0
    assert grown("herd_first_token_seconds_count") == 3
    assert after["herd_engine_running", "fake"] == 0 and after["herd_open_requests",] == 1  # this one
    assert not any("no/such" in str(key) for key in after)


def test_a_wrong_shape_of_the_guard_fails_closed():
    model = FakeModel()
    pipeline = AnswerPipeline(model, model.engine(), gate=GuardGate(SimpleNamespace()))
    from herd.engine.conversation import Conversation
    from herd.engine.sampler import SamplingParams

    asked = pipeline.request(Conversation([{"role": "user", "content": "a"}]), SamplingParams())
    [reply] = pipeline.iterate(asked)
    assert reply.refused and reply.text == ""
