"""`herd bench soak FOLDER`: an engine under random requests, cancellations and new weights for as long as asked.

The cache has too little room for all, so that pages are shared, evicted and preempted throughout. Printed are
the resident memory over time, and at the end whether every page is free and a greedy answer is still what it was at the
beginning, with the weights of the beginning.
"""

import asyncio
import json
import random
import resource
import time
from collections import Counter
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from torch import Tensor

from herd.bench.table import machine
from herd.engine.engine import Engine
from herd.engine.load import Model, load
from herd.engine.model import Prompt
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError
from herd.plan.counts import cache_bytes

NUM_CLIENTS, NUM_SLOTS, CONTEXT = 12, 6, 1500
ROOM = 3
"""Requests of the whole context that the cache has room for."""
EVERY_S = 1.0
"""Between two measures of the memory; weights are replaced every fifth time."""
ALLOWED_GROWTH = 0.02
"""Of the resident memory, from the second quarter's mean to the last one's."""


@dataclass
class Record:
    """What has happened."""

    counts: Counter[str] = field(default_factory=Counter)
    points: list[tuple[float, float, float, float]] = field(default_factory=list)
    """Seconds; MB resident, of pages in use, of pages kept for whoever begins alike."""

    def mean_mb(self, begin: float, end: float) -> float:
        """Resident memory between two shares of the time."""
        size = len(self.points)
        part = self.points[int(begin * size) : max(int(begin * size) + 1, int(end * size))]
        return sum(point[1] for point in part) / len(part)


def soak(folder: Path, *, minutes: float, seed: int, out: Path | None, as_json: bool) -> None:
    """Run and print. Memory that grows, a page that is lost or an answer that differs is an error."""
    model = load(folder)
    number_bytes = model.transformer.embedding.weight.itemsize
    context = min(CONTEXT, model.config.max_positions)
    room = ROOM * cache_bytes(model.config, context, number_bytes=number_bytes)
    prompt, params = Prompt(token_ids=prompts(model, random.Random(seed))[0][:100]), SamplingParams(max_tokens=40)
    own = {name: tensor.clone() for name, tensor in model.transformer.state_dict().items()}
    record = Record()
    with closing(model.engine(max_num_seqs=NUM_SLOTS, max_model_len=context, kv_cache_memory_bytes=room)) as engine:
        [before] = engine.generate_batch([prompt], params)
        asyncio.run(live(engine, model, own, record, seconds=60 * minutes, seed=seed))
        engine.update_weights(-1, own)
        [after] = engine.generate_batch([prompt], params)
        left = engine.stats()["used_bytes"]
        record.counts["preempted"] = engine.stats()["preempted"]
    first, last = record.mean_mb(0.25, 0.5), record.mean_mb(0.75, 1)
    if out is not None:
        out.write_text(picture(record.points), encoding="utf-8")
    if as_json:
        summary = {"first_mb": first, "last_mb": last, "left_bytes": left, "same_answer": before == after}
        print(json.dumps({**record.counts, **summary, "points": record.points, "machine": machine()}))
    else:
        print(", ".join(f"{name} {value:,}" for name, value in record.counts.items()))
        print(f"resident memory: {first:.0f} MB in the second quarter, {last:.0f} MB in the last")
        print(f"pages in use at the end: {left} bytes; the answer is {'the same' if before == after else 'another'}")
    if left or before != after or last > first * (1 + ALLOWED_GROWTH):
        raise HerdError("the engine does not end as it began: see the figures above")


def prompts(model: Model, rng: random.Random) -> list[list[int]]:
    """A few beginnings of many lengths, of tokens that are text."""
    text = [token for token in range(model.tokenizer.vocab_size) if token not in model.tokenizer.special_ids]
    return [[rng.choice(text) for _ in range(CONTEXT // 2)] for _ in range(6)]


async def live(
    engine: Engine, model: Model, own: dict[str, Tensor], record: Record, *, seconds: float, seed: int
) -> None:
    """Clients that ask one thing after another until the time is over, and weights that change meanwhile."""
    end, numbers = time.monotonic() + seconds, count()
    beginnings = prompts(model, random.Random(seed))

    async def client(rng: random.Random) -> None:
        while time.monotonic() < end:
            length = rng.choice([3, 40, 200, engine.max_model_len // 2 - 60])
            tail = rng.choices(rng.choice(beginnings), k=rng.randint(0, 50))
            prompt = Prompt(token_ids=rng.choice(beginnings)[:length] + tail)
            params = SamplingParams(
                max_tokens=rng.choice([1, 10, 60, 300]),
                temperature=rng.choice([0.0, 1.0]),
                prompt_logprobs=rng.random() < 0.1,
            )
            leave = rng.randint(1, 100) if rng.random() < 0.4 else None
            pieces = engine.generate(
                prompt,
                params,
                caller=rng.choice("abc"),
                salt=rng.choice(["", "another"]),
                priority=rng.choice([0, 0, 0, 1]),
            )
            record.counts["requests"] += 1
            async with aclosing(pieces):
                async for piece in pieces:
                    record.counts["tokens"] += len(piece.token_ids)
                    if leave is not None and (leave := leave - 1) == 0:
                        record.counts["cancelled"] += 1
                        break

    async def change() -> None:
        while time.monotonic() < end:
            await asyncio.sleep(EVERY_S)
            stats, number = engine.stats(), next(numbers)
            used, kept = stats["used_bytes"] / 1e6, stats["shared_bytes"] / 1e6
            record.points.append((seconds - end + time.monotonic(), resident_mb(), used, kept))
            if number % 5 == 4:
                scale = 1 + 0.01 * (number % 3)
                fresh = {
                    name: tensor * scale if name.endswith("qkv.weight") else tensor for name, tensor in own.items()
                }
                await asyncio.to_thread(engine.update_weights, number, fresh)
                record.counts["updates"] += 1

    await asyncio.gather(change(), *(client(random.Random(f"{seed} {number}")) for number in range(NUM_CLIENTS)))
    while engine.stats()["running"] or engine.stats()["waiting"]:  # who was left a moment ago
        await asyncio.sleep(0.05)


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def picture(points: list[tuple[float, float, float, float]]) -> str:
    """The three lines over time, as an SVG."""
    width, height, left, bottom = 720, 240, 60, 30
    longest, most = points[-1][0], 1.1 * max(point[1] for point in points)

    def line(index: int) -> str:
        shown = points[:: max(1, len(points) // 600)]
        return " ".join(
            f"{left + (width - left) * point[0] / longest:.1f},{(height - bottom) * (1 - point[index] / most):.1f}"
            for point in shown
        )

    lines = (("resident memory", "#333"), ("pages in use", "#c33"), ("pages kept for the same beginning", "#36c"))
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">']
    parts.append(f'<rect width="{width}" height="{height}" fill="#fff"/>')
    for share in (0, 0.25, 0.5, 0.75, 1):
        y, x = (height - bottom) * (1 - share), left + (width - left) * share
        parts.append(f'<line x1="{left}" x2="{width}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>')
        parts.append(f'<text x="4" y="{max(12, y):.0f}" font-size="11">{share * most:.0f} MB</text>')
        anchor = "end" if share == 1 else "middle"
        parts.append(
            f'<text x="{x:.0f}" y="{height - 10}" font-size="11" text-anchor="{anchor}">'
            f"{share * longest / 60:.1f} min</text>"
        )
    for number, (name, colour) in enumerate(lines):
        parts.append(f'<polyline points="{line(number + 1)}" fill="none" stroke="{colour}"/>')
        parts.append(f'<text x="{left + 10 + 170 * number}" y="14" font-size="12" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>\n"])
