"""The commands that edit a model: one for each pass, with the pass's fields as its options.

A command's options are made when it is called, as the passes take long to load. Until then there is
a placeholder with its help.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import tieops
from tieops.cli.pass_options import in_flags, option_parameters, pass_with
from tieops.cli.reading import ModelPath, Reading, reads_models
from tieops.cli.shared_options import Json, OutPath, print_json
from tieops.cli.streams import check_out, echo, is_stdout, write_model
from tieops.errors import TieopsError
from tieops.ir.notation import brief_bytes

if TYPE_CHECKING:
    from tieops.passes.base import SurgeryPass

__all__ = ["COMMANDS", "PassCommands", "add_commands"]

COMMANDS = {
    "tie": (
        "TiePass",
        """Join equal weights, transposed copies included; or tie the layers named.

        tieops tie exported.onnx tied.onnx
        tieops tie model.onnx tied.onnx -t emb -t fc
        """,
    ),
    "untie": (
        "UntiePass",
        """Give layers weights of their own: all that share one, or the ones named.

        tieops untie tied.onnx free.onnx
        tieops untie tied.onnx free.onnx -t fc
        tieops untie exported.onnx trainable.onnx --accidental
        """,
    ),
    "replace-head": (
        "ReplaceHeadPass",
        """Replace the head by one of another size; a tied one leaves its tie first.

        tieops replace-head tied.onnx transfer.onnx --out-features 15 --lr-factor 10
        """,
    ),
    "remove-outputs": (
        "RemoveDisconnectedOutputsPass",
        """Remove outputs that no input reaches, or named ones, and what only they kept alive.

        tieops remove-outputs model.onnx smaller.onnx
        tieops remove-outputs model.onnx smaller.onnx --keep logits
        """,
    ),
    "remove-branches": (
        "RemoveDeadBranchesPass",
        """Remove branches that never run, of Ifs whose condition is a constant.

        tieops remove-branches model.onnx smaller.onnx
        """,
    ),
    "remove-layers": (
        "RemoveLayersPass",
        """Remove layers whose input can stand for their output, such as a Softmax at the end.

        tieops remove-layers model.onnx logits.onnx --layer Softmax_y
        """,
    ),
    "extract": (
        "ExtractPass",
        """Cut out the part of a model between some values or layers.

        tieops extract model.onnx encoder.onnx --output hidden
        """,
    ),
    "rename": (
        "RenamePass",
        """Rename inputs, outputs, layers and parameters.

        tieops rename model.onnx renamed.onnx --name fc=head --name y=logits
        """,
    ),
    "freeze-inputs": (
        "FreezeInputsPass",
        """Make inputs constants: those named, with the value that is stored or is given.

        tieops freeze-inputs model.onnx frozen.onnx --input scale=0.5
        """,
    ),
}
"""The pass of each command, and its help. ``to_onnx`` runs LowerTiedReadsPass itself."""
_MEANT = {
    "--out-features": ("--num-classes", "--num-labels", "--classes", "--n-classes", "--features",
                       "--output-features", "--out", "--size"),
    "--head": ("--layer", "--target", "-t"),
    "--lr-factor": ("--lr", "--learning-rate", "--weight-lr-factor"),
    "--target": ("--targets", "--layer", "--layers", "--slot", "--parameter", "--tensor"),
    "--output": ("--outputs", "--remove", "--name"),
    "--input": ("--inputs", "--value"),
    "--layer": ("--layers", "--target", "-t", "--name"),
    "--name": ("--names", "--rename"),
    "--include-small": ("--small", "--all"),
    "--dry-run": ("--dryrun", "--plan", "-n"),
}  # fmt: skip
"""What people try in the place of a flag; the first that the command has is what they mean."""

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done; write nothing.")]
Reuse = Annotated[
    bool,
    typer.Option(
        "--reuse",
        help="Leave weights in their data file; write only the graph and new weights.",
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Register a placeholder for the command of each pass; ``PassCommands`` makes the command."""

    def placeholder() -> None: ...

    for name, (_, text) in COMMANDS.items():
        app.command(name, help=inspect.cleandoc(text))(placeholder)


class PassCommands(TyperGroup):
    """Commands of which those of passes are made when they are called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find a command by the first of the arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, _command(name) if name in COMMANDS else command, rest


class _Command(TyperCommand):
    """A command that knows what is meant by flags that it does not have."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments; an unknown flag is refused with the one that may be meant."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            tried = getattr(error, "option_name", None)
            if tried is not None:
                known = {flag for each in self.params for flag in each.opts}
                meant = [flag for flag in _MEANT if flag in known and tried in _MEANT[flag]]
                if meant:
                    error.possibilities = meant[:1]  # pyright: ignore[reportAttributeAccessIssue] - of click's NoSuchOption
            raise


@cache
def _passes() -> dict[str, type[SurgeryPass[Any]]]:
    passes = importlib.import_module("tieops.passes")
    return {command: getattr(passes, name) for command, (name, _) in COMMANDS.items()}


def _command(name: str) -> Any:
    """Return the command of a pass, made from its fields."""
    surgery = _passes()[name]

    def spoken(text: object) -> str:
        return in_flags(str(text), surgery, _passes())

    def command(**given: Any) -> None:
        shared = {key: given.pop(key) for key in own}
        try:
            _apply(pass_with(surgery, given), spoken, **shared)
        except TieopsError as error:
            error.what, error.fix = spoken(error.what), error.fix and spoken(error.fix)
            raise

    def shared(
        model: ModelPath,
        out: OutPath,
        *,
        reuse: Reuse = False,
        dry_run: DryRun = False,
        reading: Reading,
        as_json: Json = False,
    ) -> None: ...

    own = inspect.signature(shared, eval_str=True).parameters
    parameters: Sequence[inspect.Parameter] = [*own.values()]
    command.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
        [*parameters[:2], *option_parameters(surgery), *parameters[2:]]
    )
    single = typer.Typer(add_completion=False)
    text = inspect.cleandoc(COMMANDS[name][1])
    single.command(name, help=text, cls=_Command)(reads_models(command))
    return typer.main.get_command(single)


def _apply(
    surgery: SurgeryPass[Any],
    spoken: Callable[[object], str],
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
                "changes": [spoken(change) for change in result.changes],
                "skips": [spoken(skip) for skip in result.skips],
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
    for text in (spoken(report), end):
        typer.echo(text) if dry_run else echo(text, out)


def _called(out: Path) -> str:
    return "stdout" if is_stdout(out) else str(out)
