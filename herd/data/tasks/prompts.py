"""Prompts of the user's with a right answer and a rule: of a JSONL file, or of a data folder's table of prompts.

    {"prompt": "2 + 2?", "answer": "4", "rule": "number"}
    {"prompt": [{"role": "user", "content": "Write a haiku."}], "rule": "mine:is_haiku"}

Rules: `exact` (equal but for white space; where none is given), `number` (the last number of the answer), `contains`
(it stands in the answer, in small letters or capitals), `regex` (a pattern that is found in it), and `module:name`, a
function of the messages and the answer that returns a number from 0 to 1.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

from herd.config import PromptSource
from herd.data.loading import tables
from herd.data.sources.module import load_object
from herd.data.sources.prompts import Prompts
from herd.data.sources.readers import files_of
from herd.data.sources.source import Notes
from herd.data.tasks.rows import Shuffled, cell_name
from herd.data.tasks.task import UNKNOWN, Grade, Messages, is_heldout, prompt_key, prompt_keys
from herd.errors import HerdError, unknown

Rule = Callable[[Messages, str], float]
NUMBER = re.compile(r"[-+−]?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class Ruled:
    """One prompt with what its answers are graded by."""

    place: str
    cell: str
    messages: list[dict[str, Any]]
    answer: str
    rule: str
    is_heldout: bool


class PromptsTask:
    """A cell for each source. Raises HerdError for a rule that is not known, or does not fit its answer."""

    def __init__(self, rows: Sequence[Ruled], seed: int, *, heldout: bool = False) -> None:
        self._rows = rows
        cells: dict[str, list[int]] = {}
        self._known: dict[str, list[tuple[Rule, str]]] = {}
        for number, row in enumerate(rows):
            rule = rule_of(row)
            if row.is_heldout == heldout:
                cells.setdefault(row.cell, []).append(number)
            self._known.setdefault(prompt_key(row.messages), []).append((rule, row.answer))
        kind = "held out" if heldout else "of training"
        self._shuffled = Shuffled(seed, cells, f"none of the {len(rows)} prompts is {kind}")

    @classmethod
    def of_file(cls, path: Path, seed: int, *, heldout: bool = False) -> Self:
        """The prompts of a JSONL file. Raises HerdError where a row cannot be used."""
        notes, name = Notes(), path.name.partition(".")[0]
        source = PromptSource(path=str(path), name=name)
        rows = [
            Ruled(
                place=one.place, cell=cell_name(name), messages=one.prompt, answer=one.answer, rule=one.rules,
                is_heldout=is_heldout(prompt_key(one.prompt)),
            )
            for one in Prompts(source, files_of(str(path), notes), notes)
        ]  # fmt: skip
        if notes.skipped:
            raise HerdError(f"{path}: {'; '.join(notes.lines())}: mend or remove these rows")
        return cls(rows, seed, heldout=heldout)

    @classmethod
    def of_data(cls, data: Path, seed: int, *, heldout: bool = False) -> Self:
        """The prompts of a data folder."""
        rows = [
            Ruled(
                place=f"{data}: {row['id']}", cell=cell_name(row["source"]), messages=json.loads(row["prompt"]),
                answer=row["answer"], rule=row["verifier"], is_heldout=row["split"] != "train",
            )
            for row in tables.read(data, "prompts")
        ]  # fmt: skip
        return cls(rows, seed, heldout=heldout)

    @property
    def cells(self) -> Sequence[str]:
        return self._shuffled.cells

    def prompt(self, cell: str, index: int) -> list[dict[str, Any]]:
        return self._rows[self._shuffled.row(cell, index)].messages

    def solution(self, cell: str, index: int) -> str:
        row = self._rows[self._shuffled.row(cell, index)]
        if not row.answer or row.rule not in SHOWN:
            raise HerdError(f"{row.place}: the rule {row.rule!r} says what is right, but has no answer to show")
        return row.answer

    def grade(self, messages: Messages, answer: str) -> Grade:
        found = next((self._known[key] for key in prompt_keys(messages) if key in self._known), None)
        if found is None:
            return UNKNOWN
        score = max(rule(messages, answer) for rule, _ in found)
        return Grade(score=score, reason="right" if score == 1 else f"{found[0][1] or 'another'} is right")


def rule_of(row: Ruled) -> Rule:
    """What grades the answers of a row. Raises HerdError."""
    name = row.rule or "exact"
    if name == "regex":
        try:
            re.compile(row.answer)
        except re.error as error:
            raise HerdError(f"{row.place}: the answer {row.answer!r} is no regular expression ({error})") from None
    elif name == "number" and last_number(row.answer) is None:
        raise HerdError(f"{row.place}: the answer {row.answer!r} has no number, which the rule 'number' needs")
    if name in RULES:
        compared = RULES[name]
        return lambda messages, said: float(compared(row.answer, said))
    if ":" not in name or name.startswith("{"):
        raise HerdError(f"{row.place}: {unknown('rule', name, [*RULES, 'module:name'])}")
    function = load_object(name)

    def graded(messages: Messages, said: str) -> float:
        score = float(function(messages, said))
        if not (math.isfinite(score) and 0 <= score <= 1):
            raise HerdError(f"{name} gives {score}: a score is from 0 to 1")
        return score

    return graded


def last_number(text: str) -> Decimal | None:
    """The last number in a text."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("−", "-")) if found else None


SHOWN = ("", "exact", "number", "contains")
"""Rules under which the answer itself is right."""
RULES: Mapping[str, Callable[[str, str], bool]] = {
    "exact": lambda right, said: said.split() == right.split(),
    "number": lambda right, said: last_number(said) == last_number(right),
    "contains": lambda right, said: right.casefold() in said.casefold(),
    "regex": lambda right, said: re.search(right, said) is not None,
}
