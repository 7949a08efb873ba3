"""``tieops inspect``: show what a model holds and shares, what is wasted, and what is wrong."""

from __future__ import annotations

from typing import Annotated

import typer

from tieops.cli.reading import ModelPath, Reading, reads_models
from tieops.cli.shared_options import Json, print_json, terminal

__all__ = ["inspect"]


@reads_models
def inspect(
    model: ModelPath,
    everything: Annotated[
        bool,
        typer.Option(
            "--all", help="Show every tie, problem and layer; do not fold repeated blocks."
        ),
    ] = False,
    *,
    reading: Reading,
    as_json: Json = False,
) -> None:
    """Show what is tied, wasted and wrong in a model, with fixes; then its layers.

    This reads the graph and a few pages of each weight. Repeated blocks are folded into one.

        tieops inspect model.onnx
        tieops inspect model.onnx --all | less
    """
    found = reading.model(model).analysis
    if as_json:
        print_json(found.to_dict())
        return
    from tieops.analysis.report.as_text import print_to

    print_to(terminal(), found, path=model, everything=everything)
