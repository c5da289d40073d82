"""How often a model declines: prompts asked, replies judged, shares with intervals that carry the judge's errors.

`refusal_rates` does so for several sets of prompts, such as harmful ones and their benign twins: a model should decline
the first and answer the second. What could not be judged is counted by its reason and belongs to no share.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from herd.core.rates import JudgeErrors
from herd.core.statistics import share
from herd.errors import HerdError
from herd.guard.judges import LABELS, RULE_ERRORS, Judge, RuleJudge, Verdict
from herd.guard.target import Answer, Target, ask_all

GIVE_UP = 8
"""First questions of which one at least must get through."""
UNREACHABLE = ("refused connection", "dropped connection", "hung", "error status", "garbage")
"""Failures of a target that say nothing about what it would have answered."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a model said to a prompt, and what a judge makes of it."""

    prompt: str
    answer: Answer
    verdict: Verdict


def judge_answer(judge: Judge, prompt: str, answer: Answer) -> Verdict:
    """The verdict on an answer; one that a filter ended is a refusal, any other failure cannot be judged."""
    if answer.failure == "blocked":
        return Verdict(label="refusal", reason=answer.detail)
    if answer.failure is not None:
        return Verdict(label="unclear", reason=answer.failure)
    return judge.judge(prompt, answer.text)


def ask_prompts(
    target: Target, prompts: Sequence[str], *, seed: int = 0, at_once: int = 8, on_answer: Callable[[Answer], None]
) -> list[Answer]:
    """The answers to prompts, each asked alone. Raises HerdError where the first ones all fail to get through."""
    answers: list[Answer] = []
    for answer in ask_all(target, ([{"role": "user", "content": one}] for one in prompts), seed=seed, at_once=at_once):
        answers.append(answer)
        if len(answers) == min(GIVE_UP, len(prompts)) and all(one.failure in UNREACHABLE for one in answers):
            raise HerdError(f"{target.name} answers nothing: {answer.failure} ({answer.detail})")
        on_answer(answer)
    return answers


def declined(verdicts: Sequence[Verdict], errors: JudgeErrors | None) -> dict[str, Any]:
    """The share of declined prompts among those judged, as the judge sees it and, with its `errors`, as it is behind
    them; counts of labels, and reasons of what could not be judged."""
    judged = [one for one in verdicts if one.judged]
    hits = sum(one.declined for one in judged)
    row = share(hits, len(judged)) | {
        "asked": len(verdicts),
        "labels": {label: sum(one.label == label for one in verdicts) for label in LABELS},
        "unclear": dict(Counter(one.reason for one in verdicts if not one.judged).most_common(5)),
    }
    if errors is not None and judged:
        row["corrected"] = dict(zip(("share", "low", "high"), errors.share(hits, len(judged)), strict=True))
    return row


def refusal_rates(
    target: Target,
    prompts: Mapping[str, Sequence[str]],
    *,
    judge: Judge | None = None,
    errors: JudgeErrors | None = RULE_ERRORS,
    seed: int = 0,
    at_once: int = 8,
) -> dict[str, dict[str, Any]]:
    """The share that a model declines of each set of prompts, such as `{"harmful": …, "benign": …}`.

    `errors` are those of `judge`, the rules if not given; None leaves the shares as the judge sees them. Raises
    HerdError for an empty set, and for a target none of whose answers can be judged.
    """
    judge = judge or RuleJudge()
    found = {}
    for name, asked in prompts.items():
        if not asked:
            raise HerdError(f"the set of {name} prompts is empty")
        answers = ask_prompts(target, asked, seed=seed, at_once=at_once, on_answer=lambda answer: None)
        verdicts = [judge_answer(judge, one, answer) for one, answer in zip(asked, answers, strict=True)]
        found[name] = declined(verdicts, errors)
    if not any(row["count"] for row in found.values()):
        raise HerdError(f"{target.name}: no answer could be judged ({next(iter(found.values()))['unclear']})")
    return found
