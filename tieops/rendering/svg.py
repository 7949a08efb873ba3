"""Render a picture as SVG or PNG without a browser: the page's drawing code, run in QuickJS.

So a file shows what the page shows at first, and only one layout and one drawing are maintained.
"""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from tieops.errors import MissingDependencyError

__all__ = ["asset", "asset_path", "png_of", "svg_of"]

_SCRIPTS = ("dagre.min.js", "visible.js", "layout.js", "draw.js", "poster.js")
# QuickJS lacks it; dagre copies plain data with it.
_CLONE = "globalThis.structuredClone = (x) => x === undefined ? x : JSON.parse(JSON.stringify(x));"
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
MAX_SIDE = 8000
"""Pixels of a PNG's longer side; a larger picture is scaled down to it."""


def asset(name: str) -> str:
    """Return the text of a file that ships with the package."""
    return resources.files("tieops.rendering").joinpath("assets", name).read_text("utf-8")


def asset_path(name: str) -> str:
    """Return the path of a file that ships with the package."""
    return str(resources.files("tieops.rendering").joinpath("assets", name))


def svg_of(data: dict[str, Any]) -> str:
    """Return the drawing of pictures as SVG.

    Args:
        data: Pictures, headings and changes as plain data.

    Raises:
        MissingDependencyError: If the extra ``render`` is not installed.
    """
    try:
        import dukpy
    except ImportError:
        raise _missing("dukpy") from None
    scripts = "\n".join(asset(name) for name in _SCRIPTS)
    tree: Any = dukpy.evaljs(f"{_CLONE}\n{scripts}\nPoster.draw(dukpy.data);", data=data)
    style = ["style", {}, asset("picture.css")]
    svg = [tree[0], tree[1], style, *tree[2:]]
    return "".join(_written(svg)) + "\n"


def png_of(data: dict[str, Any]) -> bytes:
    """Return the drawing of pictures as PNG, with the fonts that ship with the package.

    Args:
        data: Pictures, headings and changes as plain data.

    Raises:
        MissingDependencyError: If the extra ``render`` is not installed.
    """
    try:
        import resvg_py
    except ImportError:
        raise _missing("resvg-py") from None
    svg = svg_of(data)
    sides = re.search(r'width="([\d.]+)" height="([\d.]+)"', svg)
    assert sides is not None
    zoom = min(2.0, MAX_SIDE / max(float(sides[1]), float(sides[2])))
    fonts = [asset_path(f"Roboto-{weight}.ttf") for weight in ("Regular", "Medium")]
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=zoom, font_files=fonts))


def _missing(package: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"drawing SVG or PNG needs {package}, which is not installed",
        None,
        'pip install "tieops[render]"; HTML and text need nothing more',
    )


def _written(tree: Any) -> list[str]:
    """Return a tree of elements as XML."""
    if isinstance(tree, str):
        return [escape(_NOT_XML.sub("\ufffd", tree))]
    tag, attributes, *children = tree
    given = "".join(
        f" {name}={quoteattr(_NOT_XML.sub(chr(0xFFFD), _plain(value)))}"
        for name, value in attributes.items()
    )
    if not children:
        return [f"<{tag}{given}/>"]
    inner = [part for child in children for part in _written(child)]
    return [f"<{tag}{given}>", *inner, f"</{tag}>"]


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
