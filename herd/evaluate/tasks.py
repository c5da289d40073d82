"""Held-out chats with one right answer: flags, capitals, arithmetic, verifiable tasks."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from herd.data.spelling import normalise
from herd.evaluate.answers import MATCH_RULE
from herd.evaluate.inputs import Chat
from herd.evaluate.questions import Asker, question_of
from herd.evaluate.statistics import share

if TYPE_CHECKING:
    from herd.engine.load import Prompt

KINDS = ("flag", "capital", "arithmetic", "task", "clip")

TASK_RULE = (
    "Held-out chats of the kind, the first by a hash of the id; greedy answer. "
    + MATCH_RULE
    + " In arithmetic and tasks punctuation counts, as it carries the sign: only case and outer spaces are dropped. "
    "Baseline: the most frequent answer of the training chats of the same kind and language, on the same questions."
)


def same_form(answer: str, chat: Chat) -> str:
    """The form in which an answer to this chat is compared."""
    if chat.kind in {"arithmetic", "task"}:
        return " ".join(answer.casefold().split())
    return normalise(answer, chat.language)


def select(chats: Sequence[Chat], *, count: int) -> dict[str, list[Chat]]:
    """The held-out questions of each kind that are put to the model."""
    return {
        kind: [chat for chat in chats if chat.split == "heldout" and chat.kind == kind and chat.answer][:count]
        for kind in KINDS
    }


def frequent_answers(chats: Sequence[Chat]) -> dict[tuple[str, str], str]:
    """The most frequent training answer of each kind and language, ties by the answer's text."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for chat in chats:
        if chat.split == "train" and chat.kind in KINDS and chat.answer:
            counts.setdefault((chat.kind, chat.language), Counter())[same_form(chat.answer, chat)] += 1
    return {place: min(count, key=lambda answer: (-count[answer], answer)) for place, count in counts.items()}


def task_prompts(asker: Asker, selected: dict[str, list[Chat]]) -> "list[Prompt]":
    """The prompts, kind by kind."""
    return [asker.prompt(question_of(chat)) for chats in selected.values() for chat in chats]


def task_table(
    selected: dict[str, list[Chat]], answers: Sequence[str], frequent: dict[tuple[str, str], str]
) -> dict[str, Any]:
    """Exact match by kind beside the baseline."""
    given = iter(answers)
    rows = []
    for kind, chats in selected.items():
        if not chats:
            continue
        right = [same_form(next(given), chat) == same_form(chat.answer, chat) for chat in chats]
        baseline = sum(frequent.get((kind, chat.language)) == same_form(chat.answer, chat) for chat in chats)
        rows.append(
            {
                "kind": kind,
                "languages": len({chat.language for chat in chats}),
                **share(sum(right), len(chats)),
                "baseline": share(baseline, len(chats)),
            }
        )
    return {"rule": TASK_RULE, "rows": rows}
