"""``tieops tie``, ``untie``, ``replace-head``, ``remove-outputs`` and ``remove-branches``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tieops
from tieops.cli.reading import ModelPath, Reading, reads_models
from tieops.cli.shared_options import Json, OutPath, print_json
from tieops.cli.streams import check_out, echo, is_stdout, write_model
from tieops.ir.notation import brief_bytes

if TYPE_CHECKING:
    from tieops.passes.base import SurgeryPass

__all__ = ["remove_branches", "remove_outputs", "replace_head", "tie", "untie"]

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]
Reuse = Annotated[
    bool,
    typer.Option(
        "--reuse",
        help="Leave weights in the data file where they are; write the graph, and what is new.",
    ),
]


def _apply(
    surgery: SurgeryPass[Any],
    model: str,
    out: Path,
    *,
    reuse: bool,
    dry_run: bool,
    reading: Reading,
    as_json: bool,
) -> None:
    if not dry_run:
        check_out(out, as_json=as_json, reuse=reuse)
    report = tieops.Pipeline([surgery])(reading.model(model))
    external_data = "reuse" if reuse else None
    written = None if dry_run else write_model(report.model, out, external_data=external_data)
    _, result = report.results[0]
    if as_json:
        print_json(
            {
                "changes": [str(change) for change in result.changes],
                "skips": [str(skip) for skip in result.skips],
                "ties_before": len(report.before.ties),
                "ties_after": len(report.model.ties),
                "stored_bytes_before": report.before.ledger.stored_bytes,
                "stored_bytes_after": report.model.ledger.stored_bytes,
                "stored_bytes_written": None if written is None else written.stored_bytes,
                "written": None if written is None else str(written.path),
                "data": [] if written is None else [str(each) for each in written.data_paths],
            }
        )
        return
    end = "nothing written (dry run)" if written is None else f"wrote   {_called(out)}"
    if written is not None and written.unread_bytes:
        end += f", {brief_bytes(written.unread_bytes)} of its data unread"
    for text in (str(report), end):
        typer.echo(text) if dry_run else echo(text, out)


def _called(out: Path) -> str:
    return "stdout" if is_stdout(out) else str(out)


@reads_models
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
        bool, typer.Option("--include-small", help="Join small and constant duplicates too.")
    ] = False,
    reuse: Reuse = False,
    dry_run: DryRun = False,
    *,
    reading: Reading,
    as_json: Json = False,
) -> None:
    """Join equal weights, transposed copies included; or tie the layers named.

    tieops tie exported.onnx tied.onnx
    tieops tie model.onnx tied.onnx -t emb -t fc
    """
    from tieops.passes.tie import TiePass

    surgery = TiePass(targets=tuple(target or ()), keep=keep or False, include_small=include_small)
    _apply(surgery, model, out, reuse=reuse, dry_run=dry_run, reading=reading, as_json=as_json)


@reads_models
def untie(
    model: ModelPath,
    out: OutPath,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", "-t", help="A layer or slot that leaves its tie; all by default."),
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="Those that leave stay tied with each other.")
    ] = False,
    accidental: Annotated[
        bool,
        typer.Option(
            "--accidental", help="Take apart what an exporter merged because it began equal."
        ),
    ] = False,
    reuse: Reuse = False,
    dry_run: DryRun = False,
    *,
    reading: Reading,
    as_json: Json = False,
) -> None:
    """Give layers weights of their own: all that share one, or the ones named.

    tieops untie tied.onnx free.onnx
    tieops untie tied.onnx free.onnx -t fc
    tieops untie exported.onnx trainable.onnx --accidental
    """
    from tieops.passes.untie import UntiePass

    surgery = UntiePass(targets=tuple(target or ()), together=together, accidental=accidental)
    _apply(surgery, model, out, reuse=reuse, dry_run=dry_run, reading=reading, as_json=as_json)


@reads_models
def replace_head(
    model: ModelPath,
    out: OutPath,
    out_features: Annotated[int, typer.Option(help="How many outputs the new head has.")],
    head: Annotated[
        str | None, typer.Option(help="The layer to replace; the last one by default.")
    ] = None,
    lr_factor: Annotated[float, typer.Option(help="Learn-rate factor of the new weight.")] = 1.0,
    bias_lr_factor: Annotated[
        float | None, typer.Option(help="The same for the new bias; --lr-factor by default.")
    ] = None,
    init: Annotated[
        str, typer.Option(help="kaiming_uniform, xavier_uniform, normal or zeros.")
    ] = "kaiming_uniform",
    bias: Annotated[bool, typer.Option(help="Whether the new head has a bias.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the new values.")] = 0,
    name: Annotated[
        str | None, typer.Option(help="What to call the new head; the old name by default.")
    ] = None,
    reuse: Reuse = False,
    dry_run: DryRun = False,
    *,
    reading: Reading,
    as_json: Json = False,
) -> None:
    """Replace the head by one of another size; a tied one leaves its tie first.

    tieops replace-head tied.onnx transfer.onnx --out-features 15 --lr-factor 10
    """
    from tieops.passes.replace_head import ReplaceHeadPass

    surgery = ReplaceHeadPass(
        head=head,
        out_features=out_features,
        lr_factor=lr_factor,
        bias_lr_factor=bias_lr_factor,
        init=init,
        bias=bias,
        seed=seed,
        name=name,
    )
    _apply(surgery, model, out, reuse=reuse, dry_run=dry_run, reading=reading, as_json=as_json)


@reads_models
def remove_outputs(
    model: ModelPath,
    out: OutPath,
    output: Annotated[
        list[str] | None,
        typer.Option("--output", help="An output to remove, connected or not."),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", help="An output to keep; all others go.")
    ] = None,
    unused_inputs: Annotated[
        bool, typer.Option("--unused-inputs", help="Remove inputs that nothing reads, too.")
    ] = False,
    reuse: Reuse = False,
    dry_run: DryRun = False,
    *,
    reading: Reading,
    as_json: Json = False,
) -> None:
    """Remove outputs that no input reaches, or named ones, and what only they kept alive.

    tieops remove-outputs model.onnx smaller.onnx
    tieops remove-outputs model.onnx smaller.onnx --keep logits
    """
    from tieops.passes.disconnected_outputs import RemoveDisconnectedOutputsPass

    surgery = RemoveDisconnectedOutputsPass(
        outputs=tuple(output or ()), keep=tuple(keep or ()), unused_inputs=unused_inputs
    )
    _apply(surgery, model, out, reuse=reuse, dry_run=dry_run, reading=reading, as_json=as_json)


@reads_models
def remove_branches(
    model: ModelPath,
    out: OutPath,
    reuse: Reuse = False,
    dry_run: DryRun = False,
    *,
    reading: Reading,
    as_json: Json = False,
) -> None:
    """Remove branches that never run, of Ifs whose condition is a constant.

    tieops remove-branches model.onnx smaller.onnx
    """
    from tieops.passes.dead_branches import RemoveDeadBranchesPass

    _apply(
        RemoveDeadBranchesPass(),
        model,
        out,
        reuse=reuse,
        dry_run=dry_run,
        reading=reading,
        as_json=as_json,
    )
