"""The engine: an answer does not depend on what runs beside it, and every request ends."""

import asyncio
import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from herd.engine.answer import Piece
from herd.engine.engine import Engine
from herd.engine.load import Model, load
from herd.engine.model import Prompt
from herd.engine.sampler import SamplingParams
from herd.engine.score import log_likelihoods, token_losses
from herd.errors import HerdError
from herd.model.page_store import PageFile
from herd.plan.counts import cache_bytes


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    return load(tiny_folder, dtype=torch.float32)


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    engine = model.engine(max_num_seqs=3, max_model_len=700)
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
    engine = model.engine(max_num_seqs=1, max_model_len=700)

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


def test_what_is_no_list_of_prompts_is_refused_in_one_line(model: Model, engine: Engine) -> None:
    good = prompts(model)[0]
    for wrong, says in (("the cat", r"list of prompts, not one str"), (good, "list of prompts, not one Prompt")):
        with pytest.raises(HerdError, match=says):
            engine.generate_batch(wrong, SamplingParams())
    for wrong in ("the cat", [1, 2], None):
        with pytest.raises(HerdError, match=rf"a {type(wrong).__name__}, .*Model\.render"):
            engine.generate_batch([good, wrong], SamplingParams(max_tokens=600))
    with pytest.raises(HerdError, match=r"Model\.render"):
        next(engine.stream("the cat", SamplingParams()))
    deadline = time.monotonic() + 5
    while (stats := engine.stats())["running"] or stats["waiting"]:  # the good ones beside it are cancelled
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_without_a_seed_no_two_answers_and_no_two_engines_draw_alike(model: Model) -> None:
    params, answers = SamplingParams(max_tokens=24, temperature=1.0), []
    for _ in range(2):
        with closing(model.engine(max_num_seqs=3, max_model_len=700)) as engine:
            answers += engine.generate_batch([prompts(model)[0]] * 3, params)
    assert len(set(answers)) == 6


def pieces_of(engine: Engine, asked: list[Prompt], params: SamplingParams) -> list[list[Piece]]:
    """All pieces of requests that run together."""

    async def one(prompt: Prompt) -> list[Piece]:
        return [piece async for piece in engine.generate(prompt, params)]

    async def all_of_them() -> list[list[Piece]]:
        return list(await asyncio.gather(*map(one, asked)))

    return asyncio.run(all_of_them())


def tight(model: Model, **options: int) -> Engine:
    """So little room that requests take each other's pages."""
    room = 2 * cache_bytes(model.config, 512) + cache_bytes(model.config, 128)  # of fp32, the next line's double
    return model.engine(max_num_seqs=4, max_model_len=320, kv_cache_memory_bytes=room, **options)


def test_answers_are_the_same_to_the_bit_alone_in_pieces_preempted_and_from_known_prefixes(model: Model) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (90, 90, 3), dtype=np.uint8)
    picture = {"type": "image", "image": Image.fromarray(noise)}
    contents = ["the cat sat", "der Hund " * 40, "der Hund " * 41, [picture], [picture, {"type": "text", "text": "?"}]]
    asked = [model.render([{"role": "user", "content": content}]) for content in contents]
    params = SamplingParams(max_tokens=24, temperature=0.7, seed=3, logprobs=0)
    with closing(model.engine(max_num_seqs=1, max_model_len=320)) as engine:
        alone = [pieces_of(engine, [prompt], replace(params, prompt_logprobs=True))[0] for prompt in asked]
    alone = [[replace(piece, prompt_logprobs=()) for piece in pieces] for pieces in alone]
    with closing(tight(model, max_prefill_tokens=37, max_mixed_prefill_tokens=11)) as engine:
        for _ in range(2):  # the second time the beginnings are known
            assert pieces_of(engine, asked, params) == alone
        stats = engine.stats()
        assert stats["preempted"] > 0 and stats["shared_bytes"] > 0
        assert stats["running"] == stats["waiting"] == stats["used_bytes"] == 0


def test_log_probabilities_of_prompt_and_answer_equal_the_training_forward_s(model: Model, engine: Engine) -> None:
    asked = prompts(model)
    for prompt, pieces in zip(
        asked, pieces_of(engine, asked, SamplingParams(max_tokens=9, logprobs=2, prompt_logprobs=True)), strict=True
    ):
        answer = [one.token_id for piece in pieces for one in piece.logprobs]
        ids = prompt.token_ids + answer
        with torch.inference_mode():
            hidden = model.transformer(
                torch.tensor(ids),
                positions_N=torch.arange(len(ids)),
                starts_S=torch.tensor([0, len(ids)]),
                images=model.encode([Prompt(token_ids=ids, tiles=prompt.tiles)]),
            )
            logs = torch.log_softmax(model.transformer.unembed(hidden).float(), -1)
        wanted = logs[torch.arange(len(ids) - 1), ids[1:]]
        got = [*pieces[0].prompt_logprobs, *(one.logprob for piece in pieces for one in piece.logprobs)]
        assert torch.allclose(torch.tensor(got), wanted, rtol=0, atol=1e-5)
        likeliest = logs.topk(2).indices.tolist()
        top = [*pieces[0].prompt_top, *(one.top for piece in pieces for one in piece.logprobs)]
        assert [[token for token, _ in pairs] for pairs in top] == likeliest[: len(ids) - 1]


def test_new_weights_come_between_two_tokens_and_every_token_knows_its_version(tiny_folder: Path) -> None:
    model = load(tiny_folder, dtype=torch.float32)
    prompt, params = prompts(model)[1], SamplingParams(max_tokens=60)
    other = {name: (0.9 if "qkv" in name else 1.0) * tensor for name, tensor in model.transformer.state_dict().items()}
    with closing(model.engine(max_num_seqs=2, max_model_len=700)) as engine:
        before = engine.generate_batch([prompt], replace(params, max_tokens=9))
        pieces = engine.stream(prompt, params)
        seen = [next(pieces)]
        threading.Thread(target=engine.update_weights, args=(7, other)).start()
        seen += pieces
        versions = [piece.version for piece in seen]
        assert sorted(versions) == versions and set(versions) == {0, 7}
        # What the old weights computed is not shared with requests of the new ones.
        after = engine.generate_batch([prompt], replace(params, max_tokens=9))
        assert after == [greedy(model, prompt, 9)] != before
        with pytest.raises(HerdError, match="no parameter 'nose'"):
            engine.update_weights(8, {**other, "nose": torch.zeros(1)})
        with pytest.raises(HerdError, match=r"has the shape \(3,\)"):
            engine.update_weights(8, {**other, "norm.weight": torch.zeros(3)})
        assert engine.version == 7 and engine.generate_batch([prompt], replace(params, max_tokens=9)) == after


def test_another_picture_behind_the_same_tokens_is_not_taken_for_the_first(model: Model, engine: Engine) -> None:
    shades = [Image.new("RGB", (64, 64), (shade, 30, 200 - shade)) for shade in (0, 200)]
    asked = [model.render([{"role": "user", "content": [{"type": "image", "image": shade}]}]) for shade in shades]
    assert asked[0].token_ids == asked[1].token_ids
    assert [engine.generate_batch([prompt], SamplingParams(max_tokens=12))[0] for prompt in asked] == [
        greedy(model, prompt, 12) for prompt in asked
    ]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("context", [1, 255, 257, 512, 4000])
def test_the_engine_reports_the_bytes_that_were_planned(model: Model, context: int, int8: bool) -> None:
    planned = cache_bytes(model.config, context, number_bytes=4, int8=int8)  # a model in fp32
    with closing(
        model.engine(max_num_seqs=1, max_model_len=context, kv_cache_dtype="int8" if int8 else "auto")
    ) as engine:
        assert engine.cache_bytes == planned
        if context == 512:
            engine.generate_batch([Prompt(token_ids=[9] * 511)], SamplingParams(max_tokens=1))
            assert engine.stats()["most_used_bytes"] == planned


def test_eight_bits_of_the_global_pages_keep_what_is_likely(model: Model, engine: Engine) -> None:
    [prompt] = [prompts(model)[1]]
    wide, packed = [], []
    with closing(model.engine(max_num_seqs=3, max_model_len=700, kv_cache_dtype="int8")) as eight:
        for one, to in ((engine, wide), (eight, packed)):
            [piece, *_] = one.stream(prompt, SamplingParams(max_tokens=1, prompt_logprobs=True))
            to += piece.prompt_logprobs
    difference = np.abs(np.array(wide) - np.array(packed))
    assert 0 < difference.max() < 0.02


def test_pages_in_a_file_give_the_same_answers_and_a_full_disk_ends_the_one_request(
    model: Model, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, params = prompts(model), SamplingParams(max_tokens=12)
    with closing(model.engine(max_num_seqs=3, max_model_len=4000, kv_cache_folder=tmp_path)) as filed:
        assert filed.generate_batch(asked, params) == engine.generate_batch(asked, params)
        real = os.posix_fallocate

        def full(file: int, begin: int, length: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(HerdError, match="the cache's file cannot grow: No space left on device"):
            filed.generate_batch([Prompt(token_ids=[9] * 3000)], params)
        assert filed.generate_batch(asked, params) == engine.generate_batch(asked, params)
        monkeypatch.setattr(os, "posix_fallocate", real)
        assert filed.generate_batch([Prompt(token_ids=[9] * 3000)], SamplingParams(max_tokens=1))
    with pytest.raises(HerdError, match=r"kv_cache_folder .*: No such file"):
        model.engine(kv_cache_folder=tmp_path / "absent")


def test_memory_of_the_cache_is_taken_as_it_is_filled():
    def taken() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("the system does not say how much memory a process has")
    before = taken()
    pages = PageFile(None).zeros(1 << 14, (4, 64, 64), torch.bfloat16, torch.device("cpu"))
    assert pages.nbytes == 1 << 29 and taken() - before < pages.nbytes // 16
    pages[:4096] = 1
    assert pages[4095].min() == 1 and pages[4096].max() == 0 and taken() - before >= pages.nbytes // 4
    del pages
    assert taken() - before < 1 << 26  # and given back


def test_a_cache_for_which_there_is_no_memory_is_reported_with_what_to_lower(model: Model):
    with pytest.raises(
        HerdError, match=r"out of memory on cpu \(\d+ bytes were asked for\): lower kv_cache_memory_bytes"
    ):
        model.engine(max_num_seqs=1 << 30)


def test_a_request_that_could_never_fit_is_refused_with_the_sum(model: Model) -> None:
    room = 2 * cache_bytes(model.config, 256)
    with closing(model.engine(max_num_seqs=2, max_model_len=4000, kv_cache_memory_bytes=room)) as engine:
        with pytest.raises(HerdError, match=r"100 tokens and the answer may have 3000: .* bytes, the cache has"):
            engine.generate_batch([Prompt(token_ids=[9] * 100)], SamplingParams(max_tokens=3000))
        assert engine.generate_batch([Prompt(token_ids=[9] * 100)], SamplingParams(max_tokens=3))
    with pytest.raises(HerdError, match="kv_cache_memory_bytes=1000 is less than"):
        model.engine(kv_cache_memory_bytes=1000)


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
