"""What a data folder is made of: `[[data.text]]`, `[[data.chats]]`, `[[data.preferences]]`, `[[data.prompts]]`,
`[[data.images]]` and `[[data.videos]]`; and `[[data.demonstrations]]`.

Each entry of the first six names files of the user's; herd/data/sources/ reads them. Demonstrations are made.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from herd.config.ranges import Checked, Count, CountOrNone, Positive, Range

ChatFormat = Literal["auto", "messages", "sharegpt", "alpaca", "pair"]


@dataclass(frozen=True, kw_only=True)
class SourceConfig(Checked):
    """Files of one kind, and how much they count in training."""

    path: str
    """A file, a folder, a pattern such as `corpus/**/*.jsonl.zst`, or `module:name` of an iterable of rows."""
    name: str = ""
    """What the source is called in the tables and the card; the file's or folder's name if not given."""
    weight: Annotated[float, Range(0, 1e6, above=True)] = 1.0
    """How often its documents are seen relative to those of other sources of its kind."""
    max_epochs: Positive | None = None
    """Most passes over it in a training; no limit if not given."""
    licence: str = ""
    """For the data card."""


@dataclass(frozen=True, kw_only=True)
class TextSource(SourceConfig):
    """Documents: text, Markdown, HTML, PDF, WARC; rows of JSON, Parquet, CSV, Arrow."""

    text: str = ""
    """Column with the text, with dots into nested ones (`page.body`); found by its name if not given."""
    language: str = "auto"
    """ISO 639-1, or `auto`: each document's language is identified."""
    encoding: str = "auto"
    """Of text files, such as `cp1251`; `auto`: UTF-8 or UTF-16, and Windows-1252 for lines that are neither."""


@dataclass(frozen=True, kw_only=True)
class ChatSource(SourceConfig):
    """Conversations, one a row."""

    format: ChatFormat = "auto"
    """`messages` (OpenAI), `sharegpt`, `alpaca`, `pair` (prompt and completion); `auto`: by the columns."""


@dataclass(frozen=True, kw_only=True)
class PreferenceSource(SourceConfig):
    """Prompts with a chosen and a rejected answer, as TRL has them, one a row."""


@dataclass(frozen=True, kw_only=True)
class PromptSource(SourceConfig):
    """Prompts with a right answer or rules to grade one by, one a row."""


@dataclass(frozen=True, kw_only=True)
class CaptionedSource(SourceConfig):
    """Pictures or videos with captions: files beside their captions, rows that name or hold them, WebDataset tars."""

    column: str = ""
    """Column with the picture or the video, its bytes or its path; found by its name if not given."""
    caption: str = ""
    """Column or JSON field with the caption; found by its name if not given."""
    language: str = "auto"
    """ISO 639-1 of the captions, or `auto`: each caption's language is identified."""


@dataclass(frozen=True, kw_only=True)
class ImageSource(CaptionedSource):
    """Pictures with captions."""


@dataclass(frozen=True, kw_only=True)
class VideoSource(CaptionedSource):
    """Videos with captions."""


@dataclass(frozen=True, kw_only=True)
class DemonstrationSource(Checked):
    """Right answers to the prompts of an environment of reinforcement learning, as chats to begin with."""

    environment: str
    """Its name, as `[rl]` has it: `digits`, `calculator`, `mine:Shop`, a JSONL file of prompts, …"""
    num: Count = 200
    """Training chats, the same number of each cell as far as there are different ones."""
    heldout: CountOrNone = 100
    """Chats of content that is held out, for evaluation."""
    cells: tuple[str, ...] = ()
    """Patterns of the names of cells, such as `sort-*`; all if none is given."""
