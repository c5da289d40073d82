"""The clips of a data folder that may be trained on, and their frames as the model sees them: each in one tile.

A frame is decoded when a batch shows it. It keeps its proportions, as a video does in chat.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from herd.data.loading.table_rows import NamedRows
from herd.data.media.augment import view
from herd.data.media.image import ImageProcessor, Tiles, read_picture


class ClipShelf:
    """The clips that may be trained on, those with names first."""

    def __init__(self, folder: Path, processor: ImageProcessor) -> None:
        self.processor = processor
        self.rows = NamedRows(folder, "clips", ["frames"])
        self._times = NamedRows(folder, "clips", ["seconds"])

    def frames(self, index: int, count: int, rng: np.random.Generator | None = None) -> list[tuple[float, Tiles]]:
        """Seconds and tile of `count` frames, evenly spread, or of all where there are fewer; with a generator all in
        one random view."""
        row, side = self.rows[index], self.processor.config.image_size
        seconds = self._times[index]["seconds"]
        seed = None if rng is None else int(rng.integers(2**63))
        shown = []
        for place in self._chosen(index, count):
            frame = _fitted(read_picture(row["frames"][place]), side)
            if seed is not None:
                frame = view(frame, frame.size, np.random.default_rng(seed))
            shown.append((seconds[place], self.processor.tiles(frame, max_tiles=1)))
        return shown

    def blank(self, index: int, count: int) -> list[tuple[float, Tiles]]:
        """Black tiles in the place of `frames(index, count)`, without decoding a frame."""
        side, seconds = self.processor.config.image_size, self._times[index]["seconds"]
        return [(seconds[place], self.processor.blank(side, side)) for place in self._chosen(index, count)]

    def _chosen(self, index: int, count: int) -> list[int]:
        there = len(self._times[index]["seconds"])
        count = min(count, there)
        return [number * there // count for number in range(count)]


def _fitted(frame: Image.Image, side: int) -> Image.Image:
    """The frame, its longer side being `side`."""
    scale = side / max(frame.size)
    return frame.resize((max(1, round(frame.width * scale)), max(1, round(frame.height * scale))))
