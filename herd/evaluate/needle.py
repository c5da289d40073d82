"""Facts in a haystack of any length, planted, asked for and removed again.

The haystack is read once (herd.engine.reader). A question about its first `length` tokens takes the place of what
follows them, so one reading serves all lengths; facts take the place of as many tokens, from the end of a sentence on,
and only their chunks are read anew. Both are exact: the answer is that of a reading from the start, as the tests show.
Facts are not kept off the edges of chunks, where local layers cannot see both sides; `cut` marks those on one.
"""

# N tokens of the haystack

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from herd.data.packages.planted import Planter, Quiz
from herd.engine.reader import Reader
from herd.errors import HerdError

DEPTHS = tuple((place + 0.5) / 10 for place in range(10))
"""Position of the first fact, as a share of the length."""

SPREAD = 0.02
"""A fact is placed within this share of the length about its depth. At the depth itself it would be on a chunk's edge
far too often, as lengths and chunks are powers of two, and all seeds would have the same place."""


@dataclass(frozen=True, kw_only=True)
class AnswerToQuiz:
    """One question and what came of it."""

    right: bool
    given: str
    wanted: str
    cut: bool
    """Whether an edge of a chunk runs through the first fact."""


class Haystack:
    """Real text in a reader's cache."""

    def __init__(self, reader: Reader, planter: Planter, ids: np.ndarray) -> None:
        if not reader.is_linear:
            raise HerdError(
                "the model has a global layer below its last: text cannot be replaced without reading all of it again"
            )
        self.reader, self.planter, self.ids = reader, planter, ids
        self.ends = np.flatnonzero(planter.ends_text[ids]) + 1

    def ask(
        self,
        quiz: Quiz,
        *,
        length: int,
        depth: float,
        rng: np.random.Generator,
        planted: bool = True,
    ) -> AnswerToQuiz:
        """Plant the facts, the first about `depth`, the others anywhere; ask after `length` tokens; take them out.

        With `planted` False the fact that the answer rests on is left out.
        """
        facts = [self.planter.encode(f" {fact}") for fact in quiz.facts]
        places = self._places(facts, length, depth, rng)
        if not planted:
            facts, places = facts[1:], places[1:]
        chunk, touched = self.reader.chunk, self.plant_facts(facts, places)
        wanted = self.planter.encode(quiz.answer)
        question = self.planter.encode(quiz.question)
        options = [self.planter.encode(option) for option in quiz.options]
        after = range(length // chunk, (length + len(question) + max(map(len, [wanted, *options]))) // chunk + 1)
        with self.reader.preserve_pages([*touched, *after]):
            for number, tokens in touched.items():
                self.reader.read(torch.from_numpy(tokens), begin=number * chunk)
            if options:
                cost = [float(np.mean(self.reader.losses(question, option, at=length))) for option in options]
                given = options[int(np.argmin(cost))]
            elif quiz.several:
                given = self.reader.answer(question, at=length, max_tokens=len(wanted))
            else:  # the same verdict at a fraction of the time
                given = self.reader.likeliest_tokens(question, wanted, at=length)
        text_given = self.planter.tokenizer.decode(given)
        right = given == wanted if options else is_right(quiz, text_given)
        cut = planted and bool(facts) and places[0] // chunk != (places[0] + len(facts[0]) - 1) // chunk
        return AnswerToQuiz(right=right, given=text_given, wanted=quiz.answer, cut=cut)

    def plant_facts(self, facts: Sequence[list[int]], places: Sequence[int]) -> dict[int, np.ndarray]:
        """The chunks that contain these facts, by number, with the facts in place of as many tokens."""
        chunk, touched = self.reader.chunk, dict[int, np.ndarray]()
        for place, fact in zip(places, facts, strict=True):
            for number in range(place // chunk, (place + len(fact) - 1) // chunk + 1):
                begin = number * chunk
                tokens = touched.setdefault(number, self.ids[begin : begin + chunk].copy())
                low, high = max(place, begin), min(place + len(fact), begin + chunk)
                tokens[low - begin : high - begin] = fact[low - place : high - place]
        return touched

    def _places(self, facts: Sequence[list[int]], length: int, depth: float, rng: np.random.Generator) -> list[int]:
        """Ends of sentences for the facts, none over another, all before `length`; in order after the first."""
        taken: list[tuple[int, int]] = []
        if not facts:
            return []
        depths = [depth + SPREAD * (rng.random() - 0.5), *np.sort(rng.random(len(facts) - 1))]
        for share, fact in zip(depths, facts, strict=True):
            index = int(np.searchsorted(self.ends, share * (length - len(fact))))
            index = min(index, len(self.ends) - 1)
            for step in range(len(self.ends)):
                place = int(self.ends[(index + step) % len(self.ends)])
                if place + len(fact) <= length and all(place >= b or place + len(fact) <= a for a, b in taken):
                    break
            else:
                raise HerdError(f"{length} tokens have no room for {len(facts)} facts")
            taken.append((place, place + len(fact)))
        return [place for place, _ in taken]


def is_right(quiz: Quiz, given: str) -> bool:
    """Whether an answer is what was wanted: all parts where any order will do, else the whole value and then no
    further letter or digit."""
    if quiz.several:
        return all(part in given for part in quiz.several)
    wanted, said = quiz.answer.strip().rstrip(".。"), given.strip()
    return said.startswith(wanted) and not said[len(wanted) : len(wanted) + 1].isalnum()
