"""Needles in many wordings: values of each kind, asked for in other words than the fact has.

Each question is about a fact of its own. Held-out wordings, their nouns, all keys, and the words and names that are
values were never trained on (herd.data.packages.statements); `Haystack.ask` plants the fact and takes it out again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from herd.core.statistics import wilson
from herd.core.streams import stream
from herd.data.packages.planted import Keys, Values, statement
from herd.data.packages.statements import KINDS, Wordings
from herd.evaluate.needle import DEPTHS, AnswerToQuiz, Haystack


@dataclass(frozen=True, kw_only=True)
class AskedStatement:
    """One question, of which kind its value is, and which of the wordings it has."""

    kind: str
    wording: int
    asked: AnswerToQuiz


def ask_statements(
    hay: Haystack,
    keys: Keys,
    values: Values,
    wordings: Wordings,
    length: int,
    asks: int,
    *,
    kinds: Sequence[str] = KINDS,
    planted: bool = True,
) -> list[AskedStatement]:
    """`asks` questions of each kind after `length` tokens, spread evenly over wordings and depths; what is asked is a
    function of the kind, the length, the wording and how often it was asked before."""
    answers = []
    count = len(wordings.pairs)
    for number, kind in enumerate(kinds):
        for index in range(asks):
            wording = (index if asks >= count else index * count // asks + number) % count
            place = (wording + index // count + number) % len(DEPTHS)
            rng = stream(index // count, "statement", kind, length, wordings.pairs[wording][0])
            quiz = statement(rng, keys, values, wordings, kind=kind, wording=wording)
            asked = hay.ask(quiz, length=length, depth=DEPTHS[place], rng=rng, planted=planted)
            answers.append(AskedStatement(kind=kind, wording=wording, asked=asked))
    return answers


def asked_and_interval(answers: Sequence[AskedStatement]) -> str:
    """How many were asked, and the 95 % interval of the share that was missed."""
    missed = sum(not one.asked.right for one in answers)
    low, high = wilson(missed, len(answers))
    return f"{len(answers)} asked, 95 % interval {low:.3f} to {high:.3f}"


def share_missed(answers: Sequence[AskedStatement]) -> float:
    """Share of the questions that were not answered right."""
    return sum(not one.asked.right for one in answers) / len(answers)
