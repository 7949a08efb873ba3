"""The command ``tieops``: one module per command, no tracebacks, exit codes for scripts."""

from __future__ import annotations

import io
import sys
import traceback
from contextlib import suppress
from typing import Annotated

import typer

from tieops._interrupt import raise_at_interrupt
from tieops.cli import check, convert, demo, diff, inspect, render, run, scan, surgery, verify
from tieops.cli.shared_options import print_json, refuse_unused
from tieops.cli.streams import flush_stdout, hold_descriptors
from tieops.errors import (
    ExportError,
    PostconditionError,
    ProviderError,
    TieopsError,
    VerificationError,
)
from tieops.ir.notation import printable

__all__ = ["app", "main"]

DID_NOT_HOLD = 1
MISUSE = 2
INTERRUPTED = 130

app = typer.Typer(
    name="tieops",
    cls=surgery.PassCommands,
    help="Weight tying across PyTorch, ONNX and ONNX Runtime: see it, make it, run it, verify it.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("inspect")(inspect.inspect)
app.command("convert")(convert.convert)
surgery.add_commands(app)
app.command("verify")(verify.verify)
app.command("run")(run.run)
app.command("diff")(diff.diff)
app.command("check")(check.check)
app.command("scan")(scan.scan)
app.command("render")(render.render)
app.command("demo")(demo.demo)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Show versions, and which providers load.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --version: print JSON.")] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug",
            help="Show tracebacks instead of error messages; also allowed after a command.",
        ),
    ] = False,
) -> None:
    """Options of every command."""
    del debug  # main looks for it itself
    if not version:
        refuse_unused(context, ("as_json",), "before a command, without --version")
        return
    from tieops.runtime import environment

    if as_json:
        print_json(environment())
    else:
        for name, found in environment().items():
            typer.echo(f"{name}: {found}")
    raise typer.Exit


def main() -> None:
    """Run the command line: exit 0 when done, 1 when something did not hold, 2 for misuse.

    An error is reported on stderr; so is stdout that takes no more, with exit 1. A closed stdout
    drops the text.
    """
    raise_at_interrupt()
    hold_descriptors()
    try:
        code = _run()
        unwritten = flush_stdout()
        if unwritten is not None:
            code = _tell(unwritten)
    except KeyboardInterrupt:  # the one that typer does not see
        code = INTERRUPTED
    sys.exit(code)


def _run() -> int:
    # Wherever it stands: who adds it has just seen an error, and is at the end of the line.
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    # A pipe of Windows has an encoding of few letters: what it cannot show must not be an error.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        app(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else MISUSE
    except Exception as error:
        if len(arguments) < len(sys.argv) - 1:
            traceback.print_exc()
        if isinstance(error, TieopsError):
            told = error
        else:
            told = (flush_stdout() if isinstance(error, OSError) else None) or _unexpected(error)
        return _tell(told, shown=len(arguments) == len(sys.argv) - 1)
    return 0


def _tell(error: TieopsError, *, shown: bool = True) -> int:
    """Print an error, and return the exit code that it has."""
    if shown:
        with suppress(OSError):
            typer.echo(f"tieops: {error}", err=True)
    failed = (VerificationError, PostconditionError, ExportError, ProviderError)
    return DID_NOT_HOLD if isinstance(error, failed) else MISUSE


def _unexpected(error: Exception) -> PostconditionError:
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    return PostconditionError(
        "unexpected error inside tieops",
        {"Python says": printable(what)},
        "please report this, with the output of the same command run with --debug",
    )
