"""``tieops.render``: draw a model and write the picture to a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tieops.arguments import file_path
from tieops.errors import PreconditionError
from tieops.exporters.files import new_file
from tieops.model import Model, as_model
from tieops.rendering.picture import picture_of
from tieops.rendering.picture_changes import compared
from tieops.system.write_targets import check_target

__all__ = ["FORMATS", "render"]

FORMATS = (".html", ".svg", ".png", ".txt")


def render(model: Model, path: str | Path, *, before: Model | None = None, title: str = "") -> Path:
    """Write a picture of what a model shares: its layers, and each shared parameter's readers.

    A parameter that several layers read is drawn once, in a colour and with a letter of its own,
    and a line leads to each reader with the view on it. Repeated blocks are folded into one box.
    The HTML page unfolds them, searches, and lists the ties; it is one file and needs no network.

    Args:
        model: The model.
        path: Where to write; the suffix ``.html``, ``.svg``, ``.png`` or ``.txt`` is the format.
            SVG and PNG need the extra ``render``.
        before: The model before a surgery. It is drawn beside the other one, with what is new,
            gone or changed described in words and marked in the pictures.
        title: What to call the model in the picture.

    Returns:
        The path that was written.

    Raises:
        PreconditionError: If the suffix is none of the four.
        UnsupportedModelError: If it is no TiedModel.
        MissingDependencyError: If it is SVG or PNG and the extra ``render`` is not installed.
        ExportError: If the file cannot be written, or the target is neither absent, nor a regular
            file, nor a link to one.

    Example:
        >>> import tempfile, onnx_ir, tieops
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (int64[n] x) => (float[n, 2] y) <float[2, 2] w = {1,2,3,4}>
        ... { h = Gather(w, x)
        ...   y = MatMul(h, w) }''')
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = render(tieops.from_onnx(graph), f"{folder}/model.txt")
        ...     print(path.read_text("utf-8"))
        [A] w: f32[2,2], 16 B (storage)
        <BLANKLINE>
        input x: i64[n]
        Gather_h: Embedding
          [A] weight f32[2,2], 16 B
        MatMul_y: Linear
          [A] weight f32[2,2], 16 B
        output y: f32[n,2]
        <BLANKLINE>
        32 B read, 16 B stored
        <BLANKLINE>
    """
    path = file_path(path)
    model = as_model(model)
    before = None if before is None else as_model(before)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise PreconditionError(
            f"unsupported picture format: {path.name}",
            {"formats": ", ".join(FORMATS)},
            "give the file one of these suffixes",
        )
    check_target(path)
    picture = picture_of(model, title)
    if before is None:
        data = {"pictures": [picture.as_data()], "headings": [""], "changes": []}
    else:
        data = compared(picture_of(before), picture)
    content = _writers()[suffix](data)
    with new_file(path) as file:
        file.write(content)
    return path


def _writers() -> dict[str, Callable[[dict[str, Any]], bytes]]:
    from tieops.rendering.html_page import html_of
    from tieops.rendering.picture_text import text_of
    from tieops.rendering.svg import png_of, svg_of

    return {
        ".html": lambda data: html_of(data).encode(),
        ".svg": lambda data: svg_of(data).encode(),
        ".png": png_of,
        ".txt": lambda data: text_of(data).encode(),
    }
