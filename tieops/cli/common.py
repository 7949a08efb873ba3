"""What the commands share: reading a model of any kind, printing it as text or JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tieops
from tieops.cli.streams import is_stream, read_stdin
from tieops.errors import PreconditionError
from tieops.importers import TORCH_SUFFIXES
from tieops.importers.remote import is_url, shown
from tieops.ir.brief import printable
from tieops.progress import progress
from tieops.runtime import Provider
from tieops.tied_model import TiedModel
from tieops.verify import Sandbox

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Json",
    "MemoryLimit",
    "ModelPath",
    "OutPath",
    "ProviderName",
    "Sandboxed",
    "Seconds",
    "Sizes",
    "Trust",
    "as_record",
    "print_json",
    "read_model",
    "refuse_torch",
    "refuse_two_streams",
    "refuse_unused",
    "sandbox_of",
    "say_nothing",
    "sizes_of",
    "terminal",
]

ModelPath = Annotated[
    str,
    typer.Argument(
        help="An .onnx file or its URL, a .pt2 of torch.export.save, a TorchScript .pt; - for ONNX "
        "on stdin."
    ),
]
"""Text, because a Path makes https:/ of https://."""
OutPath = Annotated[Path, typer.Argument(help="The .onnx file to write; - for stdout.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
ProviderName = Annotated[
    Provider, typer.Option(help="cuda: CUDA or an error; auto: what is there; cpu.")
]
Examples = Annotated[
    list[str] | None,
    typer.Option(
        "--example",
        help="An example input for a TorchScript file, in order: i64[batch=2,length=5]. Sizes with "
        "a name vary.",
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="A PyTorch file may run code when it is opened; TorchScript has to be trusted.",
    ),
]
Sizes = Annotated[
    list[str] | None,
    typer.Option("--size", "-s", help="A symbolic size of made inputs, such as batch=4."),
]
Sandboxed = Annotated[
    bool,
    typer.Option(
        "--sandbox", help="Open and run it in a process with an end to its memory and time."
    ),
]
MemoryLimit = Annotated[
    float, typer.Option("--memory-limit", help="With --sandbox: GB beyond an empty process.")
]
Seconds = Annotated[float, typer.Option("--seconds", help="With --sandbox: the longest it runs.")]

_TORCHSCRIPT_SUFFIXES = tuple(suffix for suffix in TORCH_SUFFIXES if suffix != ".pt2")
_DTYPES = {"f32": "float32", "f64": "float64", "f16": "float16", "i64": "int64", "i32": "int32",
           "i8": "int8", "u8": "uint8", "bool": "bool"}  # fmt: skip


def read_model(
    model: str, examples: Sequence[str] | None = None, *, trust: bool = False
) -> TiedModel:
    """Import a model by its suffix; ``-`` is ONNX on stdin, its data file in the current folder.

    Raises:
        PreconditionError: If a TorchScript file comes without an example of its inputs, or another
            one with it.
    """
    path = Path(shown(model) if is_url(model) else model)
    suffix = path.suffix.lower()
    if examples and (is_stream(model) or is_url(model) or suffix not in _TORCHSCRIPT_SUFFIXES):
        raise PreconditionError(
            f"--example is for TorchScript files, and {printable(str(path))} is none",
            {"given": ", ".join(map(printable, examples))},
            "leave --example out: the file says what its inputs are",
        )
    if is_stream(model):
        return tieops.from_onnx(read_stdin(), base_dir=Path.cwd())
    if suffix not in TORCH_SUFFIXES or is_url(model):
        with progress(f"reading {printable(path.name)}"):
            return tieops.from_onnx(model)
    found = [_example(text) for text in examples or ()]
    shapes = [axes for _, axes in found]
    tensors = tuple(tensor for tensor, _ in found)
    try:
        return tieops.from_torch(
            path, tensors, dynamic_shapes=shapes if any(shapes) else None, trust=trust
        )
    except PreconditionError as error:
        if examples or suffix not in _TORCHSCRIPT_SUFFIXES:
            raise
        raise PreconditionError(
            f"{printable(path.name)} is TorchScript, which does not say what its inputs are",
            None,
            "tieops convert MODEL OUT.onnx --example 'i64[batch=2,length=5]', an example for each "
            "input; inspect and render take --example too",
        ) from error


def _example(text: str) -> tuple[Any, dict[int, str]]:
    """Return an example tensor, and the names of its axes that vary."""
    import torch

    match = re.fullmatch(r"(\w+)\[((?:(?:\w+=)?\d+(?:,|(?=\])))*)\]", text)
    if match is None or match[1] not in _DTYPES:
        raise PreconditionError(
            f"{text!r} is no example input",
            {"dtypes": ", ".join(_DTYPES)},
            "write dtype and sizes, such as i64[batch=2,5]; a size with a name varies",
        )
    sizes: list[int] = []
    names: dict[int, str] = {}
    for axis, part in enumerate(part for part in match[2].split(",") if part):
        name, _, size = part.rpartition("=")
        sizes.append(int(size))
        if name:
            names[axis] = name
    return torch.zeros(sizes, dtype=getattr(torch, _DTYPES[match[1]])), names


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
    if is_stream(first) and is_stream(second):
        raise PreconditionError("stdin holds one model, not two", None, "name a file for one")


def refuse_torch(path: Path) -> None:
    """Refuse a file of PyTorch where ONNX Runtime is to run it.

    Raises:
        PreconditionError: If it is one, by its suffix.
    """
    if path.suffix.lower() in TORCH_SUFFIXES:
        raise PreconditionError(
            f"{printable(path.name)} is a PyTorch file, and ONNX Runtime runs ONNX",
            None,
            "tieops convert it to .onnx first",
        )


def sizes_of(texts: Sequence[str] | None) -> dict[str, int] | None:
    """Return the sizes that were given, by axis; None if none was.

    Raises:
        PreconditionError: If one is no name and number.
    """
    sizes: dict[str, int] = {}
    for text in texts or ():
        name, _, number = text.partition("=")
        if not number.isdecimal():
            raise PreconditionError(
                f"{text!r} is no size", None, "write name=number, such as batch=4"
            )
        sizes[name] = int(number)
    return sizes or None


def sandbox_of(wanted: bool, memory_limit: float, seconds: float) -> Sandbox | None:
    """Return the sandbox that the options ask for, or None.

    Raises:
        PreconditionError: If a limit is no limit.
    """
    return Sandbox(memory_bytes=int(memory_limit * 1e9), seconds=seconds) if wanted else None


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


def say_nothing(text: str) -> None:
    """Drop a line: with ``--json`` only JSON is printed."""
    del text
