"""``tieops tie``: join what an ONNX model stores more than once, or tie what is named."""

from __future__ import annotations

from typing import Annotated

import typer

import tieops
from tieops.cli.common import Json, ModelPath, OutPath, print_json, read_model
from tieops.ir.brief import brief_bytes
from tieops.passes.base import run
from tieops.passes.tie import TiePass

__all__ = ["tie"]


def tie(
    model: ModelPath,
    out: OutPath,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target", "-t", help="A layer, slot or parameter to tie; name two or more of them."
        ),
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="Whose values stay, where the targets' values differ.")
    ] = None,
    include_small: Annotated[
        bool, typer.Option(help="Join small and constant duplicates too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Say what would be done; write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Join equal weights, transposed copies included; or tie the layers named.

    tieops tie exported.onnx tied.onnx
    tieops tie model.onnx tied.onnx -t emb -t fc
    """
    source = read_model(model)
    surgery = TiePass(targets=tuple(target or ()), keep=keep or False, include_small=include_small)
    tied, result = run(surgery, source)
    before, after = source.ledger.stored_bytes, tied.ledger.stored_bytes
    if not dry_run:
        tieops.to_onnx(tied, out)
    if as_json:
        print_json(
            {
                "changes": [str(change) for change in result.changes],
                "skips": [str(skip) for skip in result.skips],
                "ties_before": len(source.ties),
                "ties_after": len(tied.ties),
                "stored_bytes_before": before,
                "stored_bytes_after": after,
                "written": None if dry_run else str(out),
            }
        )
        return
    for line in (*result.changes, *result.skips):
        typer.echo(line)
    typer.echo(f"ties    {len(source.ties)} → {len(tied.ties)}")
    typer.echo(f"stored  {brief_bytes(before)} → {brief_bytes(after)}")
    typer.echo("nothing written (dry run)" if dry_run else f"wrote   {out}")
