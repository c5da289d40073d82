"""The engine: an answer does not depend on what runs beside it, and every request ends."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from herd.core.errors import HerdError
from herd.engine.engine import Engine
from herd.engine.load import Model, Prompt, load
from herd.engine.sampler import SamplingParams
from herd.engine.score import log_likelihoods, token_losses


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    return load(tiny_folder, dtype=torch.float32)


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    engine = model.engine(num_slots=3, capacity=700)
    yield engine
    engine.close()


def prompts(model: Model) -> list[Prompt]:
    noise = np.random.default_rng(0).integers(0, 255, (90, 150, 3), dtype=np.uint8)
    picture = {"type": "image", "image": Image.fromarray(noise)}
    contents = ["the cat", "der Hund " * 60, [picture, {"type": "text", "text": "sat"}], [picture, picture], "mat"]
    return [model.render([{"role": "user", "content": content}]) for content in contents]


def greedy(model: Model, prompt: Prompt, count: int) -> str:
    """By whole forwards, without a cache."""
    ids = list(prompt.token_ids)
    with torch.inference_mode():
        for _ in range(count):
            hidden = model.transformer(
                torch.tensor(ids),
                positions_N=torch.arange(len(ids)),
                starts_S=torch.tensor([0, len(ids)]),
                images=model.encode([Prompt(token_ids=ids, tiles=prompt.tiles)]),
            )
            token = int(model.transformer.unembed(hidden[-1:]).argmax())
            if token in model.config.special.stop:
                break
            ids.append(token)
    return model.tokenizer.decode(ids[len(prompt.token_ids) :])


def test_answers_in_company_equal_whole_forwards(model: Model, engine: Engine) -> None:
    asked = prompts(model)
    wanted = [greedy(model, prompt, 12) for prompt in asked]
    assert engine.generate_batch(asked, SamplingParams(max_tokens=12)) == wanted


def test_a_seed_draws_the_same_answer_whatever_runs_beside_it(model: Model, engine: Engine) -> None:
    asked, params = prompts(model), SamplingParams(max_tokens=12, temperature=1.0, seed=7)
    assert engine.generate_batch(asked, params)[0] == engine.generate_batch(asked[:1], params)[0]


def test_a_cancelled_request_gives_its_slot_back(model: Model, engine: Engine) -> None:
    async def leave_early() -> None:
        for _ in range(6):  # more than there are slots
            pieces = engine.generate(prompts(model)[0], SamplingParams(max_tokens=500))
            await anext(pieces)
            await pieces.aclose()

    asyncio.run(leave_early())
    assert engine.generate_batch(prompts(model)[:1], SamplingParams(max_tokens=3))


def test_closing_ends_running_and_waiting_requests(model: Model) -> None:
    engine = model.engine(num_slots=1, capacity=700)

    async def ask() -> list[BaseException | None]:
        async def one() -> None:
            async for _ in engine.generate(prompts(model)[0], SamplingParams(max_tokens=600)):
                pass

        tasks = [asyncio.create_task(one()) for _ in range(3)]
        await asyncio.sleep(0.05)
        await asyncio.to_thread(engine.close)
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    assert all(isinstance(result, HerdError) or result is None for result in asyncio.run(ask()))
    with pytest.raises(HerdError, match="closed"):
        engine.generate_batch(prompts(model)[:1], SamplingParams())


def test_prompts_that_do_not_fit_are_refused_with_both_lengths(model: Model, engine: Engine) -> None:
    with pytest.raises(HerdError, match=r"900 tokens, the context holds 700"):
        engine.generate_batch([Prompt(token_ids=[9] * 900)], SamplingParams())
    with pytest.raises(HerdError, match="patch tokens"):
        engine.generate_batch([Prompt(token_ids=[model.config.special.patch])], SamplingParams())


def test_scores_of_continuations_equal_the_plain_logits(model: Model) -> None:
    for prompt in prompts(model):
        continuations = [[50, 60, 70], [80], [90, 100]]
        scores = log_likelihoods(model, [(prompt, more) for more in continuations])
        for more, score in zip(continuations, scores, strict=True):
            whole = Prompt(token_ids=prompt.token_ids + more, tiles=prompt.tiles)
            with torch.inference_mode():
                hidden = model.transformer(
                    torch.tensor(whole.token_ids),
                    positions_N=torch.arange(len(whole.token_ids)),
                    starts_S=torch.tensor([0, len(whole.token_ids)]),
                    images=model.encode([whole]),
                )
                logs = torch.log_softmax(model.transformer.unembed(hidden), -1)
            places = range(len(prompt.token_ids) - 1, len(whole.token_ids) - 1)
            assert score == pytest.approx(sum(float(logs[p, t]) for p, t in zip(places, more, strict=True)), abs=1e-4)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
def test_every_token_of_a_document_is_scored_once_in_windows(model: Model, length: int) -> None:
    document = [20 + i % 50 for i in range(length)]
    [short], [long] = (token_losses(model, [document], context=context) for context in (16, 64))
    assert len(short) == len(long) == length
    assert np.allclose(short[:15], long[:15], atol=1e-4)
