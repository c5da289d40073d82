"""A run's plan: what is shown is what was asked for, and packing loses, repeats and mixes nothing."""

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.config import PretrainConfig
from herd.core.lineage import peak_memory_bytes
from herd.core.streams import stream
from herd.data.loading import text_plan
from herd.data.loading.mixture import Group, allot_tokens, shortfalls, token_shares
from herd.data.loading.pack import Sample, pack
from herd.data.loading.text_plan import Pieces, TextPlan, cut_documents
from herd.data.loading.windows import Window, cut_run, deal_out
from herd.data.tokens.shards import TokenShards
from herd.errors import HerdError

CONFIG = PretrainConfig(context=16, seed=5)


class FakeShards:
    """An index without tokens."""

    sources, languages = ["web", "books"], ["en", "de", "zh"]

    def __init__(self, lengths: list[int], *, sources: list[int] | None = None, languages: list[int] | None = None):
        self.offsets = np.concatenate([[0], np.cumsum(np.array(lengths, dtype=np.int64))]).astype(np.int64)
        self.num_tokens, self.has_repeats, self.repeats = int(self.offsets[-1]), False, np.ones(len(lengths), np.int64)
        self._columns = {
            "sources": np.array(sources or [0] * len(lengths)), "languages": np.array(languages or [0] * len(lengths))
        }  # fmt: skip
        pairs = sorted(set(zip(*(column.tolist() for column in self._columns.values()), strict=True)))
        self.manifest: dict[str, Any] = {
            "sources": {name: {"weight": 1.0, "max_epochs": 0.0} for name in self.sources},
            "groups": [{"source": self.sources[s], "language": self.languages[lang]} for s, lang in pairs],
        }

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def column(self, name: str) -> np.ndarray:
        return self.repeats if name == "repeats" else self._columns[name]

    def lengths(self, documents: np.ndarray) -> np.ndarray:
        return self.offsets[documents + 1] - self.offsets[documents]


def fake(lengths: list[int], **columns: Any) -> Any:
    return FakeShards(lengths, **columns)


def rows_of(pieces: Pieces) -> list[tuple[int, int, int]]:
    arrays = (pieces.documents_P, pieces.begins_P, pieces.ends_P)
    return list(zip(*(array.tolist() for array in arrays), strict=True))


def cut_one_by_one(lengths: list[int], config: PretrainConfig, wanted: int) -> list[tuple[int, int, int]]:
    """The plan as a loop over documents, which is what it was before it was made of arrays."""
    pieces, total, epoch = [], 0, 0
    while total < wanted:
        rng = stream(config.seed, "texts", epoch)
        for index in rng.permutation(len(lengths)):
            begin = 0
            end = config.context if epoch == 0 else int(rng.integers(config.context // 4, config.context + 1))
            while begin < lengths[index] - 1 and total < wanted:
                pieces.append((int(index), begin, min(end, lengths[index])))
                total += pieces[-1][2] - begin
                begin, end = end, end + config.context
            if total >= wanted:
                break
        epoch += 1
    return pieces


LENGTHS = st.lists(st.integers(2, 80), min_size=1, max_size=30)


@given(lengths=LENGTHS, share=st.floats(0.01, 4), context=st.integers(16, 40), seed=st.integers(0, 99))
def test_the_plan_of_a_small_run_is_that_of_a_loop_over_documents(
    lengths: list[int], share: float, context: int, seed: int
) -> None:
    config = replace(CONFIG, context=context, seed=seed)
    wanted = max(1, int(share * sum(lengths)))
    plan = TextPlan(fake(lengths), config, wanted)
    assert rows_of(plan.window(0, 1)) == cut_one_by_one(lengths, config, wanted)


@given(lengths=LENGTHS, windows=st.integers(1, 7), epochs=st.integers(1, 3), pooled=st.booleans())
def test_windows_lose_nothing_and_repeat_nothing(lengths: list[int], windows: int, epochs: int, pooled: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if pooled:  # as where there are more documents than are shuffled among each other
            patch.setattr(text_plan, "BLOCK", 4)
            patch.setattr(text_plan, "POOL", 8)
        plan = TextPlan(fake(lengths), CONFIG, 1000 * epochs * sum(lengths))
        total = plan.tokens
        edges = [round(epochs * sum(lengths) * number / windows) / total for number in range(windows + 1)]
        shown = np.zeros((len(lengths), max(lengths)), dtype=int)
        for begin, end in pairwise(edges):
            for document, first, last in rows_of(plan.window(begin, end)):
                assert 2 <= last - first <= CONFIG.context
                shown[document, first:last] += 1
        for document, length in enumerate(lengths):
            assert (shown[document, : length - 1] == epochs).all()
            assert shown[document, length - 1] <= epochs  # a single token at the end predicts nothing
            assert not shown[document, length:].any()


@given(st.lists(st.integers(2, 70), min_size=1, max_size=20), st.integers(20, 200), st.integers(0, 9))
def test_packing_leaks_nothing_across_documents_loses_nothing_and_repeats_nothing(
    lengths: list[int], batch_tokens: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    documents = [rng.integers(0, 1000, size=length) + 1000 * index for index, length in enumerate(lengths)]
    pieces = cut_documents(np.arange(len(lengths)), np.array(lengths), np.full(len(lengths), 16), 16)
    pieces = pieces.part(rng.permutation(len(pieces)))
    kept = {(index, at): 0 for index, length in enumerate(lengths) for at in range(length)}
    for step in deal_out(pieces.lengths_P, batch_tokens, None):
        samples = [
            Sample(ids=documents[index][begin:end], learnt=np.ones(end - begin, dtype=bool), kind="text")
            for index, begin, end in rows_of(pieces.part(slice(step.start, step.stop)))
        ]
        batch = pack(samples, patch_id=None)
        starts = batch.starts_S.tolist()
        assert starts[-1] == batch.size
        for (index, begin, end), first, last in zip(
            rows_of(pieces.part(slice(step.start, step.stop))), starts, starts[1:], strict=False
        ):
            assert batch.tokens_N[first:last].tolist() == documents[index][begin:end].tolist()
            assert batch.targets_N[first : last - 1].tolist() == documents[index][begin + 1 : end].tolist()
            assert batch.weights_N[last - 1] == 0 and (batch.weights_N[first : last - 1] == 1).all()
            assert batch.positions_N[first:last].tolist() == list(range(end - begin))
            for at in range(begin, end):
                kept[index, at] += 1
    for (index, at), count in kept.items():
        assert count == 1 or (count == 0 and at == lengths[index] - 1 and at % 16 == 0)


@given(
    lengths=st.lists(st.integers(2, 16), min_size=40, max_size=80),
    batch_tokens=st.integers(16, 60),
    tokens=st.integers(100, 5000),
    window=st.integers(64, 1000),
    shares=st.lists(
        st.sampled_from([(0.0, 0.0), (0.3, 0.0), (1.0, 0.0), (0.2, 0.7), (0.0, 1.0)]), min_size=1, max_size=4
    ),
)
def test_windows_make_up_the_run_and_no_step_is_empty(
    lengths: list[int], batch_tokens: int, tokens: int, window: int, shares: list[tuple[float, float]]
) -> None:
    windows = cut_run(tokens, batch_tokens, shares, window)
    assert windows[0].first_step == 0 and spans(windows[0], 0) == (0, 0, 0)
    for one, after in pairwise(windows):
        assert one.num_steps and one.first_step + one.num_steps == after.first_step
        assert spans(one, 1) == spans(after, 0)
        size = sum(spans(one, 1)) - sum(spans(one, 0))
        assert abs(size - one.num_steps * batch_tokens) <= 2
        assert size <= window + batch_tokens
    assert windows[-1].num_steps is None
    assert abs(sum(spans(windows[-1], 1)) - tokens) <= len(windows) * 3
    steps = deal_out(np.array(lengths), batch_tokens, 20)
    assert [place for step in steps for place in step] == list(range(len(lengths)))
    assert len(steps) == 20 and all(len(step) for step in steps)


def spans(window: Window, end: int) -> tuple[int, ...]:
    """Tokens of text, pictures and clips before a window's beginning (0) or end (1)."""
    return tuple(span[end] for span in (window.text, window.pictures, window.clips))


@given(
    batch_tokens=st.integers(64, 256),
    steps=st.integers(4, 200),
    window=st.integers(512, 4096),
    shares=st.lists(st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)), min_size=1, max_size=4),
)
def test_each_part_of_a_run_has_its_shares(
    batch_tokens: int, steps: int, window: int, shares: list[tuple[float, float]]
) -> None:
    windows = cut_run(steps * batch_tokens, batch_tokens, shares, window)
    for part, (pictures, clips) in enumerate(shares):
        begin, end = (round(number * steps / len(shares)) for number in (part, part + 1))
        own = [one for one in windows if begin <= one.first_step < end]
        found = [after - before for before, after in zip(spans(own[0], 0), spans(own[-1], 1), strict=True)]
        total = (end - begin) * batch_tokens
        wanted = [total * share for share in (1 - pictures - clips, pictures, clips)]
        assert found == pytest.approx(wanted, abs=len(own) + 1)


GROUPS = [
    Group(source="web", language="en", tokens=8000),
    Group(source="web", language="de", tokens=1000),
    Group(source="books", language="en", tokens=1000, weight=2.0),
]


def test_a_weight_multiplies_a_source_s_tokens_and_a_temperature_raises_small_languages() -> None:
    assert token_shares(GROUPS, 1.0) == pytest.approx(np.array([8, 1, 2]) / 11)
    shares = token_shares(GROUPS, 2.0)
    english, german = 10_000**0.5, 1000**0.5
    assert shares[1] == pytest.approx(german / (english + german))
    assert shares[0] / shares[2] == pytest.approx(4)


def test_what_a_capped_source_cannot_give_the_others_do_and_it_is_said() -> None:
    capped = [replace(GROUPS[0], max_epochs=0.5), *GROUPS[1:]]
    shares = token_shares(capped, 1.0)
    given_G = allot_tokens(capped, shares, 11_000)
    assert given_G == pytest.approx([4000, 7000 / 3, 14_000 / 3])
    assert shortfalls(capped, shares, 11_000) == {"tokens of web's share, after max_epochs=0.5": 4000}
    all_capped = [replace(group, max_epochs=1) for group in GROUPS]
    assert allot_tokens(all_capped, token_shares(all_capped, 1.0), 50_000).sum() == 10_000


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 9), st.sampled_from([0, 1, 4])), min_size=1), st.data())
def test_tokens_are_allotted_to_the_full_and_no_cap_is_passed(
    drawn: list[tuple[int, float, int]], data: st.DataObject
) -> None:
    groups = [
        Group(source=str(i), language="en", tokens=tokens, weight=weight, max_epochs=cap)
        for i, (tokens, weight, cap) in enumerate(drawn)
    ]
    wanted = data.draw(st.integers(1, 10**7))
    shares = token_shares(groups, 1.5)
    given_G = allot_tokens(groups, shares, wanted)
    most = np.array([group.most_tokens for group in groups])
    assert (given_G <= most * (1 + 1e-9)).all() and given_G.sum() <= wanted * (1 + 1e-9)
    if given_G.sum() < wanted * (1 - 1e-9):  # every one that has a share is at its cap
        assert (given_G[shares > 0] >= most[shares > 0] * (1 - 1e-9)).all()


def test_sources_are_shown_by_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sources, languages = rng.integers(2, size=3000).tolist(), rng.integers(3, size=3000).tolist()
    shards = fake(rng.integers(2, 60, size=3000).tolist(), sources=sources, languages=languages)
    shards.manifest["sources"]["books"] = {"weight": 3.0, "max_epochs": 0.0}
    monkeypatch.setattr(text_plan, "BLOCK", 64)
    monkeypatch.setattr(text_plan, "POOL", 512)
    plan = TextPlan(shards, CONFIG, 60_000)
    for begin, end in ((0, 0.25), (0.25, 0.5), (0.75, 1)):  # of each part of the run alike
        pieces = plan.window(begin, end)
        books = np.array(sources)[pieces.documents_P] == 1
        assert pieces.lengths_P[books].sum() / pieces.lengths_P.sum() == pytest.approx(0.75, abs=0.02)


def test_a_repeated_document_is_in_an_epoch_so_often() -> None:
    shards = fake([10, 10, 10])
    shards.has_repeats, shards.repeats = True, np.array([1, 3, 1])
    plan = TextPlan(shards, CONFIG, 50)
    assert np.bincount(plan.window(0, 1).documents_P).tolist() == [1, 3, 1]


def test_a_cap_on_epochs_ends_the_run_sooner() -> None:
    plan = TextPlan(fake([20] * 10), replace(CONFIG, max_epochs=2), 1000)
    assert plan.tokens == 400
    assert plan.left_out == {"tokens asked for, after max_epochs=2": 600}
    assert np.bincount(plan.window(0, 1).documents_P, minlength=10).min() >= 2
    assert plan.window(0, 1).lengths_P.sum() == 400


def test_too_few_pieces_for_the_steps_are_an_error() -> None:
    with pytest.raises(HerdError, match="2 pieces do not fill 3 steps"):
        deal_out(np.array([500, 500]), 100, 3)


def index_of(folder: Path, documents: int) -> TokenShards:
    """A synthetic index, without tokens; the one that is there if no number of documents is given."""
    if documents:
        write_index(folder, documents)
    shards = object.__new__(TokenShards)
    shards.path, shards.sources, shards.languages = folder, [f"s{i}" for i in range(20)], [f"l{i}" for i in range(13)]
    offsets = np.load(folder / "offsets.npy", mmap_mode="r")
    shards.manifest = {
        "documents": len(offsets) - 1,
        "tokens": int(offsets[-1]),
        "most_repeats": 1,
        "groups": [{"source": s, "language": lang} for s in shards.sources for lang in shards.languages],
        "sources": {name: {"weight": 1.0, "max_epochs": 0.0} for name in shards.sources},
    }
    return shards


def write_index(folder: Path, documents: int) -> None:
    rng = np.random.default_rng(0)
    offsets = np.lib.format.open_memmap(folder / "offsets.npy", "w+", dtype=np.int64, shape=(documents + 1,))
    offsets[0] = 0
    for begin in range(0, documents, 2**22):
        end = min(begin + 2**22, documents)
        lengths = rng.integers(3, 1500, size=end - begin)
        offsets[begin + 1 : end + 1] = offsets[begin] + np.cumsum(lengths)
    for name, kinds in (("sources", 20), ("languages", 13)):
        column = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype=np.uint16, shape=(documents,))
        for begin in range(0, documents, 2**22):
            end = min(begin + 2**22, documents)
            column[begin:end] = rng.integers(kinds, size=end - begin)


def plan_anywhere(folder: Path, temperature: float, wanted: int) -> tuple[float, float, int]:
    """Seconds to open and plan, the most for a window anywhere in the run, and the peak of memory."""
    shards, config = index_of(folder, 0), PretrainConfig(context=4096, language_temperature=temperature)
    begin = time.perf_counter()
    plan = TextPlan(shards, config, wanted)
    planned, longest = time.perf_counter() - begin, 0.0
    for at in (0.0, 0.31, 0.999):
        begin = time.perf_counter()
        pieces = plan.window(at, at + 2**26 / wanted)
        longest = max(longest, time.perf_counter() - begin)
        assert pieces.lengths_P.sum() == pytest.approx(2**26, rel=0.05)
    return planned, longest, peak_memory_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_planning_over_fifty_million_documents_takes_seconds(tmp_path: Path, temperature: float) -> None:
    tokens = index_of(tmp_path, 50_000_000).num_tokens
    assert tokens > 3.5e10  # 100 GB and more
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        planned, longest, peak = process.submit(plan_anywhere, tmp_path, temperature, 2 * tokens).result()
    print(f"planned in {planned:.1f} s, a window in {longest:.2f} s, {peak / 2**20:.0f} MiB at most")
    assert planned < 15 and longest < 5 and peak < 1.5 * 2**30
