"""The pictures of a data folder that may be trained on, and the views that are taken of them.

A picture is read and decoded when a batch shows it; planning needs sizes alone.
"""

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from PIL import Image

from herd.data.loading import tables
from herd.data.loading.table_rows import Cache, NamedRows
from herd.data.media.augment import view
from herd.data.media.image import ImageProcessor, Tiles, picture_size, read_picture

SEES_NONE = "as the model reads text alone"
"""Why pictures are left out."""
WHOLE_BYTES, SMALL_BYTES = 2**26, 2**28
"""Decoded pictures that are kept, in bytes: in their own size, and in the size of which views of one tile are taken."""


class PictureShelf:
    """The pictures that may be trained on, and the views that are taken of them. Memory holds those used last."""

    def __init__(self, folder: Path, processor: ImageProcessor) -> None:
        self.processor = processor
        self.rows = NamedRows(folder, "pictures", ["png"])
        self._folder = folder
        self._open: Cache[Image.Image] = Cache(WHOLE_BYTES, _pixel_bytes)
        self._small: Cache[Image.Image] = Cache(SMALL_BYTES, _pixel_bytes)

    @cached_property
    def _spelt(self) -> tuple[np.ndarray, np.ndarray]:
        return np.unique([self.rows.spelt(index) for index in range(self.rows.num_named)], return_inverse=True)

    @property
    def things(self) -> list[dict[str, str]]:
        """Names that differ, all of them: several pictures may show one thing."""
        return [json.loads(names) for names in self._spelt[0]]

    @property
    def thing_of(self) -> np.ndarray:
        """By picture with names: which of `things` it shows."""
        return self._spelt[1]

    def picture(self, index: int) -> Image.Image:
        """The picture in its own size."""
        return self._open.get(index, self._decoded)

    def _decoded(self, index: int) -> Image.Image:
        return read_picture(self.rows[index]["png"])

    @cached_property
    def _sizes(self) -> np.ndarray:
        """int32 [pictures, 2], of the table's rows."""
        return picture_sizes(self._folder / "pictures.parquet")

    def size(self, index: int) -> tuple[int, int]:
        """Its width and height, without decoding it."""
        width, height = self._sizes[self.rows.number(index)].tolist()
        return width, height

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

        def reduce(index: int) -> Image.Image:
            picture = self._decoded(index)
            size = (min(picture.width, side), min(picture.height, side))
            return picture.resize(size, Image.Resampling.BILINEAR)

        return self._small.get(index, reduce)

    def blank(self, index: int, *, whole: bool) -> Tiles:
        """Black tiles of the layout of `tiles(index, …)`, without decoding the picture."""
        side = self.processor.config.image_size
        return self.processor.blank(*((side, side) if whole else self.size(index)))


def picture_sizes(path: Path) -> np.ndarray:
    """int32 [rows, 2], width and height of every picture of a table: from its columns, or from the headers of the
    pictures of a table that was written before it had them."""
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        if {"width", "height"} <= set(file.schema_arrow.names):
            table = file.read(["width", "height"])
            return np.stack([table[name].to_numpy() for name in ("width", "height")], axis=1).astype(np.int32)
    sizes = [picture_size(row["png"]) for row in tables.rows(path, ["png"])]
    return np.array(sizes, np.int32).reshape(-1, 2)


def _pixel_bytes(picture: Image.Image) -> int:
    return picture.width * picture.height * len(picture.getbands())
