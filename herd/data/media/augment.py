"""Varied views of a small set of pictures, so that the encoder learns subjects and not drawings by heart.

A view is a random rotation, zoom, stretch and shift (what falls outside is white), then a random brightness, contrast,
saturation and channel gain. Everything follows from the generator that is passed.
"""

import numpy as np
from PIL import Image


def view(picture: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A random view of `picture`, `size` (width, height) pixels."""
    width, height = size
    turn = rng.normal(0, 0.09)
    zoom = np.exp(rng.uniform(-0.15, 0.15))
    stretch = np.exp(rng.normal(0, 0.07))
    shift_x, shift_y = rng.uniform(-0.06, 0.06, 2)
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
    """Saturation about grey, a gain for each channel, contrast about the middle, brightness: one affine map."""
    gain = np.exp(rng.normal(0, 0.1, 3))
    contrast, saturation = np.exp(rng.normal(0, (0.15, 0.35)))
    brightness = rng.normal(0, 0.05)
    grey = np.full((3, 3), 1 / 3)
    mixing = contrast * gain[:, None] * (grey + saturation * (np.eye(3) - grey))
    offset = 255 * (0.5 - 0.5 * contrast + brightness)
    return picture.convert("RGB", tuple(np.column_stack([mixing, np.full(3, offset)]).ravel().tolist()))
