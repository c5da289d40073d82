"""Pictures in every state, and how they are cut."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from herd.config import VisionConfig
from herd.core.errors import HerdError
from herd.data.image import ImageProcessor, best_canvas, canvases, normalise, read_picture

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
