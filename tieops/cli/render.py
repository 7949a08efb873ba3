"""``tieops render``: a picture of what a model shares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tieops
from tieops.cli.common import Examples, Json, ModelPath, Trust, print_json, read_model

__all__ = ["render"]


def render(
    model: ModelPath,
    out: Annotated[
        Path, typer.Argument(help="The file to write: .html, .svg, .png or .txt tells the format.")
    ],
    before: Annotated[
        str | None, typer.Option(help="The model before a surgery, to draw beside the other one.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="What to call it; the file's name.")] = None,
    example: Examples = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Draw a model's layers, and each shared parameter with the layers that read it.

    tieops render tied.onnx tied.html
    tieops render transfer.onnx transfer.svg --before tied.onnx
    """
    path = tieops.render(
        read_model(model, example, trust=trust),
        out,
        before=None if before is None else read_model(before, example, trust=trust),
        title=Path(model).name if title is None else title,
    )
    if as_json:
        print_json({"path": str(path), "bytes": path.stat().st_size})
    else:
        typer.echo(path)
