"""The pictures of a data folder that may be trained on, and the views that are taken of them.

A picture is decoded when a batch shows it; planning needs sizes alone, which its header has.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from herd.data.loading import tables
from herd.data.media.augment import view
from herd.data.media.image import ImageProcessor, Tiles, picture_size, read_picture

SEES_NONE = "as the model reads text alone"
"""Why pictures are left out."""


class PictureShelf:
    """The pictures that may be trained on, opened once, and the views that are taken of them."""

    def __init__(self, folder: Path, processor: ImageProcessor) -> None:
        self.processor = processor
        # Those with names first: a chat may show one that has a caption only.
        there = tables.read(folder, "pictures") if tables.has(folder, "pictures") else []
        rows = [row for row in there if row["split"] == "train"]
        self.rows = sorted(rows, key=lambda row: row["names"] == "{}")
        self.names = [json.loads(row["names"]) for row in self.rows if row["names"] != "{}"]
        spelt, thing_of = np.unique([row["names"] for row in self.rows if row["names"] != "{}"], return_inverse=True)
        self.things: list[dict[str, str]] = [json.loads(names) for names in spelt]
        """Names that differ: several pictures may show one thing."""
        self.thing_of = thing_of
        """By picture with names: which of `things` it shows."""
        self.place = {row["id"]: index for index, row in enumerate(self.rows)}
        self._sizes: dict[int, tuple[int, int]] = {}
        self._open: dict[int, Image.Image] = {}
        self._small: dict[int, Image.Image] = {}

    def picture(self, index: int) -> Image.Image:
        """The picture in its own size."""
        if index not in self._open:
            self._open[index] = read_picture(self.rows[index]["png"])
        return self._open[index]

    def size(self, index: int) -> tuple[int, int]:
        """Its width and height, without decoding it."""
        if index not in self._sizes:
            self._sizes[index] = picture_size(self.rows[index]["png"])
        return self._sizes[index]

    def is_large(self, index: int) -> bool:
        """Whether the model would see it in several tiles."""
        return max(self.size(index)) > self.processor.config.image_size

    def tiles(self, index: int, rng: np.random.Generator, *, whole: bool) -> Tiles:
        """A random view; `whole` gives the one stretched tile alone, else the cut that a user's picture gets."""
        side = self.processor.config.image_size
        if whole:
            return self.processor.tiles(view(self._reduced(index, 2 * side), (side, side), rng))
        picture = self.picture(index)
        return self.processor.tiles(view(picture, picture.size, rng))

    def _reduced(self, index: int, side: int) -> Image.Image:
        """The picture at most `side` wide and high: a view samples it without the moiré of skipped pixels."""
        if index not in self._small:
            picture = self.picture(index)
            size = (min(picture.width, side), min(picture.height, side))
            self._small[index] = picture.resize(size, Image.Resampling.BILINEAR)
        return self._small[index]

    def blank(self, index: int, *, whole: bool) -> Tiles:
        """Black tiles of the layout of `tiles(index, …)`, without decoding the picture."""
        side = self.processor.config.image_size
        return self.processor.blank(*((side, side) if whole else self.size(index)))
