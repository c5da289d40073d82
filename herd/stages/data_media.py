"""The user's pictures and videos with captions: rows of the tables of pictures and clips, and a chat about each.

A caption is what the picture is called too (`names`), so that pre-training shows it with the picture; the chat asks for
it in words of its language. A picture or video that is there twice is kept once.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from herd.config import DataConfig, ImageSource, VideoSource
from herd.data.loading import tables
from herd.data.media.image import read_picture
from herd.data.media.video import read_video
from herd.data.packages.wordings import CAPTION, CLIP
from herd.data.sources.captioned import Captioned, CaptionedFiles
from herd.data.text.documents import digest
from herd.data.text.pii import mask
from herd.errors import HerdError
from herd.stages.data_sources import OwnSources, language_of

KIND = "caption"
"""The kind of the chats."""
MAX_FRAMES = 16
"""Frames of a video that are kept, evenly spaced."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The rows that one picture or video gives."""

    row: dict[str, Any]
    """Of pictures.parquet or clips.parquet."""
    chat: dict[str, Any]


def shown(cfg: DataConfig, own: OwnSources) -> Iterator[Shown]:
    """Rows of all pictures, then of all videos."""
    seen: set[str] = set()
    sources: list[ImageSource | VideoSource] = [*cfg.images, *cfg.videos]
    for source in sources:
        notes = own.notes[source.name]
        for one in CaptionedFiles(source, own.files[source.name], notes):
            try:
                columns, key = _pixels(one, source, cfg)
            except HerdError as error:
                notes.skip(f"{_what(source)} that cannot be read", one.place, str(error))
                continue
            if key in seen:
                notes.skip(f"{_what(source)} that are there already", one.place)
                continue
            seen.add(key)
            # So that there is one to train on, however few there are.
            split = own.split(key) if own.counts[source.name]["train"] else "train"
            own.counts[source.name][split] += 1
            yield _rows(one, source, split, f"{source.name}/{key}", columns, cfg)


def _what(source: ImageSource | VideoSource) -> str:
    return "videos" if isinstance(source, VideoSource) else "pictures"


def _pixels(one: Captioned, source: ImageSource | VideoSource, cfg: DataConfig) -> tuple[dict[str, Any], str]:
    """The columns with pixels, and a hash of them. Raises HerdError where they cannot be read."""
    if isinstance(source, ImageSource):
        png = _png(read_picture(one.media), cfg.picture_px)
        return {"png": png, "source": source.name}, digest(png.hex())
    frames = read_video(one.media, max_frames=MAX_FRAMES)
    pngs = [_png(picture, cfg.picture_px) for _, picture in frames]
    return {"frames": pngs, "seconds": [second for second, _ in frames]}, digest("".join(png.hex() for png in pngs))


def _png(picture: Image.Image, longest_px: int) -> bytes:
    picture.thumbnail((longest_px, longest_px))
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def _rows(
    one: Captioned, source: ImageSource | VideoSource, split: str, name: str, columns: dict[str, Any], cfg: DataConfig
) -> Shown:
    caption = mask(one.caption, cfg.cleaning.mask)[0] if cfg.cleaning.mask else one.caption
    language = source.language if source.language != "auto" else language_of(caption)
    said = tables.to_json({language: caption})
    row = {"id": name, "split": split, "subject": "", "names": said, **columns}
    if isinstance(source, ImageSource):
        row["captions"] = said
        part, questions = {"type": "image", "picture": name}, CAPTION
    else:
        part, questions = {"type": "video", "clip": name}, CLIP
    asked = questions.get(language, questions["en"])
    question = asked[int(digest(name), 16) % len(asked)]
    messages = [
        {"role": "user", "content": [part, {"type": "text", "text": question}]},
        {"role": "assistant", "content": caption},
    ]
    chat = {
        "id": f"{KIND}/{name}",
        "split": split,
        "kind": KIND,
        "language": language,
        "messages": tables.to_json(messages),
        "answer": "",
        "verifier": "",
        "source": source.name,
        "tools": "",
    }
    return Shown(row=row, chat=chat)
