"""``tieops diff``: list what an edit changed."""

from __future__ import annotations

from typing import Annotated

import typer

import tieops
from tieops.cli.reading import ModelPath, Reading, reads_models
from tieops.cli.shared_options import Json, print_json, refuse_two_streams

__all__ = ["diff"]


@reads_models
def diff(
    before: ModelPath,
    after: Annotated[str, typer.Argument(help="The model to compare with it.")],
    everything: Annotated[
        bool, typer.Option("--all", help="List every difference instead of the first ones.")
    ] = False,
    *,
    reading: Reading,
    as_json: Json = False,
) -> None:
    """List what changed: signature, ties, parameters, layers and bytes; exit 1 on any change.

    Nothing is run; use tieops verify to check that two models compute the same. Values are compared
    bit for bit, and a parameter that differs only in name is reported as renamed.

        tieops diff exported.onnx tied.onnx
    """
    refuse_two_streams(before, after)
    found = tieops.diff(*reading.models(before, after))
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo(found.text(everything=everything))
    if found:
        raise typer.Exit(1)
