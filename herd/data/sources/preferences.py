r"""Preferences from rows: a prompt, an answer that was chosen and one that was rejected, in TRL's forms.

{"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}
{"prompt": [{"role": "user", …}], "chosen": [{"role": "assistant", …}], "rejected": [{"role": "assistant", …}]}
{"chosen": [{"role": "user", …}, {"role": "assistant", …}], "rejected": [{"role": "user", …}, …]}
{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away."}
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from herd.config.sources import PreferenceSource
from herd.core.inputs import InputFile
from herd.data.sources.chats import as_messages
from herd.data.sources.columns import no_columns
from herd.data.sources.messages import Message, Skip, check_turns, message, tools_of
from herd.data.sources.readers import read_rows
from herd.data.sources.source import Notes, ReadOptions

_SAID = re.compile(r"(?:^|\n\n)(Human|Assistant):")


@dataclass(frozen=True, kw_only=True)
class Preference:
    """One comparison of two answers."""

    place: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)


class Preferences:
    """The comparisons of a preference source."""

    def __init__(self, config: PreferenceSource, files: Sequence[InputFile], notes: Notes) -> None:
        self.config, self.files, self.notes = config, files, notes

    @property
    def name(self) -> str:
        return self.config.name

    def __iter__(self) -> Iterator[Preference]:
        """Raises HerdError where the first row of a file has no preference."""
        before = None
        for row in read_rows(self.config.path, self.files, ReadOptions(), self.notes):
            file = row.place.rpartition(" row ")[0]
            if file != before and not {"chosen", "rejected"} <= row.values.keys():
                wanted = ("prompt", "chosen", "rejected")
                raise no_columns(
                    row.place, row.values, "preference", wanted, "A preference has prompt, chosen and rejected"
                )
            before = file
            try:
                yield preference_of(row.place, row.values)
            except Skip as skip:
                self.notes.skip(str(skip), row.place, skip.detail)


def preference_of(place: str, values: Mapping[str, Any]) -> Preference:
    """The comparison of a row. Raises Skip."""
    chosen, rejected = (_side(values.get(name)) for name in ("chosen", "rejected"))
    if values.get("prompt"):
        prompt = [message(one, []) for one in as_messages(values["prompt"], "user")]
        if chosen[: len(prompt)] == prompt:  # the answers repeat the prompt
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    else:
        same = next((at for at, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
        if same is None:
            raise Skip("preferences whose two answers are the same")
        prompt, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
    if chosen == rejected:
        raise Skip("preferences whose two answers are the same")
    check_turns([*prompt, *chosen])
    check_turns([*prompt, *rejected])
    if not prompt or prompt[-1]["role"] == "assistant":
        raise Skip("preferences without a prompt")
    return Preference(place=place, prompt=prompt, chosen=chosen, rejected=rejected, tools=tools_of(values.get("tools")))


def _side(value: Any) -> list[Message]:
    if isinstance(value, str) and _SAID.match(value):
        _, *pieces = _SAID.split(value)
        said = zip(pieces[::2], pieces[1::2], strict=True)
        value = [{"role": "user" if who == "Human" else "assistant", "content": text.strip()} for who, text in said]
    return [message(one, []) for one in as_messages(value, "assistant")]
