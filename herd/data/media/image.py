"""Pictures to tiles, as Llama 4 sees them.

A picture is scaled, without distortion, to the canvas of at most `max_tiles` tiles that enlarges it least (else shrinks
it least), never past one tile when it is smaller; padded black on the right and below; cut into tiles; and, where there
is more than one, followed by the whole picture stretched to a global tile. Source: Meta's llama-models 0.3.0 and
transformers' Llama4ImageProcessor, whose bf16 rescaling is kept so that both give the same pixels.
"""

import io
import math
import re
import struct
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from herd.config import VisionConfig
from herd.core.files import read_bytes
from herd.errors import HerdError

MAX_PIXELS = 64_000_000
"""A larger picture is refused before it is decoded."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "AVIF", "BMP", "TIFF", "ICO")
"""What is opened. Pillow knows more, some of which run other programs."""


PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
"""How a PNG begins; width and height follow."""


def read_picture(source: Path | str | bytes) -> Image.Image:
    """Open a picture as RGB: turned by its EXIF orientation, transparency on white, the first frame of an animation.

    Raises HerdError when the file is missing, unreadable, truncated, not one of FORMATS, or larger than MAX_PIXELS.
    """
    name = "the picture" if isinstance(source, bytes) else str(source)
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some libraries set it, and half a picture would pass for a whole one
    data = source if isinstance(source, bytes) else read_bytes(Path(source))
    if re.match(rb"(?:\xef\xbb\xbf)?\s*(?:<[?!][^>]*>\s*)*<svg\b", data[:4096]):
        raise HerdError(f"{name} is SVG, a drawing without pixels: draw it as PNG first")
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a damaged profile, say: the picture is what counts
            with Image.open(io.BytesIO(data), formats=[one for one in FORMATS if one in Image.OPEN]) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise HerdError(
                        f"{name} has {picture.width} x {picture.height} pixels, over {MAX_PIXELS:,}: make it smaller"
                    )
                return on_white(_eight_bits(ImageOps.exif_transpose(picture), name))
    except Image.DecompressionBombError as error:
        raise HerdError(f"{name} is too large ({error}): make it smaller") from None
    except UnidentifiedImageError:
        raise HerdError(f"{name} is not a readable picture (empty, damaged or none of {', '.join(FORMATS)})") from None
    except HerdError:
        raise
    except Exception as error:  # decoders raise what they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise HerdError(f"{name} is not a readable picture ({reason}): try PNG, JPEG or WebP") from None


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height of what `read_picture` gives; of a PNG without EXIF or XMP from its header alone."""
    if data.startswith(PNG) and not any(mark in data for mark in (b"eXIf", b"Raw profile", b"XML:com.adobe.xmp")):
        width, height = struct.unpack(">II", data[16:24])
        return width, height
    return read_picture(data).size


def _eight_bits(picture: Image.Image, name: str) -> Image.Image:
    """Grey of 16 bits in 8: Pillow's own conversion clips it, so that nearly all of it is white."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture).astype(np.uint32) // 257).astype(np.uint8))
    if picture.mode in {"I", "F"}:
        raise HerdError(
            f"{name} has grey values without a known range (mode {picture.mode}): save it with 8 or 16 bits"
        )
    return picture


def on_white(picture: Image.Image) -> Image.Image:
    """RGB, with transparent parts shown on white."""
    if picture.mode in {"RGBA", "LA", "PA"} or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


@cache
def canvases(max_tiles: int) -> list[tuple[int, int]]:
    """Every (rows, columns) of at most `max_tiles` tiles, in the order in which ties are broken."""
    shapes: dict[float, list[tuple[int, int]]] = {}
    for count in range(max_tiles, 0, -1):
        for rows in range(1, count + 1):
            if count % rows == 0:
                shapes.setdefault(rows * rows / count, []).append((rows, count // rows))
    return [shape for group in shapes.values() for shape in group]


def best_canvas(height: int, width: int, *, side: int, max_tiles: int) -> tuple[int, int]:
    """(rows, columns) of the canvas for a picture: the smallest enlargement, else the least shrinking, ties by area."""
    # fp32 as in the reference: ties between scales decide the canvas.
    shapes = canvases(max_tiles)
    scales = np.array(
        [
            min(np.float32(rows * side) / np.float32(height), np.float32(columns * side) / np.float32(width))
            for rows, columns in shapes
        ]
    )
    enlarging = scales[scales >= 1]
    best = enlarging.min() if enlarging.size else scales.max()
    fitting = [shape for shape, scale in zip(shapes, scales, strict=True) if scale == best]
    return min(fitting, key=lambda shape: shape[0] * shape[1])


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """One picture, cut: `pixels` in reading order with the global tile last, and the shape of the cut."""

    pixels: UInt8[Tensor, "tiles 3 side side"]
    rows: int
    columns: int


class ImageProcessor:
    """Cuts pictures into tiles and gives the tokens that stand for them."""

    def __init__(self, config: VisionConfig | None) -> None:
        self._config = config

    @property
    def reads_pictures(self) -> bool:
        """Whether the model has an encoder."""
        return self._config is not None

    @property
    def config(self) -> VisionConfig:
        """The shape of the encoder. Raises HerdError for a model of text alone, which has none."""
        if self._config is None:
            raise HerdError("this model reads text alone, it has no vision encoder: leave the pictures out")
        return self._config

    def tiles(self, picture: Image.Image, *, max_tiles: int | None = None) -> Tiles:
        """Tiles of an RGB picture; `max_tiles` below the model's own limit saves tokens."""
        side = self.config.image_size
        rows, columns = self._canvas(picture.width, picture.height, max_tiles)
        height = min(max(picture.height, side), rows * side)
        width = min(max(picture.width, side), columns * side)
        by_width, by_height = width / picture.width, height / picture.height
        if by_width < by_height:
            size = (width, max(1, min(math.floor(picture.height * by_width), height)))
        else:
            size = (max(1, min(math.floor(picture.width * by_height), width)), height)
        canvas = torch.zeros(3, rows * side, columns * side, dtype=torch.uint8)
        canvas[:, : size[1], : size[0]] = to_tensor(picture.resize(size, Image.Resampling.BILINEAR))
        cut = canvas.view(3, rows, side, columns, side).permute(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
        if rows * columns > 1:
            whole = to_tensor(picture.resize((side, side), Image.Resampling.BILINEAR))
            cut = torch.cat([cut, whole[None]])
        return Tiles(pixels=cut.contiguous(), rows=rows, columns=columns)

    def blank(self, width: int, height: int) -> Tiles:
        """Black tiles of the layout that a picture of this size gets; they take no memory."""
        rows, columns = self._canvas(width, height)
        count, side = rows * columns + (rows * columns > 1), self.config.image_size
        return Tiles(pixels=torch.zeros((), dtype=torch.uint8).expand(count, 3, side, side), rows=rows, columns=columns)

    def _canvas(self, width: int, height: int, max_tiles: int | None = None) -> tuple[int, int]:
        """Rows and columns of tiles."""
        if not width or not height:
            raise HerdError(f"a picture of {width} x {height} pixels has nothing to see")
        return best_canvas(height, width, side=self.config.image_size, max_tiles=max_tiles or self.config.max_tiles)

    def tokens(self, tiles: Tiles) -> list[str]:
        """The tokens that stand for one picture; each `<|patch|>` is replaced by a vision feature."""
        patches = ["<|patch|>"] * self.config.tokens_per_tile
        tokens = ["<|image_start|>"]
        if tiles.rows * tiles.columns > 1:
            for _ in range(tiles.rows):
                for column in range(tiles.columns):
                    tokens += patches + (["<|tile_x_separator|>"] if column < tiles.columns - 1 else [])
                tokens.append("<|tile_y_separator|>")
        return [*tokens, "<|image|>", *patches, "<|image_end|>"]


def to_tensor(picture: Image.Image) -> UInt8[Tensor, "3 height width"]:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def normalise(pixels: UInt8[Tensor, "*tiles 3 side side"]) -> Float[Tensor, "*tiles 3 side side"]:
    """0…255 to -1…1, through bf16 as the released processor does."""
    return (pixels.to(torch.bfloat16) * (1 / 255) - 0.5) / 0.5
