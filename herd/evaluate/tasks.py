"""Held-out chats with one right answer, by kind: the greedy answers beside the most frequent training answer."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from herd.core.statistics import share
from herd.data.tasks.chats import SIGNED_KINDS, Chat, ChatTask
from herd.evaluate.answers import MATCH_RULE
from herd.evaluate.inputs import TRAIN
from herd.evaluate.questions import NAMING_KIND, Asker

if TYPE_CHECKING:
    from herd.engine.model import Prompt

TASK_RULE = (
    "Held-out chats of the kind, the first by a hash of the id; greedy answer. Chats with a verifier are graded by it "
    "(that of the generator in reasoning-gym that made them), and count where it gives full marks. "
    + MATCH_RULE
    + f" In {' and '.join(SIGNED_KINDS)} chats without a verifier punctuation counts, as it carries the sign: only "
    "case and outer spaces are dropped. So it does where the right answer is a number, but for a full stop behind it. "
    "Baseline: the most frequent answer of the training chats of the same kind and language, on the same questions."
)


def select(chats: Sequence[Chat], kinds: Sequence[str], *, count: int) -> dict[str, list[Chat]]:
    """Those of the held-out `chats` that are asked, by kind: the first `count` of each with a right answer. All kinds
    if none is given, but for the names of pictures, which are asked by themselves."""
    answered: dict[str, list[Chat]] = {}
    for chat in chats:
        if chat.answer:
            answered.setdefault(chat.kind, []).append(chat)
    chosen = kinds or sorted(answered.keys() - {NAMING_KIND})
    return {kind: answered[kind][:count] for kind in chosen if kind in answered}


def frequent_answers(chats: Sequence[Chat]) -> dict[tuple[str, str], str]:
    """The most frequent training answer of each kind and language, ties by the answer's text."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for chat in chats:
        if chat.split == TRAIN and chat.answer:
            counts.setdefault((chat.kind, chat.language), Counter())[chat.compared(chat.answer)] += 1
    return {place: min(count, key=lambda answer: (-count[answer], answer)) for place, count in counts.items()}


def task_prompts(asker: Asker, selected: Mapping[str, Sequence[Chat]]) -> "tuple[dict[str, ChatTask], list[Prompt]]":
    """The questions that fit the model's context, by kind; and their prompts, kind by kind."""
    tasks, prompts = {}, []
    for kind, chats in selected.items():
        rendered = [(chat, asker.prompt(chat.question)) for chat in chats]
        fitting = [(chat, prompt) for chat, prompt in rendered if asker.fits(prompt)]
        tasks[kind] = ChatTask([chat for chat, _ in fitting])
        prompts += [prompt for _, prompt in fitting]
    return tasks, prompts


def task_table(
    tasks: Mapping[str, ChatTask], answers: Sequence[str], frequent: Mapping[tuple[str, str], str]
) -> dict[str, Any]:
    """The right answers of each kind beside the baseline."""
    given = iter(answers)
    rows = []
    for kind, task in tasks.items():
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
