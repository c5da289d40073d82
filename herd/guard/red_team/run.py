"""A run of `herd guard attack`: every goal by every attack, one transcript line a conversation.

OUT has `attack.json` (the settings), `transcripts.jsonl` and `results.json`. A line is appended when its conversation
is over, so that a kill loses those under way alone and the same command does what is missing. Conversations that a
dead target ended are held again by the next command. A target that is dead from the first turn for several
conversations in a row stops the run. What is drawn depends on the seed, the goal, the attack and the attempt alone.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from herd.config.attack import AttackConfig
from herd.core.files import lock_folder, read_bytes, read_json, write_atomic, write_json
from herd.core.progress import progress_bar
from herd.core.streams import seed_of
from herd.errors import HerdError
from herd.guard.red_team.attacker import Attacker, ModelAttacker
from herd.guard.red_team.attacks import ATTACKS, Attack, attack_named
from herd.guard.red_team.conversation import GOES_ON, as_line, converse, verdict_of
from herd.guard.red_team.goals import Goal
from herd.guard.red_team.judge import Judge, ModelJudge, ScriptedJudge
from herd.guard.red_team.results import results_of
from herd.guard.red_team.scripted import ScriptedAttacker
from herd.guard.target import Target

MAX_DEAD = 3
"""Conversations in a row whose first question got a dead target's failure, after which the run stops."""
SETTINGS, TRANSCRIPTS, RESULTS = "attack.json", "transcripts.jsonl", "results.json"
HOW_IT_RUNS = {"at_once", "timeout_s"}
"""Settings that may change between a run and its continuation."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One conversation to hold."""

    goal: Goal
    mode: str
    """Name of the attack, or `combined`."""
    attacks: tuple[Attack, ...]
    attempt: int

    @property
    def key(self) -> tuple[str, str, int]:
        return self.goal.id, self.mode, self.attempt


def plan(goals: Sequence[Goal], config: AttackConfig) -> list[Job]:
    """The conversations of a run: all goals once before any is tried again."""
    attacks = tuple(map(attack_named, config.attacks)) or ATTACKS
    modes: list[tuple[str, tuple[Attack, ...]]] = []
    if config.mode != "combined":
        modes += [(attack.name, (attack,)) for attack in attacks]
    if config.mode != "alone":
        modes.append(("combined", attacks))
    return [
        Job(goal=goal, mode=mode, attacks=chosen, attempt=attempt)
        for attempt in range(config.attempts)
        for goal in goals
        for mode, chosen in modes
    ]


def attack(
    target: Target,
    goals: Sequence[Goal],
    config: AttackConfig,
    out: Path,
    *,
    attacker: Target | None = None,
    judge: Target | None = None,
) -> dict[str, Any]:
    """Attack `target` and return what `results.json` has. `attacker` and `judge`: models; scripts if not given."""
    jobs, judging = plan(goals, config), ModelJudge(judge) if judge else ScriptedJudge()
    names = {"target": target.name, "attacker": attacker.name if attacker else "", "judge": judge.name if judge else ""}

    def hold(job: Job) -> dict[str, Any]:
        return conversation_line(job, target, make_attacker(job, attacker, config.seed), judging, config)

    with lock_folder(out):
        _same_settings(out, {**names, "goals": [asdict(goal) for goal in goals], "config": asdict(config)})
        lines = _read_lines(out / TRANSCRIPTS, {job.key for job in jobs})
        todo, stopped, dead = [job for job in jobs if job.key not in lines], "", 0
        handle = os.open(out / TRANSCRIPTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            with progress_bar("conversations", len(jobs), done=len(lines)) as bar:
                for job, line in _in_order(hold, todo, config.at_once):
                    os.write(handle, (json.dumps(line, ensure_ascii=False) + "\n").encode(errors="replace"))
                    lines[job.key] = line
                    bar.advance(note=line["outcome"])
                    dead = dead + 1 if len(line["turns"]) == 1 and _is_dead(line) else 0
                    if dead == MAX_DEAD:
                        failed = line["turns"][-1]
                        stopped = f"{failed['answer_failure']}: {failed.get('answer_detail', '')}"
                        break
        finally:
            os.close(handle)
        done = [lines[job.key] for job in jobs if job.key in lines]
        results = {**names, **results_of(done, attempts=config.attempts), "planned": len(jobs), "stopped": stopped}
        write_json(out / RESULTS, results)
    return results


def make_attacker(job: Job, model: Target | None, seed: int) -> Attacker:
    if model is not None:
        return ModelAttacker(model, job.goal.text, job.attacks)
    return ScriptedAttacker(job.goal.text, job.attacks, seed=seed_of(seed, *job.key))


def conversation_line(
    job: Job, target: Target, attacker: Attacker, judge: Judge, config: AttackConfig
) -> dict[str, Any]:
    """Hold a conversation: its line of the transcript."""
    seed = seed_of(config.seed, *job.key)
    exchanges = converse(target, attacker, max_turns=config.max_turns, seed=seed)
    verdict = verdict_of(judge, job.goal, exchanges, seed=seed)
    found: dict[str, Any] = {}
    if verdict.turn is not None:
        found = {"found_in_turn": verdict.turn, "found_by": exchanges[verdict.turn - 1].turn.attacks}
    elif verdict.outcome == "violated" and len(job.attacks) == 1:
        found = {"found_by": (job.attacks[0].name,)}
    return {
        "goal": job.goal.id, "category": job.goal.category, "mode": job.mode, "attempt": job.attempt,
        "outcome": verdict.outcome, "reason": verdict.reason, **found, "turns": [as_line(one) for one in exchanges],
    }  # fmt: skip


def _in_order(
    hold: Callable[[Job], dict[str, Any]], jobs: Sequence[Job], at_once: int
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """The jobs and their lines, in the order of the jobs; when the reader leaves, no further one begins."""
    pool, coming = ThreadPoolExecutor(at_once), iter(jobs)
    try:
        under_way: deque[tuple[Job, Future[dict[str, Any]]]] = deque(
            (job, pool.submit(hold, job)) for job in islice(coming, at_once)
        )
        while under_way:
            job, future = under_way.popleft()
            yield job, future.result()
            under_way.extend((next_job, pool.submit(hold, next_job)) for next_job in islice(coming, 1))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _is_dead(line: dict[str, Any]) -> bool:
    return line["turns"][-1].get("answer_failure") not in GOES_ON


def _same_settings(out: Path, settings: dict[str, Any]) -> None:
    """Write the settings, or refuse a folder of a run with others."""
    settings = json.loads(json.dumps(settings))
    path = out / SETTINGS
    if not path.exists():
        if any(out.iterdir()):
            raise HerdError(f"{out} has files that are no run of herd guard attack: give another --out")
        write_json(path, settings)
        return
    there = read_json(path)
    for one in (there["config"], dict(settings["config"])):
        one |= dict.fromkeys(HOW_IT_RUNS)
    settings["config"] |= dict.fromkeys(HOW_IT_RUNS)
    if changed := [name for name in settings if there.get(name) != settings[name]]:
        raise HerdError(f"{out} has a run with another {' and '.join(changed)}: give another --out, or remove it")


def _read_lines(path: Path, keys: set[tuple[str, str, int]]) -> dict[tuple[str, str, int], dict[str, Any]]:
    """The conversations of an earlier run that need not be held again; the others are removed from the file."""
    if not path.exists():
        return {}
    *rows, torn = read_bytes(path).split(b"\n")
    try:
        lines = {(line["goal"], line["mode"], line["attempt"]): line for line in map(json.loads, rows)}
    except (ValueError, TypeError, KeyError):
        raise HerdError(f"{path} has a line that is no conversation: remove the file, or give another --out") from None
    kept = {key: line for key, line in lines.items() if key in keys and not _is_dead(line)}
    if torn or len(kept) < len(rows):
        write_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept.values()))
    return kept
