"""The command ``tieops``: one file a command, errors without tracebacks, exit codes for scripts."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tieops.cli import convert, demo, inspect, render, run, surgery, verify
from tieops.errors import (
    ExportError,
    PostconditionError,
    ProviderError,
    TieopsError,
    VerificationError,
)

__all__ = ["app", "main"]

DID_NOT_HOLD = 1
MISUSE = 2

app = typer.Typer(
    name="tieops",
    help="Weight tying across PyTorch, ONNX and ONNX Runtime: see it, make it, run it, verify it.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("inspect")(inspect.inspect)
app.command("convert")(convert.convert)
app.command("tie")(surgery.tie)
app.command("untie")(surgery.untie)
app.command("replace-head")(surgery.replace_head)
app.command("remove-outputs")(surgery.remove_outputs)
app.command("verify")(verify.verify)
app.command("run")(run.run)
app.command("render")(render.render)
app.command("demo")(demo.demo)


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    from tieops.runtime import environment

    for name, version in environment().items():
        typer.echo(f"{name}: {version}")
    raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show the versions of tieops and what it works with, and which providers load.",
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks instead of errors' texts.")
    ] = False,
) -> None:
    """Options of every command."""
    del version
    _State.debug = debug


class _State:
    debug = False


def main() -> None:
    """Run the command line: exit 0 when done, 1 when something did not hold, 2 for misuse."""
    try:
        app()
    except TieopsError as error:
        if _State.debug:
            raise
        typer.echo(f"tieops: {error}", err=True)
        failed = (VerificationError, PostconditionError, ExportError, ProviderError)
        sys.exit(DID_NOT_HOLD if isinstance(error, failed) else MISUSE)
