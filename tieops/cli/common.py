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
    "Sandboxed",
    "Seconds",
    "Trust",
    "as_record",
    "print_json",
    "read_model",
    "sandbox_of",
    "say_nothing",
    "terminal",
]

ModelPath = Annotated[
    Path,
    typer.Argument(
        help="An .onnx file, a .pt2 of torch.export.save, a TorchScript .pt; - for ONNX on stdin."
    ),
]
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

_DTYPES = {"f32": "float32", "f64": "float64", "f16": "float16", "i64": "int64", "i32": "int32",
           "i8": "int8", "u8": "uint8", "bool": "bool"}  # fmt: skip


def read_model(
    path: Path, examples: Sequence[str] | None = None, *, trust: bool = False
) -> TiedModel:
    """Import a model by its suffix; ``-`` is ONNX on stdin, its data file in the current folder."""
    if is_stream(path):
        return tieops.from_onnx(read_stdin(), base_dir=Path.cwd())
    if path.suffix.lower() not in TORCH_SUFFIXES:
        with progress(f"reading {printable(path.name)}"):
            return tieops.from_onnx(path)
    found = [_example(text) for text in examples or ()]
    shapes = [axes for _, axes in found]
    return tieops.from_torch(
        path,
        tuple(tensor for tensor, _ in found),
        dynamic_shapes=shapes if any(shapes) else None,
        trust=trust,
    )


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
