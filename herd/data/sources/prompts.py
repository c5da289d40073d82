"""Prompts with what an answer is graded by: a right answer, or rules.

    {"question": "2 + 2?", "answer": "4"}
    {"prompt": [{"role": "user", "content": "2 + 2?"}], "answer": "4"}
    {"prompt": "Write a haiku.", "verifier": "mine:is_haiku"}    rules: text, or an object that is kept as JSON

An answer that ends with `#### 4` (GSM8K) is the 4.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from herd.config.sources import PromptSource
from herd.core.inputs import InputFile
from herd.data.sources.chats import as_messages, final_answer
from herd.data.sources.columns import ANSWERED, RULES, no_columns, pair_columns
from herd.data.sources.messages import Message, Skip, check_turns, message
from herd.data.sources.readers import read_rows
from herd.data.sources.source import Notes, ReadOptions


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt, and what its answers are graded by."""

    place: str
    prompt: list[Message]
    answer: str = ""
    rules: str = ""
    """As the file has them, an object as JSON."""


class Prompts:
    """The prompts of a source."""

    def __init__(self, config: PromptSource, files: Sequence[InputFile], notes: Notes) -> None:
        self.config, self.files, self.notes = config, files, notes

    @property
    def name(self) -> str:
        return self.config.name

    def __iter__(self) -> Iterator[Prompt]:
        """Raises HerdError where the first row of a file has no prompt."""
        before = None
        for row in read_rows(self.config.path, self.files, ReadOptions(), self.notes):
            file = row.place.rpartition(" row ")[0]
            if file != before and not (pair_columns(row.values, ANSWERED) or "prompt" in row.values):
                raise no_columns(
                    row.place, row.values, "prompt", ("prompt", "answer"), "A prompt has prompt and answer"
                )
            before = file
            try:
                yield prompt_of(row.place, row.values)
            except Skip as skip:
                self.notes.skip(str(skip), row.place, skip.detail)


def prompt_of(place: str, values: Mapping[str, Any]) -> Prompt:
    """The prompt of a row. Raises Skip."""
    columns = pair_columns(values, ANSWERED)
    asked = values[columns[0]] if columns else values.get("prompt")
    found = values[columns[1]] if columns else ""
    answer = final_answer(found)
    prompt = [message(one, []) for one in as_messages(asked, "user")]
    check_turns(prompt, answered=False)
    if answer is None:
        raise Skip("prompts whose answer is neither text nor a number", type(found).__name__)
    rules = next((values[name] for name in RULES if values.get(name)), "")
    rules = rules if isinstance(rules, str) else json.dumps(rules, ensure_ascii=False)
    if not answer and not rules:
        raise Skip("prompts with neither an answer nor rules")
    return Prompt(place=place, prompt=prompt, answer=answer, rules=rules)
