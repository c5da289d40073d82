"""Pictures in every state, and how they are cut."""

import io
import random
import struct
import zlib
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from herd.config import VisionConfig
from herd.data.media.image import ImageProcessor, best_canvas, canvases, normalise, picture_size, read_picture
from herd.errors import HerdError

PROCESSOR = ImageProcessor(
    VisionConfig(image_size=64, patch_size=16, dim=32, num_layers=1, num_heads=2, adapter_dim=32, max_tiles=4)
)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)  # type: ignore[arg-type]
    return out.getvalue()


def test_transparency_is_shown_on_white_and_exif_turns_the_picture() -> None:
    clear = read_picture(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG"))
    assert clear.mode == "RGB" and clear.getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_picture(encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)).size == (4, 8)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "LA", "I;16"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    kind = "TIFF" if mode in {"CMYK", "I;16"} else "PNG"
    assert read_picture(encoded(Image.new(mode, (5, 3)), kind)).mode == "RGB"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_the_size_of_a_picture_is_that_of_the_decoded_one_also_where_exif_turns_it(kind: str) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    plain, rotated = encoded(Image.new("RGB", (30, 20)), kind), encoded(Image.new("RGB", (30, 20)), kind, exif=turned)
    assert picture_size(plain) == read_picture(plain).size == (30, 20)
    assert picture_size(rotated) == read_picture(rotated).size


def test_what_is_no_picture_is_named_in_one_line(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), "PNG")
    bad = {"empty.png": b"", "words.png": b"not a picture", "torn.png": whole[: len(whole) // 2]}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(HerdError, match=name) as caught:
            read_picture(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(HerdError, match="does not exist"):
        read_picture(tmp_path / "absent.png")
    with pytest.raises(HerdError, match="make it smaller"):
        read_picture(encoded(Image.new("1", (20_000, 20_000)), "PNG"))


def bare_png(width: int, height: int) -> bytes:
    """A PNG with a size and no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bare_png(0, 0), "empty, damaged"),
        (bare_png(5, 0), "empty, damaged"),
        (bare_png(5, 5), "truncated"),
        (bare_png(100_000, 100_000), "make it smaller"),
        (bare_png(100_000, 1000), "make it smaller"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "is SVG"),
        (b'<?xml version="1.0"?>\n<!-- a -->\n<svg/>', "is SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of PNG"),
        (b"%PDF-1.4", "none of PNG"),
        (b"\0\0\0\x18ftypmp42" + b"\0" * 40, "none of PNG"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "without a known range"),
        (encoded(Image.new("I", (4, 4)), "TIFF"), "without a known range"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_the_reason(content: bytes, message: str) -> None:
    with pytest.raises(HerdError, match=message) as caught:
        read_picture(content)
    assert "\n" not in str(caught.value) and "0x" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "AVIF", "BMP", "TIFF", "ICO"])
def test_damaged_bytes_are_a_picture_or_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    try:
        whole = encoded(Image.fromarray(noise), kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {kind}")
    rng = random.Random(0)
    for _ in range(300):
        torn = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            torn[rng.randrange(min(len(torn), rng.choice([64, 400, len(torn)])))] = rng.randrange(256)
        with suppress(HerdError):
            assert read_picture(bytes(torn)).mode == "RGB"


def test_colours_come_out_as_they_were_meant() -> None:
    red = (255, 0, 0)
    assert read_picture(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF")).getpixel((0, 0)) == red
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([9, 9, 9, *red])
    palette.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        shown = read_picture(encoded(palette, kind, transparency=0))
        assert [shown.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), red]
    deep = Image.fromarray(np.array([[0, 0x80 * 257, 65535]], dtype=np.uint16))
    for kind in ("PNG", "TIFF"):
        shown = read_picture(encoded(deep, kind))
        assert [shown.getpixel((x, 0)) for x in range(3)] == [(v, v, v) for v in (0, 0x80, 255)]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    first, second = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    animation = encoded(
        first, kind, save_all=True, append_images=[second], **{"lossless": True} if kind == "WEBP" else {}
    )
    assert getattr(Image.open(io.BytesIO(animation)), "n_frames", 1) == 2
    assert read_picture(animation).getpixel((0, 0)) == (255, 0, 0)


def brute_force(height: int, width: int) -> tuple[int, int]:
    """The rule in exact fractions: the smallest enlargement, else the least shrinking; ties to the smaller area."""
    every = [(r, c) for r in range(1, 17) for c in range(1, 17) if r * c <= 16]
    assert len(every) == 50
    scale = {s: min(Fraction(s[0] * 336, height), Fraction(s[1] * 336, width)) for s in every}
    enlarging = [s for s in every if scale[s] >= 1]
    best = min(scale[s] for s in enlarging) if enlarging else max(scale.values())
    tied = [s for s in every if scale[s] == best]
    area = min(r * c for r, c in tied)
    return next(s for s in canvases(16) if s in tied and s[0] * s[1] == area)


def test_every_one_of_the_50_canvases_is_chosen_for_a_picture_of_its_size() -> None:
    for rows, columns in canvases(16):
        for dy, dx in [(0, 0), (-1, -1), (-7, -100), (0, -1)]:
            height, width = rows * 336 + dy, columns * 336 + dx
            assert best_canvas(height, width, side=336, max_tiles=16) == brute_force(height, width) == (rows, columns)


@settings(max_examples=500)
@given(height=st.integers(1, 8000), width=st.integers(1, 8000))
def test_the_canvas_of_the_released_size_follows_the_rule(height: int, width: int) -> None:
    assert best_canvas(height, width, side=336, max_tiles=16) == brute_force(height, width)


@given(height=st.integers(1, 700), width=st.integers(1, 700), max_tiles=st.integers(1, 16))
def test_the_canvas_enlarges_least_else_shrinks_least_and_wastes_least(height: int, width: int, max_tiles: int) -> None:
    rows, columns = best_canvas(height, width, side=64, max_tiles=max_tiles)
    every = [(r, c) for r in range(1, 17) for c in range(1, 17) if r * c <= max_tiles]
    assert sorted(canvases(max_tiles)) == sorted(every)

    def scale(shape: tuple[int, int]) -> float:
        return min(shape[0] * 64 / height, shape[1] * 64 / width)

    enlarging = [s for s in map(scale, every) if s >= 1]
    best = min(enlarging) if enlarging else max(map(scale, every))
    assert scale((rows, columns)) == pytest.approx(best)
    assert rows * columns == min(r * c for r, c in every if scale((r, c)) == pytest.approx(best))


@given(height=st.integers(1, 300), width=st.integers(1, 300))
def test_tokens_and_tiles_agree_for_every_shape(height: int, width: int) -> None:
    tiles = PROCESSOR.tiles(Image.new("RGB", (width, height), "white"))
    count = tiles.rows * tiles.columns
    assert len(tiles.pixels) == count + (count > 1)
    tokens = PROCESSOR.tokens(tiles)
    assert tokens.count("<|patch|>") == len(tiles.pixels) * PROCESSOR.config.tokens_per_tile
    assert tokens.count("<|tile_y_separator|>") == (tiles.rows if count > 1 else 0)


def test_small_pictures_fill_one_tile_and_padding_is_black_on_the_right_and_below() -> None:
    tiles = PROCESSOR.tiles(Image.new("RGB", (16, 8), "white"))
    assert tiles.pixels.shape == (1, 3, 64, 64)
    assert (tiles.pixels[0, :, :32] == 255).all() and (tiles.pixels[0, :, 32:] == 0).all()
    assert torch.equal(normalise(tiles.pixels).unique(), torch.tensor([-1.0, 1.0]).bfloat16())


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(HerdError, match="0 x 0"):
        PROCESSOR.tiles(Image.new("RGB", (0, 0)))
