"""Chats from rows: OpenAI's messages, ShareGPT, Alpaca, and pairs of prompt and completion.

{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], "tools": […]}
{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}], "system": "Be kind."}
{"instruction": "Translate.", "input": "Guten Tag", "output": "Good day", "history": [["…", "…"]]}
{"prompt": "Hi", "completion": "Hello!"}    the prompt may be a list of messages, and so may the completion

Beside each of these, `answer` is a right answer to the last question, by which drawn answers are graded.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herd.config.sources import ChatSource
from herd.core.inputs import InputFile
from herd.data.sources.columns import CHATS, PAIRS, chat_format, no_columns, pair_columns, turns_column
from herd.data.sources.messages import Message, Skip, check_turns, message, tools_of
from herd.data.sources.readers import read_rows
from herd.data.sources.source import Notes, ReadOptions, Row

_FINAL = "#### "
"""What GSM8K writes before the final answer."""


@dataclass(frozen=True, kw_only=True)
class SourceChat:
    """One conversation as it was found; pictures are parts `{"type": "image", "image": path, data URL or bytes}`."""

    place: str
    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)
    folder: Path = Path()
    """Where the paths of its pictures begin."""
    answer: str = ""
    """A right answer to the last question, from the row's column of this name; empty if there is none."""
    verifier: str = ""
    """What grades an answer, as the row has it, an object as JSON; empty if there is none."""


class Chats:
    """The conversations of a chat source."""

    def __init__(self, config: ChatSource, files: Sequence[InputFile], notes: Notes) -> None:
        self.config, self.files, self.notes = config, files, notes

    @property
    def name(self) -> str:
        return self.config.name

    def __iter__(self) -> Iterator[SourceChat]:
        """Raises HerdError where the first row of a file has no chat."""
        before = None
        for row in read_rows(self.config.path, self.files, ReadOptions(), self.notes):
            form = chat_format(row.values) if self.config.format == "auto" else self.config.format
            file = row.place.rpartition(" row ")[0]
            if form is None and file != before and turns_column(row.values) is None:
                wanted = {name for names in CHATS.values() for name in names}
                fix = "Chats have messages, conversations, instruction and output, or prompt and completion"
                raise no_columns(row.place, row.values, "chat", sorted(wanted), fix)
            before = file
            try:
                if form is None:
                    raise Skip("chats without a message")
                chat = chat_of(row, form)
                if not chat.answer and row.values.get("answer") not in (None, ""):
                    found = type(row.values["answer"]).__name__
                    self.notes.change("chats whose answer is neither text nor a number: not used", row.place, found)
                yield chat
            except Skip as skip:
                self.notes.skip(str(skip), row.place, skip.detail)


def chat_of(row: Row, form: str) -> SourceChat:
    """The conversation of a row in one of the formats. Raises Skip."""
    values = row.values
    images = images_of(values)
    turns = _FORMATS[form](values)
    messages = [message(turn, images) for turn in turns]
    system = values.get("system")
    if isinstance(system, str) and system.strip() and messages and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    check_turns(messages)
    tools = tools_of(values.get("tools") or values.get("functions"))
    verifier = values.get("verifier") or ""
    return SourceChat(
        place=row.place,
        messages=messages,
        tools=tools,
        folder=row.folder,
        answer=final_answer(values.get("answer")) or "",
        verifier=verifier if isinstance(verifier, str) else json.dumps(verifier, ensure_ascii=False),
    )


def final_answer(value: Any) -> str | None:
    """The right answer that a column has: of text that ends with `#### 4` the 4. None if it is neither text nor a
    number."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    return str(value).rpartition(_FINAL)[2].strip()


def images_of(values: Mapping[str, Any]) -> list[Any]:
    """The pictures in a row's own columns, in the order in which its texts show them."""
    found = values.get("images", values.get("image"))
    if found is None:
        return []
    return list(found) if isinstance(found, (list, tuple)) else [found]


def as_messages(value: Any, role: str) -> list[Any]:
    """A text as a message of `role`; a list of messages as it is. Raises Skip."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, Mapping):
        return [value]
    if isinstance(value, list):
        return value
    raise Skip("rows with a prompt or an answer that is neither text nor messages", type(value).__name__)


def _turns(values: Mapping[str, Any]) -> list[Any]:
    column = turns_column(values)
    if column is None:
        raise Skip("chats without a message")
    turns: list[Any] = values[column]
    return turns


def _alpaca(values: Mapping[str, Any]) -> list[Any]:
    asked, more, answer = (values.get(name) for name in ("instruction", "input", "output"))
    if not isinstance(asked, str) or not isinstance(answer, str):
        raise Skip("rows without an instruction and an output", ", ".join(values))
    turns: list[Any] = []
    for pair in values.get("history") or ():
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise Skip("rows with a history that is no list of pairs")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    question = f"{asked}\n\n{more}" if isinstance(more, str) and more.strip() else asked
    return [*turns, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _pair(values: Mapping[str, Any]) -> list[Any]:
    columns = pair_columns(values, PAIRS)
    if columns is None:
        raise Skip("rows without a prompt and a completion", ", ".join(values))
    return [*as_messages(values[columns[0]], "user"), *as_messages(values[columns[1]], "assistant")]


_FORMATS = {"messages": _turns, "sharegpt": _turns, "alpaca": _alpaca, "pair": _pair}
