"""Read a model of any kind, with the reading options that commands share."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

import tieops
from tieops.cli.streams import is_stdin, read_stdin
from tieops.errors import PreconditionError
from tieops.importers import TORCH_SUFFIXES
from tieops.ir.notation import printable
from tieops.progress import progress
from tieops.remote.urls import is_url, shown
from tieops.untrusted.limits import Limits

if TYPE_CHECKING:
    from tieops.model import TiedModel

__all__ = ["Limit", "ModelPath", "Reading", "Trust", "limits_of", "reads_models"]

ModelPath = Annotated[
    str,
    typer.Argument(
        help="An .onnx file or its URL, a .pt2 of torch.export.save, a TorchScript .pt; - for ONNX "
        "on stdin."
    ),
]
"""Text, because a Path makes https:/ of https://."""
Examples = Annotated[
    list[str] | None,
    typer.Option(
        "--example",
        # Escaped: rich would take the bracket for markup.
        help="An example input for a TorchScript file, in order: i64\\[batch=2,length=5]. Sizes "
        "with a name vary.",
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Allow a PyTorch file to run code when it is opened; required for TorchScript.",
    ),
]
Limit = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        help="Limit on an ONNX file, such as nodes=500000 or hard_links=true; may be given "
        "more than once.",
    ),
]

_TORCHSCRIPT_SUFFIXES = tuple(suffix for suffix in TORCH_SUFFIXES if suffix != ".pt2")
_DTYPES = {"f32": "float32", "f64": "float64", "f16": "float16", "i64": "int64", "i32": "int32",
           "i8": "int8", "u8": "uint8", "bool": "bool"}  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """How a command reads its models.

    Args:
        examples: An input for a TorchScript file each, as texts.
        trust: Whether a PyTorch file may run code when it is opened.
        limit: What an ONNX file may hold, as texts.
    """

    examples: Sequence[str]
    trust: bool
    limit: Sequence[str]

    def model(self, name: str) -> TiedModel:
        """Import the only model of a command; see `models`."""
        return self.models(name)[0]

    def models(self, *names: str) -> list[TiedModel]:
        """Import models by their suffixes.

        ``-`` is ONNX on stdin, its data file in the current folder.

        Raises:
            PreconditionError: If a TorchScript file comes without examples of its inputs; if an
                option is given that no model here has a use for, or that cannot be read.
        """
        self.refuse_unused(*names)
        limits = limits_of(self.limit)
        return [
            self._from_torch(Path(name), kind) if kind else _from_onnx(name, limits)
            for name, kind in ((name, _suffix(name)) for name in names)
        ]

    def refuse_unused(self, *names: str) -> None:
        """Refuse an option that none of the models has a use for.

        Raises:
            PreconditionError: With the option.
        """
        kinds = [_suffix(name) for name in names]
        if self.examples and not any(kind in _TORCHSCRIPT_SUFFIXES for kind in kinds):
            raise _unused("--example is for TorchScript files", names, self.examples)
        if self.limit and "" not in kinds:
            raise _unused("--limit is for ONNX files", names, self.limit)
        if self.trust and not any(kinds):
            raise _unused("--trust is for PyTorch files", names)

    def _from_torch(self, path: Path, suffix: str) -> TiedModel:
        examples = self.examples if suffix in _TORCHSCRIPT_SUFFIXES else ()
        found = [_example(text) for text in examples]
        shapes = [axes for _, axes in found]
        tensors = tuple(tensor for tensor, _ in found)
        try:
            return tieops.from_torch(
                path, tensors, dynamic_shapes=shapes if any(shapes) else None, trust=self.trust
            )
        except PreconditionError as error:
            if examples or suffix not in _TORCHSCRIPT_SUFFIXES:
                raise
            raise PreconditionError(
                f"{printable(path.name)} is TorchScript, which does not record its inputs",
                None,
                "give --example 'i64[batch=2,length=5]', one for each input",
            ) from error


def reads_models(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes a ``Reading`` the options of one: --example, --trust, --limit.

    Args:
        command: A function for typer with a keyword-only parameter ``reading``, a ``Reading``.

    Returns:
        The function for typer, with options in the place of that parameter.
    """

    def options(
        *, example: Examples = None, trust: Trust = False, limit: Limit = None
    ) -> dict[str, Reading]:
        return {"reading": Reading(example or (), trust, limit or ())}

    own = inspect.signature(command, eval_str=True)
    shared = inspect.signature(options, eval_str=True).parameters
    parameters: list[inspect.Parameter] = []
    for each in own.parameters.values():
        parameters += shared.values() if each.name == "reading" else [each]

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        command(**options(**{name: given.pop(name) for name in shared}), **given)

    with_options.__signature__ = own.replace(parameters=parameters)  # pyright: ignore[reportAttributeAccessIssue]
    return with_options


def limits_of(texts: Sequence[str] | None) -> Limits:
    """Return the limits that were given, and the default ones for the rest.

    Raises:
        PreconditionError: If one is no limit, or its value is none of its kind.

    Example:
        >>> limits_of(["nodes=1000", "hard_links=true"]).nodes
        1000
    """
    known = get_type_hints(Limits)
    found: dict[str, Any] = {}
    for text in texts or ():
        name, _, value = text.partition("=")
        if name not in known:
            raise PreconditionError(
                f"unknown limit {printable(name)}",
                {"known": ", ".join(known)},
                "use one of them, such as --limit nodes=500000",
            )
        if known[name] is bool and value in ("true", "false"):
            found[name] = value == "true"
        elif known[name] is int and value.isascii() and value.isdecimal() and len(value) < 20:
            found[name] = int(value)
        else:
            such = "true or false" if known[name] is bool else "a number, such as 500000"
            raise PreconditionError(
                f"expected NAME=VALUE for --limit, got {printable(text)}",
                None,
                f"write {name}= and {such}",
            )
    return Limits(**found)


def _unused(what: str, names: Sequence[str], given: Sequence[str] = ()) -> PreconditionError:
    called = " and ".join(map(_called, names))
    none = "is none" if len(names) == 1 else "are none"
    facts = {"given": ", ".join(map(printable, given))} if given else None
    return PreconditionError(f"{what}, and {called} {none}", facts, f"leave {what.split()[0]} out")


def _called(name: str) -> str:
    return printable(shown(name) if is_url(name) else name)


def _suffix(name: str) -> str:
    """Return the suffix of a PyTorch file, and nothing for ONNX."""
    suffix = Path(name).suffix.lower()
    return suffix if suffix in TORCH_SUFFIXES and not is_url(name) else ""


def _from_onnx(name: str, limits: Limits) -> TiedModel:
    if is_stdin(name):
        return tieops.from_onnx(read_stdin(), base_dir=Path.cwd(), limits=limits)
    with progress(f"reading {Path(_called(name)).name}"):
        return tieops.from_onnx(name, limits=limits)


def _example(text: str) -> tuple[Any, dict[int, str]]:
    """Return an example tensor, and the names of its axes that vary."""
    import torch

    match = re.fullmatch(r"(\w+)\[((?:(?:\w+=)?\d+(?:,|(?=\])))*)\]", text)
    if match is None or match[1] not in _DTYPES:
        raise PreconditionError(
            f"expected an example input, got {text!r}",
            {"dtypes": ", ".join(_DTYPES)},
            "write a dtype and sizes, such as i64[batch=2,5]; a named size is dynamic",
        )
    sizes: list[int] = []
    names: dict[int, str] = {}
    for axis, part in enumerate(part for part in match[2].split(",") if part):
        name, _, size = part.rpartition("=")
        sizes.append(int(size))
        if name:
            names[axis] = name
    return torch.zeros(sizes, dtype=getattr(torch, _DTYPES[match[1]])), names
