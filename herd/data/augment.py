"""Varied views of a small set of pictures, so that the encoder learns subjects and not drawings by heart.

A view is a random rotation, zoom, stretch and shift (what falls outside is white), then a random brightness, contrast,
saturation and channel gain. Everything follows from the generator that is passed.
"""

import numpy as np
from PIL import Image


def view(picture: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A random view of `picture`, `size` (width, height) pixels."""
    width, height = size
    turn = rng.normal(0, 0.12)
    zoom = np.exp(rng.uniform(-0.20, 0.20))
    stretch = np.exp(rng.normal(0, 0.10))
    shift_x, shift_y = rng.uniform(-0.08, 0.08, 2)
    cos, sin = np.cos(turn) * zoom, np.sin(turn) * zoom
    # From the view's pixel to the picture's, both about their centres.
    scale_x, scale_y = picture.width / width * stretch, picture.height / height / stretch
    a, b = cos * scale_x, -sin * scale_x
    d, e = sin * scale_y, cos * scale_y
    c = picture.width * (0.5 + shift_x) - a * width / 2 - b * height / 2
    f = picture.height * (0.5 + shift_y) - d * width / 2 - e * height / 2
    turned = picture.transform(
        size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR, fillcolor=(255, 255, 255)
    )
    return _recolour(turned, rng)


def _recolour(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(picture, dtype=np.float32) / 255
    gain = np.exp(rng.normal(0, 0.15, 3)).astype(np.float32)
    contrast, saturation = np.exp(rng.normal(0, (0.25, 0.5))).astype(np.float32)
    brightness = np.float32(rng.normal(0, 0.08))
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = (grey + (pixels - grey) * saturation) * gain
    pixels = (pixels - 0.5) * contrast + 0.5 + brightness
    return Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8))
