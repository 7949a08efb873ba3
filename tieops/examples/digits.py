"""Images of digits without a download: drawn from fonts, then rotated, sheared, scaled and shifted.

They replace the synthetic digits of MATLAB's example. The fonts come with matplotlib.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tieops.errors import MissingDependencyError

__all__ = ["SIDE", "draw_digits"]

SIDE = 28
"""Pixels of one side of an image."""
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif",
    "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10",
)  # fmt: skip
GLYPH = 112
"""Pixels of one side of the drawing that an image is taken from: four for one."""
FINE = 2
"""An image is made this many times too large, and averaged: thin strokes stay whole."""

MAX_TURN = 0.35  # radians
MAX_SLANT = 0.25
SCALES = (0.7, 0.95)
MAX_SHIFT = 2.0  # pixels

Images = np.ndarray[Any, np.dtype[np.float32]]


def draw_digits(count: int, seed: int = 0) -> Images:
    """Draw images of the digits 0 to 9, white on black.

    The same count and seed give the same images, with one version of Pillow. A thousand take about
    0.1 s.

    Args:
        count: How many.
        seed: Of fonts, digits and distortions.

    Returns:
        Images of shape (count, 28, 28), from 0 to 1.

    Raises:
        MissingDependencyError: If matplotlib or Pillow is not installed.

    Example:
        >>> images = draw_digits(3)
        >>> images.shape, images.dtype, float(images.min()), bool(images.max() > 0.9)
        ((3, 28, 28), dtype('float32'), 0.0, True)
    """
    try:
        from matplotlib import get_data_path
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"drawing digits needs {error.name}, which is not installed",
            None,
            'pip install "tieops[examples]"',
        ) from error
    glyphs = _glyphs(Path(get_data_path(), "fonts", "ttf"))
    rng = np.random.default_rng(seed)
    images = np.empty((count, SIDE, SIDE), np.float32)
    size = (SIDE * FINE, SIDE * FINE)
    for image in images:
        glyph = glyphs[rng.integers(len(glyphs))]
        fine = glyph.transform(
            size, Image.Transform.AFFINE, _distortion(rng), Image.Resampling.BILINEAR
        )
        image[:] = np.asarray(fine.reduce(FINE), np.float32) / 255
    return images


def _glyphs(fonts: Path) -> list[Any]:
    """Draw each digit in each font, in the middle of its image."""
    from PIL import Image, ImageDraw, ImageFont

    glyphs: list[Any] = []
    middle = (GLYPH / 2, GLYPH / 2)
    for name in FONTS:
        font = ImageFont.truetype(str(fonts / f"{name}.ttf"), 80)
        for digit in "0123456789":
            glyph = Image.new("L", (GLYPH, GLYPH))
            ImageDraw.Draw(glyph).text(middle, digit, font=font, fill=255, anchor="mm")
            glyphs.append(glyph)
    return glyphs


def _distortion(rng: np.random.Generator) -> tuple[float, ...]:
    """Return how a pixel of the image is looked up in the drawing: six numbers, for Pillow."""
    turn, slant = rng.uniform(-MAX_TURN, MAX_TURN), rng.uniform(-MAX_SLANT, MAX_SLANT)
    cos, sin = np.cos(turn), np.sin(turn)
    scale = rng.uniform(*SCALES, 2) * GLYPH / (SIDE * FINE)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ [[1, slant], [0, 1]] @ np.diag(scale)
    shift = rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * FINE
    offset = GLYPH / 2 - matrix @ (SIDE * FINE / 2 + shift)
    rows = np.column_stack([matrix, offset])
    return tuple(float(each) for each in rows.ravel())
