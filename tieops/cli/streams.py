"""Models from stdin and to stdout: ``-`` in place of a file."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import typer

import tieops
from tieops.errors import PreconditionError
from tieops.exporters.onnx import Written
from tieops.tied_model import TiedModel

__all__ = ["check_out", "echo", "is_stream", "read_stdin", "source_of", "write_model"]


def is_stream(path: Path | str) -> bool:
    """Tell whether a path stands for stdin or stdout."""
    return str(path) == "-"


def read_stdin() -> bytes:
    """Return the model that comes in on stdin.

    Raises:
        PreconditionError: If nothing comes in.
    """
    if sys.stdin.isatty():
        raise PreconditionError(
            "stdin is a terminal, not a model", None, "write tieops COMMAND - < model.onnx"
        )
    data = sys.stdin.buffer.read()
    if not data:
        raise PreconditionError("nothing came in on stdin", None, "check what writes to the pipe")
    return data


def source_of(path: Path) -> Path | bytes:
    """Return what a session or a comparison opens: the file, or the bytes on stdin."""
    return read_stdin() if is_stream(path) else path


def check_out(out: Path, *, as_json: bool, reuse: bool = False) -> None:
    """Refuse to write a model where text goes, before anything is done.

    Raises:
        PreconditionError: If stdout is a terminal, or is taken by ``--json``; if the model would
            leave its weights in a file that stdout is not beside.
    """
    if not is_stream(out):
        return
    if reuse:
        raise PreconditionError(
            "a model on stdout has its weights inside", None, "write it to a file, or drop --reuse"
        )
    if as_json:
        raise PreconditionError(
            "the model and --json cannot both go to stdout", None, "write the model to a file"
        )
    if sys.stdout.isatty():
        raise PreconditionError(
            "stdout is a terminal: a model would garble it", None, "write to a file, or to a pipe"
        )


def write_model(model: TiedModel, out: Path, **options: Any) -> Written:
    """Write a model to a file; or to stdout, in one piece, with its weights inside."""
    if not is_stream(out):
        return tieops.to_onnx(model, out, **options)
    with tempfile.TemporaryDirectory(prefix="tieops-") as folder:
        options["external_data"] = False
        written = tieops.to_onnx(model, Path(folder, "model.onnx"), **options)
        sys.stdout.buffer.write(written.path.read_bytes())
        sys.stdout.buffer.flush()
    return Written(out, (), written.stored_bytes, written.file_bytes, notes=written.notes)


def echo(text: object, out: Path) -> None:
    """Print a line: to stderr where the model goes to stdout."""
    typer.echo(text, err=is_stream(out))
