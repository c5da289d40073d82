"""`herd bench needle`: a text of up to ten million tokens read with exact attention, and asked about.

Measured in one run: reading, a token of the answer beside the time to read as many bytes of memory, peak memory beside
the plan's figure, and the share of needles that are missed at each length: numbers asked for in the words of the fact,
and values of each kind asked for in other words, in wordings of the training and in held-out ones; beside the same
questions with the needle removed and with the temperature off. Last, decoding that leaves pages unread, which needs a
copy of the cache.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from herd.bench.table import Row, show
from herd.core.lineage import peak_memory_bytes
from herd.core.streams import stream
from herd.data.packages import planted
from herd.data.packages.haystack import haystack
from herd.data.packages.long_batches import evaluation_keys, evaluation_values
from herd.data.packages.planted import Keys, Planter, Values
from herd.data.packages.statements import EVALUATION, KINDS, TRAINING
from herd.engine.load import load
from herd.engine.reader import Reader
from herd.evaluate.long_questions import TASKS, Maker, ask_all, disable_temperature, share_right, swap_model
from herd.evaluate.needle import DEPTHS, Haystack, is_right
from herd.evaluate.statements import ask_statements, asked_and_interval, share_missed
from herd.plan.counts import cache_bytes, weight_bytes

MULTI_KEY = "multi-key, 16 decoys"
MOST_MULTI_KEY = 2**20
"""Longest text in which needles are looked for among decoys: each of them has a chunk read anew."""
DECODED = 12
"""Tokens of the answer whose time is taken."""
CERTIFIED = 10
"""Needles that are found with pages left unread."""
EPSILON = 1e-3
"""Share of the mass that certified decoding may leave unread."""


def memory_seconds(reader: Reader) -> float:
    """Time to read the whole cache once: the bound of a step that has to."""
    pools = [pool.view(torch.int64) for pool in (*reader.cache.keys, *reader.cache.values)]
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        for pool in pools:
            pool.sum()
        times.append(time.perf_counter() - begin)
    return min(times)


def needle(folder: Path, data: Path, *, context: int, seeds: int, budget_gb: float, as_json: bool) -> None:
    """Print the rows."""
    model = load(folder)
    chunk = model.config.chunk_size
    length = context // chunk * chunk
    reader = Reader(model, context=length + chunk, budget_bytes=int(budget_gb * 1e9))
    log("text")
    ids = haystack(data, model.tokenizer, length)
    keys, values = evaluation_keys(data), evaluation_values(data)
    begin, done = time.perf_counter(), [0]

    def on_progress(count: int) -> bool:
        done[0] += count
        if done[0] % (100 * chunk * 4) == 0:
            log(f"read {done[0]:,} of {length:,}, {done[0] / (time.perf_counter() - begin):,.0f} tokens/s")
        return True

    reader.read(torch.from_numpy(ids), on_progress=on_progress)
    reading = time.perf_counter() - begin
    rows = [Row(case=f"read {length:,} tokens", unit="s", ours=reading, peer=1800, peer_name="target: 30 minutes")]
    times = []
    for _ in range(DECODED):
        start = time.perf_counter()
        reader.answer(ids[:1].tolist(), at=length, max_tokens=1)
        times.append(time.perf_counter() - start)
    log(f"read in {reading:.1f} s; a token in {statistics.median(times):.3f} s")
    rows.append(
        Row(
            case=f"a token after {length:,}", unit="s", ours=statistics.median(times), peer=2 * memory_seconds(reader),
            peer_name="target: twice the time to read its cache",
        )
    )  # fmt: skip
    hay = Haystack(reader, Planter(model.tokenizer), ids)
    exact_s = statistics.median(times)
    lengths = sorted({length, *(size for size in (16_384, 131_072, 1_048_576) if size < length)})
    for size in lengths:
        rows += recall(hay, keys, size, seeds)
        rows += recall_in_other_words(hay, keys, values, size, seeds)
    planned = cache_bytes(model.config, length + chunk) + weight_bytes(model.config, "bf16")
    rows.append(
        Row(
            case="peak memory",
            unit="GB",
            ours=peak_memory_bytes() / 1e9,
            peer=planned / 1e9,
            peer_name="herd plan",
        )
    )
    rows += sparse(hay, keys, length, exact_s)
    show(rows, as_json=as_json)


def recall(hay: Haystack, keys: Keys, size: int, seeds: int) -> list[Row]:
    """Single needles and needles among decoys after `size` tokens; and the single ones removed."""
    rows = []
    kinds: list[tuple[str, Maker, float]] = [("single", planted.needle, 0.05)]
    if size <= MOST_MULTI_KEY:
        kinds.append((MULTI_KEY, TASKS[MULTI_KEY], 0.15))
    for name, maker, bar in kinds:
        answers = ask_all(hay, name, maker, keys, size, seeds)
        cut = sum(one.cut for of_depth in answers.values() for one in of_depth)
        case = f"{name}: missed at {size:,} ({len(DEPTHS) * seeds} asked, {cut} cut by a chunk's edge)"
        share = 1 - share_right(answers)
        log(f"{name}: {share:.3f} missed at {size:,}")
        rows.append(Row(case=case, unit="share", ours=share, peer=bar, peer_name=f"target: {bar}"))
    with swap_model(hay, disable_temperature(hay.reader.model)):
        plain = 1 - share_right(ask_all(hay, "single", planted.needle, keys, size, 1))
    without = 1 - share_right(ask_all(hay, "single", planted.needle, keys, size, 1, planted=False))
    off, out = f"single, temperature off: missed at {size:,}", f"single, removed: missed at {size:,}"
    return [
        *rows,
        Row(case=off, unit="share", ours=plain, peer=rows[0].ours, peer_name="temperature on"),
        Row(case=out, unit="share", ours=without, peer=1.0, peer_name="chance"),
    ]


def recall_in_other_words(hay: Haystack, keys: Keys, values: Values, size: int, seeds: int) -> list[Row]:
    """Values of each kind asked for in other words than the fact has, after `size` tokens; by kind and by wording."""
    asks, rows = len(DEPTHS) * seeds, []
    held = ask_statements(hay, keys, values, EVALUATION, size, asks)
    known = ask_statements(hay, keys, values, TRAINING, size, asks)
    for name, answers in (("held-out wordings", held), ("wordings of the training", known)):
        groups = {"all kinds": answers, **{kind: [one for one in answers if one.kind == kind] for kind in KINDS}}
        for kind, group in groups.items():
            log(f"{kind}, {name}: {share_missed(group):.3f} missed at {size:,}")
            case = f"{kind}, {name}: missed at {size:,} ({asked_and_interval(group)})"
            rows.append(Row(case=case, unit="share", ours=share_missed(group), peer=0.1, peer_name="target: 0.1"))
    for number in sorted({one.wording for one in held}):
        group = [one for one in held if one.wording == number]
        wording, figures = EVALUATION.pairs[number][0], asked_and_interval(group)
        case = f"held-out wording {number + 1}, {wording!r}: missed at {size:,} ({figures})"
        rows.append(Row(case=case, unit="share", ours=share_missed(group), peer=0.1, peer_name="target: 0.1"))
    out = share_missed(ask_statements(hay, keys, values, EVALUATION, size, len(DEPTHS), planted=False))
    with swap_model(hay, disable_temperature(hay.reader.model)):
        off = share_missed(ask_statements(hay, keys, values, EVALUATION, size, len(DEPTHS)))
    return [
        *rows,
        Row(
            case=f"held-out wordings, temperature off: missed at {size:,}", unit="share", ours=off,
            peer=share_missed(held), peer_name="temperature on",
        ),
        Row(
            case=f"held-out wordings, removed: missed at {size:,}", unit="share", ours=out, peer=1.0,
            peer_name="chance",
        ),
    ]  # fmt: skip


def sparse(hay: Haystack, keys: Keys, length: int, exact_s: float) -> list[Row]:
    """Decoding that leaves pages unread, with its certificates, of answers that are in the text."""
    reader, planter = hay.reader, hay.planter
    quizzes = [planted.needle(stream(seed, "sparse"), keys) for seed in range(CERTIFIED)]
    facts = [planter.encode(f" {quiz.facts[0]}") for quiz in quizzes]
    depths = [(seed + stream(seed, "depth").random()) / CERTIFIED for seed in range(CERTIFIED)]
    ends = np.searchsorted(hay.ends, np.array(depths) * (length - 100))
    chunks = hay.plant_facts(facts, hay.ends[ends].tolist())
    with reader.preserve_pages(chunks):
        for number, tokens in chunks.items():
            reader.read(torch.from_numpy(tokens), begin=number * reader.chunk)
        begin = time.perf_counter()
        reader.arrange()
        log(f"keys arranged in {time.perf_counter() - begin:.1f} s; peak {peak_memory_bytes() / 1e9:.2f} GB")
        times, right = [], 0
        for quiz in quizzes:
            question, wanted = planter.encode(quiz.question), planter.encode(quiz.answer)
            begin = time.perf_counter()
            given = reader.answer(question, at=length, max_tokens=len(wanted), epsilon=EPSILON)
            times.append((time.perf_counter() - begin) / len(wanted))
            right += is_right(quiz, planter.tokenizer.decode(given))
    log(f"certified: {right} of {CERTIFIED} answers right")
    share = statistics.fmean(one.share for one in reader.certificates)
    error = statistics.median(one.error for one in reader.certificates)
    case = (
        f"a token after {length:,}, certified to {EPSILON}: {100 * share:.1f} % of keys read, error at most "
        f"{error:.2g} in the median, {right} of {CERTIFIED} answers right"
    )
    return [Row(case=case, unit="s", ours=statistics.median(times), peer=exact_s, peer_name="exact")]


def log(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
