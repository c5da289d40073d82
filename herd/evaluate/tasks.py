"""Held-out chats with one right answer: flags, capitals, arithmetic, verifiable tasks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from herd.data.chats import Chat, ChatTask
from herd.evaluate.answers import MATCH_RULE
from herd.evaluate.questions import Asker
from herd.evaluate.statistics import share

if TYPE_CHECKING:
    from herd.engine.model import Prompt

KINDS = ("flag", "capital", "arithmetic", "task", "clip")

TASK_RULE = (
    "Held-out chats of the kind, the first by a hash of the id; greedy answer. Arithmetic and tasks are graded by the "
    "verifier of the generator that made them (reasoning-gym's own), and count where it gives full marks. "
    + MATCH_RULE
    + " In arithmetic and tasks without a verifier punctuation counts, as it carries the sign: only case and outer "
    "spaces are dropped. "
    "Baseline: the most frequent answer of the training chats of the same kind and language, on the same questions."
)


def select(chats: Sequence[Chat], *, count: int) -> dict[str, ChatTask]:
    """The held-out questions of each kind that are put to the model."""
    return {
        kind: ChatTask(
            [chat for chat in chats if chat.split == "heldout" and chat.kind == kind and chat.answer][:count]
        )
        for kind in KINDS
    }


def frequent_answers(chats: Sequence[Chat]) -> dict[tuple[str, str], str]:
    """The most frequent training answer of each kind and language, ties by the answer's text."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for chat in chats:
        if chat.split == "train" and chat.kind in KINDS and chat.answer:
            counts.setdefault((chat.kind, chat.language), Counter())[chat.compared(chat.answer)] += 1
    return {place: min(count, key=lambda answer: (-count[answer], answer)) for place, count in counts.items()}


def task_prompts(asker: Asker, selected: Mapping[str, ChatTask]) -> "list[Prompt]":
    """The prompts, kind by kind."""
    return [asker.prompt(task.prompt(i)) for task in selected.values() for i in range(len(task))]


def task_table(
    selected: Mapping[str, ChatTask], answers: Sequence[str], frequent: Mapping[tuple[str, str], str]
) -> dict[str, Any]:
    """The right answers of each kind beside the baseline."""
    given = iter(answers)
    rows = []
    for kind, task in selected.items():
        if not task.chats:
            continue
        right = baseline = 0
        for chat in task.chats:
            right += task.grade(chat.question, next(given)).right
            usual = frequent.get((kind, chat.language))
            baseline += usual is not None and task.grade(chat.question, usual).right
        rows.append(
            {
                "kind": kind,
                "languages": len({chat.language for chat in task.chats}),
                **share(right, len(task)),
                "baseline": share(baseline, len(task)),
            }
        )
    return {"rule": TASK_RULE, "rows": rows}
