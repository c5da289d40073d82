"""`herd select`: which chats of a data folder are worth fine-tuning on. docs/sft.md describes the scores.

Chats with a right answer are scored by how often the checkpoints give it, the others by the log-probability of their
answer, or by a judge. What is scored is kept in the work folder, a few chats a file, so that a killed run goes on.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from herd.config import SelectConfig
from herd.core.files import read_json, write_json
from herd.core.lineage import Stage
from herd.core.progress import progress_bar
from herd.data.loading import selection, tables
from herd.data.loading.chat_media import ChatMedia
from herd.data.tasks.chats import ChatTask
from herd.engine.load import load
from herd.errors import HerdError
from herd.stages.select_scores import (
    Example,
    Scored,
    Scorer,
    as_text,
    read_examples,
    score_grades,
    score_losses,
    score_passes,
)

CHUNK = 64
"""Chats of one file of scores."""
SCORES = "scores"
MAX_NUM_SEQS = 64


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one model scores."""

    role: str
    """As in `SelectConfig.inputs`."""
    score: str
    examples: list[Example]


def select(config: SelectConfig, data: Path, out: Path) -> Path:
    """Score the training chats of the folder `data` and keep the hardest; returns the finished folder `out`."""
    if not config.by and (config.teacher or not config.judge):
        raise HerdError("by is empty: give two or three earlier checkpoints, --by runs/mine/sft, or a --judge")
    stage = Stage("select", out, config=config, parents={"data": data, **config.inputs()})
    table, scores = stage.work / selection.FILE, stage.work / SCORES
    if not table.exists():
        examples = read_examples(data)
        found = score_all(config, data, examples, scores)
        made = [row_of(example, found, config) for example in examples]
        tables.write(table, selection.select_hardest(made, config.keep, config.seed), selection.SELECTION)
    shutil.rmtree(scores, ignore_errors=True)
    facts = selection.summary(selection.read_selection(stage.work))
    if not facts["kept"]:
        raise HerdError(f"keep={config.keep} keeps no chat ({report(facts)}): raise keep, or give other models")
    print(report(facts))
    return stage.finish(selection=facts)


def plan_jobs(config: SelectConfig, examples: Sequence[Example]) -> list[Job]:
    """Who scores what. Raises HerdError where a model has nothing to score."""
    plan = [job for job in jobs(config, examples) if job.examples]
    for role, folder in config.inputs().items():
        if role not in {job.role for job in plan}:
            others = "has a right answer" if role != "judge" else "lacks a right answer"
            raise HerdError(f"{role} ({folder}) has nothing to score, as no chat {others}: leave it out")
    return plan


def jobs(config: SelectConfig, examples: Sequence[Example]) -> Iterator[Job]:
    """As `plan_jobs`, also those of no chats."""
    graded = [one for one in examples if one.chat.answer and config.by]
    others = [one for one in examples if not (one.chat.answer and config.by)]
    for role in config.inputs():
        if role == "judge":
            yield Job(role=role, score=selection.JUDGE, examples=others)
            continue
        yield Job(role=role, score=selection.PASS_RATE, examples=graded)
        if role != "teacher" and not config.judge:
            yield Job(role=role, score=selection.LOG_PROBABILITY, examples=others)


def score_all(
    config: SelectConfig, data: Path, examples: Sequence[Example], folder: Path
) -> dict[int, dict[str, Scored]]:
    """What each model made of each chat, by the chat's number and the model's role."""
    media, task = ChatMedia.read(data), ChatTask([one.chat for one in examples])
    found: dict[int, dict[str, Scored]] = {one.number: {} for one in examples}
    plan = plan_jobs(config, examples)
    for role, model_folder in config.inputs().items():
        mine = [job for job in plan if job.role == role]
        chunks = [(job, begin) for job in mine for begin in range(0, len(job.examples), CHUNK)]
        files = [folder / f"{role} {job.score} {begin}.json".replace(" ", "-") for job, begin in chunks]
        if not all(file.exists() for file in files):
            folder.mkdir(parents=True, exist_ok=True)
            fill(config, role, model_folder, media, task, chunks, files)
        for (job, begin), file in zip(chunks, files, strict=True):
            for example, scored in zip(job.examples[begin : begin + CHUNK], read_json(file), strict=True):
                found[example.number][role] = scored
    return found


def fill(
    config: SelectConfig,
    role: str,
    model_folder: Path,
    media: ChatMedia,
    task: ChatTask,
    chunks: Sequence[tuple[Job, int]],
    files: Sequence[Path],
) -> None:
    """Open a model and write the files of scores that are missing."""
    scorer = Scorer(model=load(model_folder), media=media, config=config)
    done = [file.exists() for file in files]
    counts = [len(job.examples[begin : begin + CHUNK]) for job, begin in chunks]
    before = sum(count for count, there in zip(counts, done, strict=True) if there)
    with (
        closing(scorer.model.engine(max_num_seqs=MAX_NUM_SEQS)) as engine,
        progress_bar(f"select: {role}", sum(counts), done=before) as bar,
    ):
        score: dict[str, Callable[[Sequence[Example]], list[Scored]]] = {
            selection.PASS_RATE: partial(score_passes, scorer, engine, task),
            selection.LOG_PROBABILITY: partial(score_losses, scorer),
            selection.JUDGE: partial(score_grades, scorer),
        }
        for (job, begin), file, there, count in zip(chunks, files, done, counts, strict=True):
            if not there:
                write_json(file, score[job.score](job.examples[begin : begin + CHUNK]))
                bar.advance(count)


def row_of(example: Example, found: dict[int, dict[str, Scored]], config: SelectConfig) -> dict[str, Any]:
    """The row of a chat, before it is known whether it is kept."""
    chat, scored = example.chat, found[example.number]
    row: dict[str, Any] = {
        "number": example.number, "id": chat.id, "kind": chat.kind, "language": chat.language,
        "prompt": as_text(chat.question), "answer": as_text(chat.messages[len(chat.question) :]) or chat.answer,
        "score": "", "passes": None, "n": None, "teacher_passes": None, "why": "",
    }  # fmt: skip
    if skips := [f"{role}: {one['skip']}" for role, one in scored.items() if "skip" in one]:
        return row | {"why": selection.NOT_SCORED + skips[0]}
    by = [scored[role] for role in scored if role.startswith("by ")]
    if "judge" in scored:
        return row | {"score": selection.JUDGE, **asdict(selection.of_grades(scored["judge"]["grades"]))}
    if "given" in by[0]:
        difficulty = selection.of_losses([one["given"] for one in by], [one["alone"] for one in by])
        why = selection.MISALIGNED if difficulty.difficulty > 1 else ""
        return row | {"score": selection.LOG_PROBABILITY, "why": why, **asdict(difficulty)}
    passes, n = sum(one["passes"] for one in by), config.num_answers * len(by)
    row |= {"score": selection.PASS_RATE, "passes": passes, "n": n, **asdict(selection.of_passes(passes, n))}
    if config.teacher:
        row["teacher_passes"] = scored["teacher"]["passes"]
        row["why"] = "" if row["teacher_passes"] else selection.NOT_LEARNABLE
    return row


def report(facts: dict[str, Any]) -> str:
    """The counts in one line."""
    parts = [f"{facts['kept']:,} of {facts['chats']:,} chats are kept"]
    if facts["not_learnable"]:
        parts.append(f"{facts['not_learnable']:,} are {selection.NOT_LEARNABLE}")
    if facts["misaligned"]:
        parts.append(f"{facts['misaligned']:,} are {selection.MISALIGNED}")
    parts += [f"{count:,} are not scored ({why})" for why, count in facts["not_scored"].items()]
    return "; ".join(parts)
