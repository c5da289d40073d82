"""The engine by tokens: several answers to one prompt, log-probabilities, new weights, faults of one request."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from herd.engine.answer import Piece
from herd.engine.engine import Engine
from herd.engine.load import Model, load
from herd.engine.model import Prompt
from herd.engine.request import CompletionOutput, EngineFault, EngineRequest
from herd.engine.sampler import SamplingParams
from herd.engine.structure import GrammarState, Structure
from herd.engine.weights import weights_digest
from herd.errors import HerdError


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    return load(tiny_folder, dtype=torch.float32)


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    with closing(model.engine(max_num_seqs=3, max_model_len=700)) as engine:
        yield engine


def prompt_of(model: Model, *contents: Any) -> Prompt:
    return model.render([{"role": "user", "content": list(contents)}])


def picture(shade: int) -> dict[str, Any]:
    return {"type": "image", "image": Image.new("RGB", (90, 90), (shade, 30, 200 - shade))}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def test_several_answers_read_their_prompt_and_its_picture_once(
    model: Model, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, params = prompt_of(model, picture(7), text("der Hund " * 30)), SamplingParams(max_tokens=9, temperature=1.0)
    encoded: list[int] = []
    encode = type(model).encode_tiles

    def counting(model: Model, pixels: Tensor) -> Tensor:
        encoded.append(len(pixels))
        return encode(model, pixels)

    monkeypatch.setattr(type(model), "encode_tiles", counting)
    request = engine.submit(prompt, params, seed=5, n=7)
    outputs = request.result()
    assert [one.index for one in outputs] == list(range(7))
    assert sum(encoded) == sum(len(tiles.pixels) for tiles in prompt.tiles)
    # Each answer but the first computes the last token of the prompt again, for its logits.
    assert engine.stats()["prefilled"] == len(prompt.token_ids) + 6
    assert len(set(request.seeds)) == 7 and len({tuple(one.token_ids) for one in outputs}) > 1
    engine.flush()
    for one in outputs:
        [alone] = engine.submit(prompt, params, seed=one.seed).result()
        assert alone.token_ids == one.token_ids


def test_every_token_has_its_log_probability_by_the_model_and_as_it_was_drawn(model: Model, engine: Engine) -> None:
    prompt = prompt_of(model, text("the cat"))
    params = SamplingParams(max_tokens=12, temperature=0.6, top_k=20, logprobs=0, logit_bias={60: 4.0})
    for output in engine.submit(prompt, params, n=3).result():
        ids = [*prompt.token_ids, *output.token_ids]
        logits = model.logits(ids)[len(prompt.token_ids) - 1 : -1].float()
        assert [one.token_id for one in output.logprobs] == output.token_ids
        own = torch.log_softmax(logits, -1)[range(len(logits)), output.token_ids]
        biased = logits.clone()
        biased[:, 60] += 4
        scaled = biased / 0.6
        kept = scaled.masked_fill(scaled < scaled.topk(20).values[:, -1:], float("-inf"))
        drawn = torch.log_softmax(kept, -1)[range(len(logits)), output.token_ids]
        torch.testing.assert_close(torch.tensor([one.logprob for one in output.logprobs]), own, rtol=0, atol=1e-4)
        sampled = torch.tensor([one.sampled_logprob for one in output.logprobs])
        torch.testing.assert_close(sampled, drawn, rtol=0, atol=1e-4)
        assert (sampled - own).abs().max() > 0.1


def test_what_is_greedy_is_certain(model: Model, engine: Engine) -> None:
    [output] = engine.submit(prompt_of(model, text("mat")), SamplingParams(max_tokens=4, logprobs=0)).result()
    assert [one.sampled_logprob for one in output.logprobs] == [0.0] * len(output.token_ids)


def test_a_seed_of_the_request_replaces_that_of_its_params(model: Model, engine: Engine) -> None:
    prompt, params = prompt_of(model, text("the cat")), SamplingParams(max_tokens=20, temperature=1.0, seed=1)
    one, other, same = (engine.submit(prompt, params, seed=seed).result()[0] for seed in (None, 2, 1))
    assert one.seed == 1 and one.token_ids == same.token_ids != other.token_ids
    free = SamplingParams(max_tokens=20, temperature=1.0)
    assert len({engine.submit(prompt, free).seeds for _ in range(5)}) == 5


def test_a_request_is_read_in_an_event_loop_and_cancelled_answer_by_answer(model: Model, engine: Engine) -> None:
    async def ask() -> list[CompletionOutput]:
        request = engine.submit(prompt_of(model, text("the cat")), SamplingParams(max_tokens=400), n=2)
        request.cancel(1)
        return await request.wait()

    whole, cancelled = asyncio.run(ask())
    assert whole.finish_reason in {"stop", "length"} and cancelled.finish_reason == "abort"
    assert len(whole.versions) == len(whole.token_ids) > len(cancelled.token_ids)


def test_a_prompt_of_tokens_that_the_model_has_not_is_refused(model: Model, engine: Engine) -> None:
    for wrong in (-1, model.config.vocab_size):
        with pytest.raises(HerdError, match=f"the prompt has the token {wrong}: "):
            engine.submit(Prompt(token_ids=[5, wrong]), SamplingParams())
    with pytest.raises(HerdError, match="n=0"):
        engine.submit(Prompt(token_ids=[5]), SamplingParams(), n=0)


def test_new_weights_are_complete_or_refused_and_have_a_digest(tiny_folder: Path) -> None:
    model = load(tiny_folder, dtype=torch.float32)
    own = {name: tensor.clone() for name, tensor in model.transformer.state_dict().items()}
    other = {name: 0.9 * tensor for name, tensor in own.items()}
    with closing(model.engine(max_num_seqs=2, max_model_len=300)) as engine:
        refused: list[tuple[dict[str, Tensor], str]] = [
            ({name: tensor for name, tensor in other.items() if name != "norm.weight"}, r"1 of \d+ .*'norm.weight'"),
            ({**other, "nose": torch.zeros(1)}, "no parameter 'nose'"),
            ({**other, "norm.weight": torch.zeros(3)}, r"norm.weight has the shape \(3,\)"),
            ({**other, "norm.weight": other["norm.weight"].bfloat16()}, "norm.weight is torch.bfloat16"),
        ]
        for tensors, reason in refused:
            with pytest.raises(HerdError, match=reason):
                engine.update_weights(3, tensors)
        assert engine.version == 0 and weights_digest(model.transformer.state_dict()) == weights_digest(own)
        assert engine.update_weights(3, other) == weights_digest(other) != weights_digest(own)
        assert engine.update_weights(4, own) == weights_digest(own) and engine.version == 4


def test_a_flush_forgets_what_prompts_begin_with(model: Model, engine: Engine) -> None:
    prompt, params = prompt_of(model, text("der Hund " * 30)), SamplingParams(max_tokens=1)
    counts = []
    for flush in (False, False, True):
        if flush:
            engine.flush()
        before = engine.stats()["prefilled"]
        engine.submit(prompt, params).result()
        counts.append(engine.stats()["prefilled"] - before)
    assert counts == [len(prompt.token_ids), 1, len(prompt.token_ids)]


def faults(good: EngineRequest, bad: EngineRequest) -> tuple[list[Piece], str]:
    with pytest.raises((HerdError, EngineFault)) as error:
        bad.result()
    return list(good), f"{type(error.value).__name__}: {error.value}"


def test_a_fault_of_one_request_ends_it_alone(model: Model, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, params = prompt_of(model, text("the cat")), SamplingParams(max_tokens=30)
    [wanted] = engine.submit(plain, params).result()
    allowed, calls = GrammarState.allowed_tokens, []

    def broken(progress: GrammarState) -> Tensor:
        calls.append(progress)
        if len(calls) > 4:
            raise RuntimeError("the grammar broke")
        return allowed(progress)

    structured = SamplingParams(max_tokens=30, structure=Structure(kind="regex", source="[a-f]{20,30}"))
    engine.submit(plain, structured).result()  # compiled
    monkeypatch.setattr(GrammarState, "allowed_tokens", broken)
    pieces, error = faults(engine.submit(plain, params), engine.submit(plain, structured))
    assert (
        "".join(piece.text for piece in pieces) == wanted.text and "EngineFault" in error and "grammar broke" in error
    )

    def unreadable(model: Model, pixels: Tensor) -> Tensor:
        raise HerdError("the picture cannot be encoded")

    monkeypatch.setattr(type(model), "encode_tiles", unreadable)
    pieces, error = faults(engine.submit(plain, params), engine.submit(prompt_of(model, picture(3)), params))
    assert (
        "".join(piece.text for piece in pieces) == wanted.text and error == "HerdError: the picture cannot be encoded"
    )
    assert engine.stats()["used_bytes"] == 0


def test_a_long_row_of_pictures_is_encoded_beside_the_answers_of_others(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, params = prompt_of(model, *[picture(shade) for shade in range(12)]), SamplingParams(max_tokens=5)
    encoded: list[int] = []
    encode = type(model).encode_tiles

    def counting(model: Model, pixels: Tensor) -> Tensor:
        encoded.append(len(pixels))
        return encode(model, pixels)

    monkeypatch.setattr(type(model), "encode_tiles", counting)
    assert model.config.vision is not None
    size = model.config.vision.tokens_per_tile
    with closing(model.engine(max_num_seqs=3, max_model_len=700)) as engine:
        [wanted] = engine.submit(prompt, params).result()
    few = {"max_prefill_tokens": 2 * size, "max_mixed_prefill_tokens": size + 1}
    encoded.clear()
    with closing(model.engine(max_num_seqs=3, max_model_len=700, **few)) as engine:
        running = iter(engine.submit(prompt_of(model, text("the cat")), SamplingParams(max_tokens=500)))
        next(running)  # one that decodes meanwhile
        assert engine.submit(prompt, params).result()[0].token_ids == wanted.token_ids
    assert max(encoded) <= 2 and sum(encoded) == sum(len(tiles.pixels) for tiles in prompt.tiles)


def test_a_context_of_ten_million_tokens_is_served(model: Model, tmp_path: Path) -> None:
    options = {"max_model_len": 10 * 2**20, "kv_cache_dtype": "int8", "kv_cache_folder": tmp_path}
    with closing(model.engine(max_num_seqs=2, **options)) as engine:
        assert engine.max_model_len == 10_485_760
        prompt = prompt_of(model, text("the cat"))
        whole = SamplingParams(max_tokens=10_000_000, stop=("e", "a", "i"))
        [output] = engine.submit(prompt, whole).result()
        assert output.finish_reason == "stop"
        # Two of them would not fit at the same time: the cache has room for one, and the other waits.
        assert engine.cache_bytes < 2 * engine._bytes_of_length(10_485_760)
