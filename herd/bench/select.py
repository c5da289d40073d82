"""`herd bench select`: does the score of `herd select` know what is hard, and is fine-tuning on the hard half better?

Small models learn to copy, reverse and sort digits, which are harder the more digits there are. Each seed has data,
three checkpoints of a base model, a better teacher and a selection of its own; the data has wrong labels planted. From
the last checkpoint, arms are fine-tuned on parts of the data for equal steps. What is finished under `out` is read.
"""

import math
import statistics
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from herd.bench.select_facts import score_facts
from herd.bench.select_world import (
    EARLIER_TOKENS,
    PARTS,
    STEP_TOKENS,
    TEACHER_TOKENS,
    Question,
    World,
    fine_tune,
    new_model,
    questions,
    write_data,
    write_selection,
)
from herd.bench.table import T_95, Row, interval, show
from herd.config import SelectConfig
from herd.core.files import read_json, write_json
from herd.core.streams import seed_of, stream
from herd.data.loading import tables
from herd.data.loading.selection import NOT_LEARNABLE, choose, read_selection
from herd.data.tasks.digits import solve
from herd.engine.load import load
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError
from herd.stages.select import select

FULL, HARD, HARD_UNAIDED = "full", "hardest 50 %", "hardest 50 % without a teacher"
HARD_IFD, EASY = "hardest 50 % by log-probability", "easiest 50 %"
LONG, RANDOM, RANDOM_LEARNABLE = "longest 50 %", "random 50 %", "random 50 % of the learnable"
HARD_5, RANDOM_5 = "hardest 5 %", "random 5 %"
ARM_TOKENS, ARM_RATE = 100_000, 0.5
ANSWERS = 4
"""Answers drawn to each held-out question."""


def make_world(seed: int, out: Path) -> World:
    """Data and models of one seed, made now or before."""
    folder, asked = out / f"seed-{seed}", questions(seed, PARTS)
    new = new_model(folder / "new", seed)
    data = {name: write_data(folder / name, asked[name], seed, wrong=name == "data") for name in ("data", "base-data")}
    taught = write_data(folder / "teacher-data", asked["teacher-data"], seed)
    checkpoints, model = [], new
    for place, num_tokens in enumerate((EARLIER_TOKENS, STEP_TOKENS, STEP_TOKENS)):
        out_of, rate = folder / f"checkpoint-{place}", 0.5 if place else 1.0
        model = fine_tune(out_of, model, data["base-data"], num_tokens=num_tokens, seed=seed + place, rate=rate)
        checkpoints.append(model)
    teacher = fine_tune(folder / "teacher", new, taught, num_tokens=TEACHER_TOKENS, seed=seed, rate=1.0)
    return World(
        seed=seed, folder=folder, heldout=asked["heldout"], data=data["data"], checkpoints=checkpoints, teacher=teacher
    )  # fmt: skip


def pass_rates(model: Path, asked: Sequence[Question], kept: Path) -> dict[str, float]:
    """Share of right answers by cell, of answers drawn at temperature 1; kept in a file."""
    if not kept.exists():
        opened = load(model)
        params, found = SamplingParams(max_tokens=20, temperature=1.0), dict[str, list[bool]]()
        with closing(opened.engine(max_num_seqs=128)) as engine:
            requests = []
            for one in asked:
                prompt = opened.render([{"role": "user", "content": one.text}])
                requests.append(engine.submit(prompt, params, seed=seed_of(0, one.text), n=ANSWERS))
            for one, request in zip(asked, requests, strict=True):
                right = [output.text == solve(one.text) for output in request.result()]
                found.setdefault(f"{one.operation} {one.length}", []).extend(right)
        write_json(kept, {cell: statistics.fmean(right) for cell, right in found.items()})
    rates: dict[str, float] = read_json(kept)
    return rates


def selections(world: World) -> dict[str, tuple[Path, Path | None]]:
    """Data and selection of each arm."""
    by = tuple(map(str, world.checkpoints))
    config = SelectConfig(by=by, teacher=str(world.teacher), seed=world.seed, max_tokens=20)
    hard = world.folder / "selection"
    if not hard.exists():
        select(config, world.data, hard)
    plain = plain_data(world)
    ifd = world.folder / "selection-ifd"
    if not ifd.exists():
        select(SelectConfig(by=by, seed=world.seed), plain, ifd)
    rows = read_selection(hard)
    draw = stream(world.seed, "random arm").random(len(rows)).tolist()
    never = [row["why"] == NOT_LEARNABLE for row in rows]

    def masked(worth: Sequence[float]) -> list[float]:
        return [-math.inf if out else value for out, value in zip(never, worth, strict=True)]

    difficulty = [row["difficulty"] for row in rows]
    arms = {
        HARD_UNAIDED: (difficulty, 0.5),
        EASY: (masked([-one for one in difficulty]), 0.5),
        LONG: ([float(len(row["answer"])) for row in rows], 0.5),
        RANDOM: (draw, 0.5),
        RANDOM_LEARNABLE: (masked(draw), 0.5),
        HARD_5: (masked(difficulty), 0.05),
        RANDOM_5: (draw, 0.05),
    }
    made: dict[str, tuple[Path, Path | None]] = {
        FULL: (world.data, None), HARD: (world.data, hard), HARD_IFD: (plain, ifd),
    }  # fmt: skip
    for name, (worth, keep) in arms.items():
        folder = world.folder / f"selection {name}".replace(" %", "").replace(" ", "-")
        kept = choose(rows, worth, keep, world.seed)
        marked = [{**row, "kept": place in kept} for place, row in enumerate(rows)]
        made[name] = world.data, write_selection(folder, marked, world.data)
    return made


def plain_data(world: World) -> Path:
    """The same chats without what answers are graded by, so that log-probabilities decide."""
    folder = world.folder / "plain-data"
    if not (folder / "herd.json").exists():
        folder.mkdir(exist_ok=True)
        rows = [row | {"answer": ""} for row in tables.read(world.data, "chats")]
        tables.write(folder / "chats.parquet", rows, tables.CHATS)
        write_json(folder / "herd.json", {"hash": f"plain {read_json(world.data / 'herd.json')['hash']}"})
    return folder


def run_seed(seed: int, out: Path) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Pass rates of each arm over all cells, and over the harder and the easier half; and facts about the scores."""
    world = make_world(seed, out)
    start = pass_rates(world.checkpoints[-1], world.heldout, world.folder / "base.json")
    order = sorted(start, key=lambda cell: start[cell])
    harder, easier = order[: len(order) // 2], order[len(order) // 2 :]
    rates = {"the base": start, "the teacher": pass_rates(world.teacher, world.heldout, world.folder / "teacher.json")}
    for name, (data, selection) in selections(world).items():
        folder = world.folder / f"arm {name}".replace(" %", "").replace(" ", "-")
        fine_tune(
            folder, world.checkpoints[-1], data, num_tokens=ARM_TOKENS, seed=seed, rate=ARM_RATE, selection=selection
        )
        rates[name] = pass_rates(folder, world.heldout, folder.with_suffix(".json"))
    parts = {"all": order, "hard half": harder, "easy half": easier}
    return {
        name: {part: statistics.fmean(of[cell] for cell in cells) for part, cells in parts.items()}
        for name, of in rates.items()
    }, score_facts(world)


def bench_select(out: Path, *, seeds: int, as_json: bool) -> None:
    """Run and print."""
    if seeds not in T_95:
        raise HerdError(f"seeds={seeds} must be 2 to {max(T_95)}")
    found = [run_seed(seed, out) for seed in range(seeds)]
    arms, facts = [one for one, _ in found], [one for _, one in found]
    if not as_json:
        for fact in facts[0]:
            print(f"{fact}: {interval([one[fact] for one in facts])}")
        for name in arms[0]:
            print(
                f"{name}: " + ", ".join(f"{part} {interval([o[name][part] for o in arms])}" for part in arms[0][name])
            )
        for ours, peer, part in COMPARED:
            print(f"{ours} - {peer}, {part}: {interval([one[ours][part] - one[peer][part] for one in arms])}")
    rows = [
        Row(
            case=f"{ours}: right on {part}", unit="share", ours=statistics.fmean(one[ours][part] for one in arms),
            peer=statistics.fmean(one[peer][part] for one in arms), peer_name=peer, more_is_better=True,
        )
        for ours, peer, part in COMPARED
    ]  # fmt: skip
    rows += [
        Row(case=f"{name}: rank correlation with the number of digits", unit="rho", more_is_better=True,
            ours=statistics.fmean(one[f"rho with the digits, {name}"] for one in facts), peer=0.8, peer_name="bar")
        for name in ("pass rate", "log-probability")
    ]  # fmt: skip
    rows += [
        Row(case=f"wrong labels among the {name}", unit="times", peer=1.5, peer_name="bar",
            ours=statistics.fmean(one[f"enrichment, {name}"] for one in facts))
        for name in ("hardest 50%", "hardest 5%")
    ]  # fmt: skip
    show(rows, as_json=as_json)


COMPARED = (
    (HARD, FULL, "hard half"), (HARD, FULL, "all"), (HARD, RANDOM, "all"), (HARD, RANDOM, "hard half"),
    (HARD, RANDOM_LEARNABLE, "all"), (HARD, RANDOM_LEARNABLE, "hard half"),
    (HARD, EASY, "all"), (HARD, EASY, "hard half"), (HARD, LONG, "all"),
    (HARD, HARD_UNAIDED, "all"),
    (HARD_IFD, RANDOM, "all"), (HARD_5, FULL, "all"), (HARD_5, RANDOM_5, "all"), (RANDOM, FULL, "all"),
)  # fmt: skip
