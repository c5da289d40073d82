"""Pictures and videos with captions: files beside their captions, rows that name or hold them, WebDataset tars.

    photos/cat.jpg, photos/cat.txt                              the caption is the text of the file beside it
    photos/cat.jpg, photos/cat.json  {"caption": "A cat."}      … or the caption of its object
    photos/metadata.jsonl  {"file_name": "cat.jpg", "text": "A cat."}     as `datasets` has an ImageFolder
    pairs.parquet  image {"bytes": …}, caption                  rows with bytes, or with a path that begins beside them
    shards/000.tar  cat.jpg, cat.txt, dog.jpg, dog.json         WebDataset: members of one name are a sample

A caption's language is the config's, or identified. A tar is read as a stream and nothing of it is written to disk, so
what its members are called does no harm.
"""

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from herd.config.sources import ImageSource, VideoSource
from herd.core.inputs import InputFile, find_files
from herd.data.sources.columns import CAPTION_COLUMNS, IMAGE_COLUMNS, VIDEO_COLUMNS, no_columns
from herd.data.sources.documents import value_at
from herd.data.sources.media_names import IMAGES, SIDECARS, VIDEOS, captions_among, captions_of, media_kind
from herd.data.sources.readers import ROWS, kind_of, read_file
from herd.data.sources.source import Notes, ReadOptions, Unreadable
from herd.data.sources.stream import decode_escaped, open_text
from herd.errors import HerdError

MAX_MEMBER = 256 * 2**20
"""A larger member of a tar, in bytes, is skipped unread."""
MAX_CAPTION = 20_000
"""Characters of a caption; more is no caption."""


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """A picture or a video, not yet decoded, with its caption."""

    place: str
    media: bytes | Path
    caption: str


class CaptionedFiles:
    """The pictures or the videos of a source."""

    def __init__(self, config: ImageSource | VideoSource, files: Sequence[InputFile], notes: Notes) -> None:
        self.config, self.files, self.notes = config, files, notes
        videos = isinstance(config, VideoSource)
        self.what = "videos" if videos else "pictures"
        self.suffixes = VIDEOS if videos else IMAGES
        self._columns: tuple[str, ...] = VIDEO_COLUMNS if videos else IMAGE_COLUMNS

    @property
    def name(self) -> str:
        return self.config.name

    def __iter__(self) -> Iterator[Captioned]:
        """Raises HerdError where rows have no picture or no caption, and for a file that changed."""
        parts = Parts.of([file.path for file in self.files], self.suffixes)
        for file in self.files:
            file.check_unchanged()
        named: set[Path] = set()
        for path in parts.tables:
            for one in self._rows(path):
                if isinstance(one.media, Path):
                    named.add(one.media)
                yield one
        for path in parts.tars:
            yield from self._tar(path)
        for path in parts.media:
            if path.resolve() in named:
                continue
            caption = self._beside(parts.captions.get(path))
            if caption is None:
                self.notes.skip(f"{self.what} without a caption", path)
            elif self._is_caption(caption, path):
                yield Captioned(place=str(path), media=path, caption=caption.strip())

    def _is_caption(self, caption: str, place: object) -> bool:
        if not caption.strip():
            self.notes.skip(f"{self.what} with an empty caption", place)
        elif len(caption) > MAX_CAPTION:
            self.notes.skip(f"{self.what} with a caption of more than {MAX_CAPTION:,} characters", place)
        else:
            return True
        return False

    def _beside(self, path: Path | None) -> str | None:
        """The caption in a file of its own."""
        if path is None:
            return None
        try:
            with open_text(path) as file:
                text = decode_escaped(file.read(MAX_CAPTION + 1))[0]
        except Unreadable as error:
            self.notes.skip(str(error), path, error.detail)
            return None
        return text if path.suffix.lower() != ".json" else self._in_object(text, path)

    def _in_object(self, text: str, place: object) -> str | None:
        """The caption in a JSON object, or in a list of captions, of which the first counts."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            self.notes.skip("captions that are not JSON", place, str(error))
            return None
        return self._caption_of(value) if isinstance(value, Mapping) else None

    def _caption_of(self, values: Mapping[str, Any]) -> str | None:
        names = [self.config.caption] if self.config.caption else [*CAPTION_COLUMNS]
        for name in names:
            value = value_at(values, name)
            if isinstance(value, list) and value:
                value = value[0]
            if isinstance(value, str):
                return value
        return None

    def _media_of(self, values: Mapping[str, Any], folder: Path) -> bytes | Path | None:
        for name in [self.config.column] if self.config.column else self._columns:
            value = value_at(values, name)
            if isinstance(value, Mapping):  # as `datasets` stores one
                value = value.get("bytes") or value.get("path")
            if isinstance(value, bytes) and value:
                return value
            if isinstance(value, str) and value:
                return (folder / value).resolve()
        return None

    def _rows(self, path: Path) -> Iterator[Captioned]:
        first = True
        for row in read_file(path, ReadOptions(), self.notes):
            media, caption = self._media_of(row.values, row.folder), self._caption_of(row.values)
            if first and (media is None or caption is None):
                what, known = ("caption", CAPTION_COLUMNS) if media is not None else (self.what[:-1], self._columns)
                option = "caption" if media is not None else "column"
                raise no_columns(row.place, row.values, what, known, f'Give its name with {option} = "…"')
            first = False
            if media is None:
                self.notes.skip(f"captions without a {self.what[:-1]}", row.place)
            elif isinstance(media, Path) and not media.is_file():
                self.notes.skip(f"{self.what} that are not there", row.place, str(media))
            elif caption is None:
                self.notes.skip(f"{self.what} without a caption", row.place)
            elif self._is_caption(caption, row.place):
                yield Captioned(place=row.place, media=media, caption=caption.strip())

    def _tar(self, path: Path) -> Iterator[Captioned]:
        """The samples of a WebDataset tar, whose members follow one another."""
        key, sample = "", dict[str, bytes]()
        try:
            with tarfile.open(path, "r|") as tar:
                for member in tar:
                    if not member.isfile():
                        continue
                    name = PurePosixPath(member.name)
                    base, _, suffix = name.name.partition(".")
                    if (own := str(name.parent / base)) != key:
                        yield from self._sample(path, key, sample)
                        key, sample = own, {}
                    if member.size > MAX_MEMBER:
                        self.notes.skip(f"members of a tar of more than {MAX_MEMBER:,} bytes", f"{path} {member.name}")
                        continue
                    file: IO[bytes] | None = tar.extractfile(member)
                    assert file is not None
                    sample["." + suffix.lower()] = file.read()
            yield from self._sample(path, key, sample)
        except (tarfile.TarError, EOFError, OSError) as error:
            self.notes.skip("files that are damaged, or unreadable", path, str(error))

    def _sample(self, path: Path, key: str, sample: Mapping[str, bytes]) -> Iterator[Captioned]:
        if not sample:
            return
        place = f"{path} {key}"
        media = next((data for suffix, data in sample.items() if suffix in self.suffixes), None)
        if media is None:
            self.notes.skip(f"samples without a {self.what[:-1]}", place, ", ".join(sample))
            return
        sidecar = next((suffix for suffix in SIDECARS if suffix in sample), None)
        if sidecar is None:
            self.notes.skip(f"{self.what} without a caption", place)
            return
        text = decode_escaped(sample[sidecar].decode("utf-8-sig", "surrogateescape"))[0]
        caption = self._in_object(text, place) if sidecar == ".json" else text
        if caption is None:
            self.notes.skip(f"{self.what} without a caption", place)
        elif self._is_caption(caption, place):
            yield Captioned(place=place, media=media, caption=caption.strip())


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Files by what they are for a source of pictures or videos."""

    media: list[Path]
    captions: dict[Path, Path]
    """By picture or video: the file with its caption."""
    tables: list[Path]
    tars: list[Path]

    @staticmethod
    def of(paths: Sequence[Path], suffixes: Sequence[str]) -> "Parts":
        """Files with these suffixes and what goes with them."""
        media = [path for path in paths if path.suffix.lower() in suffixes]
        captions = captions_of(media)
        rows = [path for path in paths if kind_of(path) in ROWS]
        return Parts(
            media=media,
            captions=captions,
            tables=sorted(set(rows) - captions_among(rows)),
            tars=[path for path in paths if path.suffix.lower() == ".tar"],
        )


def media_files(path: str, suffixes: Sequence[str]) -> list[InputFile]:
    """The files at `path` that a source of pictures or videos reads; of a folder's tables `metadata.*` alone, as the
    others may be of anything. Raises HerdError where there is none."""
    found = find_files(path)
    parts = Parts.of([file.path for file in found], suffixes)
    tables = [table for table in parts.tables if not Path(path).is_dir() or table.name.startswith("metadata.")]
    used = {*parts.media, *parts.captions.values(), *tables, *parts.tars}
    if not (parts.media or tables or parts.tars):
        raise HerdError(
            f"{path} has none of {', '.join(suffixes)}, no rows that name them (JSON lines, CSV, Parquet) and no .tar"
        )
    return [file for file in found if file.path in used]


def kind_of_tar(path: Path, notes: Notes) -> str:
    """`images` or `videos`, by the first members of a WebDataset tar; empty if it has neither."""
    try:
        with tarfile.open(path, "r|") as tar:
            for count, member in enumerate(tar):
                if kind := media_kind(member.name):
                    return kind
                if count > 100:
                    break
    except (tarfile.TarError, EOFError, OSError) as error:
        notes.skip("files that are damaged, or unreadable", path, str(error))
    return ""
