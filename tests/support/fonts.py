"""The fonts of PNG files, cut down to the letters that pictures are written in.

    python -m tests.support.fonts Roboto-Regular.ttf Roboto-Medium.ttf

Takes the whole fonts (https://github.com/googlefonts/roboto-classic) and writes what ships with the
package: Latin letters and the signs that the drawing uses, without kerning, and without hints for
small screens, which a picture of twice the pixels does not need.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fontTools import subset

__all__ = ["LETTERS", "cut"]

ASSETS = Path(__file__).parents[2] / "tieops" / "rendering" / "assets"
LETTERS = [
    *range(0x20, 0x7F),
    *range(0xA0, 0x100),
    *range(0x2010, 0x2028),
    *(ord(sign) for sign in "≈≠≤≥−"),
]


def cut(font: Path, to: Path) -> None:
    """Write a font with no more than these letters."""
    options = subset.Options()
    options.hinting = False
    options.layout_features = []
    options.drop_tables += ["STAT", "GDEF"]
    options.name_IDs = [0, 1, 2, 4, 6, 13, 14, 16, 17]
    opened = subset.load_font(font, options)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=LETTERS)
    cutter.subset(opened)
    subset.save_font(opened, to, options)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        cut(path, ASSETS / path.name)
