"""Read models from stdin, write them to stdout (``-`` in place of a file), and check targets."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

import tieops
from tieops.errors import ExportError, PreconditionError
from tieops.system.folders import temporary_folder
from tieops.system.write_targets import check_target

if TYPE_CHECKING:
    from tieops.exporters.onnx import Written
    from tieops.model import TiedModel

__all__ = [
    "check_file",
    "check_out",
    "echo",
    "flush_stdout",
    "hold_descriptors",
    "is_stdin",
    "is_stdout",
    "read_stdin",
    "source_of",
    "write_model",
]


def _stdout() -> TextIO | None:
    return sys.stdout  # None, whatever its type says, in a process that began with it closed


def is_stdin(path: Path | str) -> bool:
    """Return whether a path stands for stdin."""
    return str(path) in ("-", "/dev/stdin")


def is_stdout(path: Path | str) -> bool:
    """Return whether a path stands for stdout."""
    return str(path) in ("-", "/dev/stdout")


def hold_descriptors() -> None:
    """Give closed standard streams something to be, and let no character break a line.

    With a descriptor below 3 closed, the next file that is opened takes its number, and whatever
    a library prints then lands in that file: in the model that is being written.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    raw = getattr(_stdout(), "buffer", None)
    if isinstance(raw, io.RawIOBase):
        # python -u: what the system takes only in part would be lost, without an error.
        buffered = open(raw.fileno(), "wb", closefd=False)  # noqa: SIM115 - for the whole process
        sys.stdout = io.TextIOWrapper(buffered, sys.stdout.encoding)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # closed, or somebody's own
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore


def flush_stdout() -> ExportError | None:
    """Write what is left for stdout; return the error if that cannot be done.

    What is still left then is dropped, so that the interpreter does not try again when it ends.
    """
    stream = _stdout()
    if stream is None:
        return None
    try:
        stream.flush()
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError, AttributeError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream.fileno())
            os.close(nothing)
        return _not_written(error)
    return None


def _not_written(error: OSError | ValueError) -> ExportError:
    says = error.strerror if isinstance(error, OSError) else str(error)
    return ExportError(
        "cannot write to stdout",
        {"the system says": says},
        "free space on its target, or redirect it elsewhere",
    )


def read_stdin() -> bytes:
    """Return the model that comes in on stdin.

    Raises:
        PreconditionError: If nothing comes in.
    """
    stream: TextIO | None = sys.stdin
    if stream is None:
        raise PreconditionError("stdin is closed", None, "write tieops COMMAND - < model.onnx")
    if stream.isatty():
        raise PreconditionError(
            "stdin is a terminal, not a model", None, "write tieops COMMAND - < model.onnx"
        )
    try:
        data = stream.buffer.read()
    except OSError as error:
        raise PreconditionError(
            "cannot read stdin",
            {"the system says": error.strerror},
            "check what it is redirected from",
        ) from error
    if not data:
        raise PreconditionError("stdin is empty", None, "check the command that writes to the pipe")
    return data


def source_of(path: Path) -> Path | bytes:
    """Return what a session or a comparison opens: the file, or the bytes on stdin."""
    return read_stdin() if is_stdin(path) else path


def check_file(out: Path | None, what: str) -> None:
    """Refuse, before anything is done, a place where no file can be written; None is none.

    Args:
        out: What the option names.
        what: What is to be written there.

    Raises:
        PreconditionError: If it stands for stdout.
        ExportError: If it is neither absent, nor a regular file, nor a link to one.
    """
    if out is None:
        return
    if is_stdout(out):
        raise PreconditionError(f"{what} cannot go to stdout here", None, "name a file")
    check_target(out)


def check_out(out: Path, *, as_json: bool, reuse: bool = False) -> None:
    """Refuse to write a model where text goes, or where no file can be, before anything is done.

    Raises:
        PreconditionError: If stdout is a terminal, or is taken by ``--json``; if the model would
            leave its weights in a file that stdout is not beside.
        ExportError: If it is neither absent, nor a regular file, nor a link to one; if stdout is
            closed.
    """
    if not is_stdout(out):
        check_target(out)
        return
    if reuse:
        raise PreconditionError(
            "a model on stdout must contain its weights",
            None,
            "write it to a file, or drop --reuse",
        )
    if as_json:
        raise PreconditionError(
            "the model and --json cannot both go to stdout", None, "write the model to a file"
        )
    stream = _stdout()
    if stream is None:
        raise ExportError("stdout is closed", None, "write to a file, or to a pipe")
    if stream.isatty():
        raise PreconditionError(
            "stdout is a terminal, and a model is binary", None, "write to a file, or to a pipe"
        )


def write_model(model: TiedModel, out: Path, **options: Any) -> Written:
    """Write a model to a file; or to stdout, in one piece, with its weights inside.

    Raises:
        ExportError: If it cannot be written.
    """
    from tieops.exporters.onnx import Written

    if not is_stdout(out):
        return tieops.to_onnx(model, out, **options)
    with temporary_folder() as folder:
        options["external_data"] = False
        written = tieops.to_onnx(model, Path(folder, "model.onnx"), **options)
        try:
            sys.stdout.buffer.write(written.path.read_bytes())
            sys.stdout.buffer.flush()
        except OSError as error:
            flush_stdout()  # what is left of the model is dropped
            raise _not_written(error) from error
    return Written(out, (), written.stored_bytes, written.file_bytes, notes=written.notes)


def echo(text: object, out: Path) -> None:
    """Print a line: to stderr where the model goes to stdout."""
    typer.echo(text, err=is_stdout(out))
