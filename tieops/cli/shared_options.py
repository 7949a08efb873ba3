"""Options that commands share, their validation, and output as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tieops
from tieops.arguments import file_path
from tieops.cli.streams import is_stdin
from tieops.errors import PreconditionError
from tieops.importers import TORCH_SUFFIXES
from tieops.ir.notation import printable
from tieops.runtime.session_arguments import Provider

if TYPE_CHECKING:
    from rich.console import Console

    from tieops.model import TiedModel

__all__ = [
    "Json",
    "MemoryLimit",
    "OutPath",
    "ProviderName",
    "Sandboxed",
    "Seconds",
    "Sizes",
    "as_record",
    "discard_message",
    "print_json",
    "refuse_torch",
    "refuse_two_streams",
    "refuse_unused",
    "sandbox_of",
    "sizes_of",
    "terminal",
]

OutPath = Annotated[
    Path, typer.Argument(help="The .onnx file to write; - for stdout.", parser=file_path)
]
"""A Path made by ``file_path``, which refuses what ends as a folder does: pathlib drops the end."""
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
ProviderName = Annotated[
    Provider, typer.Option(help="cuda: CUDA or an error; auto: CUDA if available; cpu.")
]
Sizes = Annotated[
    list[str] | None,
    typer.Option(
        "--size", "-s", help="Size of a symbolic axis of generated inputs, such as batch=4."
    ),
]
Sandboxed = Annotated[
    bool,
    typer.Option("--sandbox", help="Open and run it in a process with limits on memory and time."),
]
MemoryLimit = Annotated[
    float, typer.Option("--memory-limit", help="With --sandbox: memory limit, in GB.")
]
Seconds = Annotated[
    float, typer.Option("--seconds", help="With --sandbox: time limit, in seconds.")
]


def refuse_unused(context: typer.Context, names: Sequence[str], why: str) -> None:
    """Refuse options that were given and that would not be looked at.

    Args:
        context: Of the command.
        names: The options' parameters.
        why: Without what, or beside what.

    Raises:
        PreconditionError: If one of them was given.
    """
    options = {each.name: each.opts[0] for each in context.command.params}
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [options[n] for n, source in sources.items() if source and source.name == "COMMANDLINE"]
    if given:
        raise PreconditionError(
            f"{' and '.join(given)} {'have' if len(given) > 1 else 'has'} no effect {why}",
            None,
            "leave it out",
        )


def refuse_two_streams(first: str | Path, second: str | Path) -> None:
    """Refuse to read two models from one stdin.

    Raises:
        PreconditionError: If both are ``-``.
    """
    if is_stdin(first) and is_stdin(second):
        raise PreconditionError("stdin holds one model, not two", None, "name a file for one")


def refuse_torch(path: Path) -> None:
    """Refuse a file of PyTorch where ONNX Runtime is to run it.

    Raises:
        PreconditionError: If it is one, by its suffix.
    """
    if path.suffix.lower() in TORCH_SUFFIXES:
        raise PreconditionError(
            f"expected an ONNX file, got the PyTorch file {printable(path.name)}",
            None,
            "convert it to .onnx first, with tieops convert",
        )


def sizes_of(texts: Sequence[str] | None) -> dict[str, int] | None:
    """Return the sizes that were given, by axis; None if none was.

    Raises:
        PreconditionError: If an entry is not a name and a number.
    """
    sizes: dict[str, int] = {}
    for text in texts or ():
        name, _, number = text.partition("=")
        if not number.isdecimal():
            raise PreconditionError(
                f"expected NAME=SIZE, got {text!r}", None, "write name=number, such as batch=4"
            )
        sizes[name] = int(number)
    return sizes or None


def sandbox_of(wanted: bool, memory_limit: float, seconds: float) -> tieops.Sandbox | None:
    """Return the sandbox that the options ask for, or None.

    Raises:
        PreconditionError: If a limit is invalid.
    """
    return tieops.Sandbox(memory_bytes=int(memory_limit * 1e9), seconds=seconds) if wanted else None


def as_record(model: TiedModel) -> dict[str, Any]:
    """Return a model as JSON-ready data."""
    return model.analysis.to_dict()


def print_json(data: Any) -> None:
    """Print data as indented JSON."""
    typer.echo(json.dumps(data, indent=2, default=str))


def terminal() -> Console:
    """Return a console of rich for stdout: with colours on a terminal, 80 plain columns elsewhere.

    Lines of more than 100 columns are hard to read, so a wider terminal is not filled.
    """
    from rich.console import Console

    console = Console(highlight=False)
    console.width = min(console.width, 100) if console.is_terminal else 80
    return console


def discard_message(text: str) -> None:
    """Drop a line: with ``--json`` only JSON is printed."""
    del text
