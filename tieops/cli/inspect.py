"""``tieops inspect``: what a model holds and shares."""

from __future__ import annotations

import typer

from tieops.cli.common import Examples, Json, ModelPath, as_record, print_json, read_model

__all__ = ["inspect"]


def inspect(model: ModelPath, example: Examples = None, as_json: Json = False) -> None:
    """Show a model's layers, what they read, what is tied, and what is stored twice.

    Looking costs the graph and a few pages of the weights, not the weights.

        tieops inspect model.onnx
    """
    tied = read_model(model, example)
    if as_json:
        print_json(as_record(tied))
    else:
        typer.echo(str(tied))
