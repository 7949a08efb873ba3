"""``tieops render``: draw what a model shares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tieops
from tieops.arguments import file_path
from tieops.cli.reading import ModelPath, Reading, reads_models
from tieops.cli.shared_options import Json, print_json
from tieops.cli.streams import check_file

__all__ = ["render"]


@reads_models
def render(
    model: ModelPath,
    out: Annotated[
        Path,
        typer.Argument(
            help="The file to write: .html, .svg, .png or .txt tells the format.", parser=file_path
        ),
    ],
    before: Annotated[
        str | None, typer.Option(help="The model before a surgery, drawn beside this one.")
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="Title of the picture; default: the name of the file.")
    ] = None,
    *,
    reading: Reading,
    as_json: Json = False,
) -> None:
    """Draw a model's layers, and each shared parameter with the layers that read it.

    tieops render tied.onnx tied.html
    tieops render transfer.onnx transfer.svg --before tied.onnx
    """
    check_file(out, "a picture")
    drawn, *beside = reading.models(model, *([] if before is None else [before]))
    path = tieops.render(
        drawn,
        out,
        before=beside[0] if beside else None,
        title=Path(model).name if title is None else title,
    )
    if as_json:
        print_json({"path": str(path), "bytes": path.stat().st_size})
    else:
        typer.echo(path)
