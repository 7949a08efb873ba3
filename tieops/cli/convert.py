"""``tieops convert``: convert any supported model to one tied ONNX model."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from tieops.cli.reading import ModelPath, Reading, reads_models
from tieops.cli.shared_options import Json, OutPath, print_json
from tieops.cli.streams import check_out, echo, write_model
from tieops.ir.notation import brief_bytes, counted

__all__ = ["convert"]


@reads_models
def convert(
    model: ModelPath,
    out: OutPath,
    external_data: Annotated[
        bool | None,
        typer.Option(
            "--external-data/--inline",
            help="Store weights in a data file or in the model; default: by size.",
        ),
    ] = None,
    tie_form: Annotated[
        Literal["gemm", "portable"],
        typer.Option(help="gemm stays one copy in ONNX Runtime; portable uses a plain Transpose."),
    ] = "gemm",
    join: Annotated[
        bool, typer.Option(help="Join equal weights that the file stores more than once.")
    ] = True,
    *,
    reading: Reading,
    as_json: Json = False,
) -> None:
    """Convert PyTorch or ONNX to ONNX with every parameter stored once.

    tieops convert model.pt2 tied.onnx
    tieops convert exported.onnx tied.onnx
    """
    from tieops.passes.base import run
    from tieops.passes.tie import TiePass

    check_out(out, as_json=as_json)
    source = reading.model(model)
    tied, result = run(TiePass(), source) if join else (source, None)
    written = write_model(tied, out, external_data=external_data, tie_form=tie_form)
    changes = list(result.changes) if result else []
    if as_json:
        print_json(
            {
                "path": str(written.path),
                "data_path": str(written.data_path) if written.data_path else None,
                "stored_bytes": written.stored_bytes,
                "stored_bytes_before": source.ledger.stored_bytes,
                "ties": [list(each.names) for each in tied.ties],
                "changes": [str(change) for change in changes],
            }
        )
        return
    for change in changes:
        echo(change, out)
    before = brief_bytes(source.ledger.stored_bytes)
    echo(f"{counted(len(tied.ties), 'tie')}, {before} before", out)
    echo(written, out)
