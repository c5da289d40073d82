"""`herd bench distill`: what a teacher is worth to a student, beside what only looks like teaching.

One small student, the same documents and first weights within a seed, and one arm for each kind of target: the text
alone; a teacher's draws with each part of the loss and without; smoothing by a uniform and by the corpus's own
distribution, which regularise and teach nothing; the teacher's rows at wrong positions, which must hurt; a teacher no
larger than the student. The learning rate of each of hard and soft targets is the best of the same grid, on a seed that
is not used again. Figures: bits per byte of held-out text in the language of most of the data, seconds, and how many
students a teacher must have to pay. Each training is a stage's folder under `out`: what is finished is read, what was
stopped resumes.
"""

import math
import shutil
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from herd.bench.distill_speed import speed_rows
from herd.bench.table import T_95, Row, interval, show
from herd.config import DistillConfig, NewModelConfig, OptimizerConfig, PretrainConfig, TeachConfig
from herd.core.files import read_json, write_json
from herd.core.lineage import read_lineage
from herd.core.streams import stream
from herd.data.loading import tables
from herd.data.loading.teacher_rows import MANIFEST, TeacherFolder, row_dtype
from herd.data.tokens.shard_folders import open_shards
from herd.data.tokens.tokenizer import Tokenizer
from herd.engine.load import load
from herd.engine.score import token_losses
from herd.errors import HerdError
from herd.stages.distill import distill
from herd.stages.new_model import new_model
from herd.stages.pretrain import pretrain
from herd.stages.teach import teach

STUDENT = NewModelConfig(
    preset="tiny", text_only=True, dim=96, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=48, dense_ffn_dim=256,
    num_experts=4, expert_ffn_dim=192, nope_every=3,
)  # fmt: skip
CONTEXT, BATCH_TOKENS = 256, 2048
LESS = 0.6
"""Share of the tokens in which a taught student is to reach what the text alone gives in all."""
RATES = (0.5, 1.0, 2.0, 4.0)
TUNING_SEED = 1000
ROUNDS = 5
DOCUMENTS, CHARACTERS = 60, 3000
"""Held-out documents, of the language that most of the text is in, and what is read of one."""
HARD, TAUGHT = "the text alone", "teacher, alpha 1 throughout"
DYNAMIC = "teacher"
TAUGHT_LESS = f"{TAUGHT}, {LESS:.0%} of the tokens"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to train the student."""

    rows: str | None
    """The folder of rows under `out`; None: the text alone."""
    share: float = 1.0
    """Of the run's tokens."""
    alpha: float = 1.0
    schedule: str = "constant"
    confidence: bool = False


ARMS = {
    HARD: Arm(rows=None),
    TAUGHT: Arm(rows="rows"),
    TAUGHT_LESS: Arm(rows="rows", share=LESS),
    **{f"teacher, alpha {alpha:g} throughout": Arm(rows="rows", alpha=alpha) for alpha in (0.25, 0.5, 0.75)},
    "teacher, alpha 1 by confidence throughout": Arm(rows="rows", confidence=True),
    "teacher, without the confidence": Arm(rows="rows", alpha=0.9, schedule="linear"),
    DYNAMIC: Arm(rows="rows", alpha=0.9, schedule="linear", confidence=True),
    "teacher's rows at wrong positions": Arm(rows="shuffled", alpha=0.9, schedule="linear"),
    "label smoothing": Arm(rows="uniform", alpha=0.1),
    "unigram smoothing": Arm(rows="unigram", alpha=0.1),
    "a teacher of the student's size": Arm(rows="same-size", alpha=0.9, schedule="linear", confidence=True),
    "a teacher of the student's size, alpha 1 throughout": Arm(rows="same-size"),
}


def bench_distill(
    data: Path,
    teacher: Path,
    out: Path | None,
    *,
    cases: Sequence[str],
    seeds: int,
    num_tokens: int,
    as_json: bool,
) -> None:
    """Run what is not finished, and print."""
    rows = speed_rows(teacher, data, rounds=ROUNDS) if "speed" in cases else []
    if "learning" in cases:
        if seeds not in T_95:
            raise HerdError(f"seeds={seeds} must be 2 to {max(T_95)}")
        if out is None:
            raise HerdError("the case learning trains students: give --out, the folder for them")
        rows += learning_rows(Bench(data, teacher, out, num_tokens), seeds, quiet=as_json)
    show(rows, as_json=as_json)


class Bench:
    """The folders of one bench."""

    def __init__(self, data: Path, teacher: Path, out: Path, num_tokens: int) -> None:
        self.data, self.teacher, self.out, self.num_tokens = data, teacher, out, num_tokens
        shards = open_shards(data, Tokenizer.load(data / "tokenizer"))
        tokens = Counter[str]()
        for group in shards.manifest["groups"]:
            tokens[group["language"]] += group["tokens"]
        [(self.language, _)] = tokens.most_common(1)
        held = tables.first_texts(data, "heldout", DOCUMENTS).get(self.language, [])
        if not held:
            raise HerdError(f"{data} holds out no text in {self.language}, of which it has most: give other data")
        self.texts = [text[:CHARACTERS] for text in held]
        self.num_bytes = sum(len(text.encode()) for text in self.texts)

    def plan(self, seed: int, share: float = 1.0) -> PretrainConfig:
        """The pre-training of a seed."""
        return PretrainConfig(
            seed=seed, num_tokens=int(self.num_tokens * share), batch_tokens=BATCH_TOKENS, context=CONTEXT,
            picture_share=0.0,
        )  # fmt: skip

    def make_rows(self) -> None:
        """The teacher's rows for the documents of every seed: a seed alone changes their order, and all are read."""
        whole = TeachConfig(
            num_tokens=10**9, max_epochs=1, batch_tokens=BATCH_TOKENS, context=CONTEXT, picture_share=0.0
        )
        self._once("rows", lambda out: teach(whole, self.teacher, self.data, out))
        same = self._once("same-size-model", lambda out: self._train(Arm(rows=None), TUNING_SEED + 1, 1.0, out))
        self._once("same-size", lambda out: teach(whole, same, self.data, out))
        rows, rng = TeacherFolder(self.out / "rows"), stream(0, "controls")
        size, draws = rows.manifest["vocab_size"], rows.num_draws
        counts = np.bincount(self._ids(), minlength=size)
        for name, make in {
            "uniform": lambda old: with_draws(old, rng.integers(0, size, (len(old), draws))),
            "unigram": lambda old: with_draws(old, rng.choice(size, (len(old), draws), p=counts / counts.sum())),
            "shuffled": lambda old: old[wrong_positions(len(old), rng)],
        }.items():
            self._once(name, lambda out, make=make: copy_rows(self.out / "rows", out, make))  # type: ignore[misc]

    def _ids(self) -> np.ndarray:
        shards = open_shards(self.data, Tokenizer.load(self.data / "tokenizer"))
        return np.concatenate([shards.tokens(document) for document in range(len(shards))]).astype(np.int64)

    def _once(self, name: str, make: Callable[[Path], object]) -> Path:
        folder = self.out / name
        if not folder.exists():
            make(folder)
        return folder

    def _train(self, arm: Arm, seed: int, rate: float, out: Path) -> Path:
        start = self._once(f"new-{seed}", lambda new: new_model(replace(STUDENT, seed=seed), self.data, new))
        plan = replace(self.plan(seed, arm.share), optimizer=OptimizerConfig(lr_scale=rate))
        if arm.rows is None:
            return pretrain(plan, start, self.data, out)
        config = DistillConfig(
            **vars(plan), alpha=arm.alpha, alpha_schedule=arm.schedule, confidence=arm.confidence  # type: ignore[arg-type]
        )  # fmt: skip
        return distill(config, start, self.data, self.out / arm.rows, out)

    def figures(self, name: str, seed: int, rate: float) -> tuple[float, float]:
        """Bits per byte of held-out text, and the seconds of the training."""
        words = "".join(c if c.isalnum() else "-" for c in name)
        folder = self._once(f"{words}-{seed}-{rate:g}", lambda out: self._train(ARMS[name], seed, rate, out))
        kept = folder.with_suffix(f"{folder.suffix}.json")
        if not kept.exists():
            model = load(folder)
            losses = token_losses(model, model.tokenizer.encode_batch(self.texts), context=CONTEXT)
            bits = sum(float(loss.sum()) for loss in losses) / math.log(2) / self.num_bytes
            write_json(kept, {"bits": bits, "seconds": read_lineage(folder)["time_s"]})
            print(f"{folder.name}: {bits:.4f} bits/byte", file=sys.stderr, flush=True)
        there = read_json(kept)
        return float(there["bits"]), float(there["seconds"])

    def best_rate(self, soft: bool) -> float:
        """Of the grid, on a seed of its own."""
        name = DYNAMIC if soft else HARD
        tried = {rate: self.figures(name, TUNING_SEED, rate)[0] for rate in RATES}
        return min(tried, key=lambda rate: tried[rate])


def with_draws(rows: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Records with other draws; of a small vocabulary."""
    if rows["draws"].ndim != 2:
        raise HerdError("herd bench distill takes a vocabulary of at most 65,536 tokens: give smaller data")
    changed = rows.copy()
    changed["draws"] = draws
    return changed


def wrong_positions(count: int, rng: np.random.Generator) -> np.ndarray:
    """A permutation within stretches of a step's length: the rows stay near their documents."""
    order = np.arange(count)
    for begin in range(0, count, BATCH_TOKENS):
        order[begin : begin + BATCH_TOKENS] = begin + rng.permutation(len(order[begin : begin + BATCH_TOKENS]))
    return order


def copy_rows(rows: Path, out: Path, make: Callable[[np.ndarray], np.ndarray]) -> None:
    """A folder of rows whose records are changed."""
    work = out.with_name(out.name + ".copy")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(rows, work)
    manifest = read_json(work / MANIFEST)
    dtype = row_dtype(manifest["vocab_size"], manifest["draws"])
    for path in work.glob("rows-*.bin"):
        make(np.fromfile(path, dtype=dtype)).tofile(path)
    work.rename(out)


def learning_rows(bench: "Bench", seeds: int, *, quiet: bool) -> list[Row]:
    """Each arm beside the text alone, paired by seed; and what it costs."""
    bench.out.mkdir(parents=True, exist_ok=True)
    bench.make_rows()
    rates = {soft: bench.best_rate(soft) for soft in (False, True)}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ARMS}
    for seed in range(seeds):
        for name in ARMS:
            found[name].append(bench.figures(name, seed, rates[ARMS[name].rows is not None]))
    hard = [bits for bits, _ in found[HARD]]
    if not quiet:
        print(f"rates: {rates[False]:g} of hard targets, {rates[True]:g} of soft ones; {len(hard)} seeds")
        for name, figures in found.items():
            differences = [bits - other for (bits, _), other in zip(figures, hard, strict=True)]
            print(f"{name}: {interval(differences)} bits/byte, {statistics.fmean(s for _, s in figures):.0f} s")
        print(pays(found, bench))
    return [
        Row(
            case=f"{name}: held-out text", unit="bits/byte", ours=statistics.fmean(bits for bits, _ in figures),
            peer=statistics.fmean(hard), peer_name=HARD,
        )
        for name, figures in found.items() if name != HARD
    ]  # fmt: skip


def pays(found: dict[str, list[tuple[float, float]]], bench: Bench) -> str:
    """For how many students a teacher pays, in seconds, at the loss that the text alone reaches."""
    folders = {"rows": bench.out / "rows", "teacher": bench.teacher}
    cost = {name: read_lineage(folder)["time_s"] for name, folder in folders.items()}
    hard, less = (statistics.fmean(s for _, s in found[name]) for name in (HARD, TAUGHT_LESS))
    saved = hard - less
    many = [math.inf if saved <= 0 else spent / saved for spent in (cost["rows"], cost["rows"] + cost["teacher"])]
    return (
        f"{LESS:.0%} of the tokens take {less:.0f} s of {hard:.0f} s; the rows took {cost['rows']:.0f} s, the teacher "
        f"{cost['teacher']:.0f} s: the rows pay from {many[0]:.1f} students, with the teacher from {many[1]:.1f}"
    )
