"""``tieops check``: check that a model keeps its ties, for scripts and pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tieops.cli.reading import ModelPath, Reading, limits_of, reads_models
from tieops.cli.shared_options import Json, print_json, refuse_torch, refuse_unused
from tieops.cli.streams import is_stdin
from tieops.errors import PreconditionError
from tieops.ir.notation import brief_bytes, counted, printable
from tieops.remote.urls import is_url, shown
from tieops.runtime.session_arguments import Memory
from tieops.untrusted.limits import Limits

if TYPE_CHECKING:
    from tieops.ir.readers.readers import Reader, Readers
    from tieops.model import TiedModel
    from tieops.runtime import Held

__all__ = ["check"]


@dataclass(frozen=True)
class Finding:
    """Something that did not hold, and what fixes it."""

    check: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}; fix: {self.fix}"


@reads_models
def check(
    context: typer.Context,
    model: ModelPath,
    runtime: Annotated[
        bool, typer.Option("--runtime", help="Check that ONNX Runtime undoes no tie on the CPU.")
    ] = False,
    memory: Annotated[
        Memory, typer.Option(help="With --runtime: memory mode of the session.")
    ] = "packed",
    expect_tie: Annotated[
        list[str] | None,
        typer.Option("--expect-tie", help="Check that these share one weight: emb,fc. Repeatable."),
    ] = None,
    max_duplicate_bytes: Annotated[
        int | None,
        typer.Option(
            "--max-duplicate-bytes",
            min=0,
            help="Check that at most this many bytes are duplicates.",
        ),
    ] = None,
    *,
    reading: Reading,
    as_json: Json = False,
) -> None:
    """Run the requested checks: exit 0 if all pass, 1 with a line for each that fails.

    With --runtime, the model is opened in ONNX Runtime, and each tied weight of 1 MB or more has
    to have one resident copy. The other checks read only the file.

        tieops check tied.onnx --runtime --memory mapped
        tieops check tied.onnx --expect-tie emb,fc --max-duplicate-bytes 0
    """
    if not runtime and not expect_tie and max_duplicate_bytes is None:
        raise PreconditionError(
            "nothing to check",
            None,
            "ask for --runtime, --expect-tie NAMES or --max-duplicate-bytes N",
        )
    if not runtime:
        refuse_unused(context, ("memory",), "without --runtime")
    if runtime and (is_stdin(model) or is_url(model)):
        raise PreconditionError(
            "--runtime needs a local file, which it opens in a separate process",
            {"model": "stdin" if is_stdin(model) else shown(model)},
            "name the file",
        )
    if runtime:
        refuse_torch(Path(model))
    tied = reading.model(model)
    found = [each for names in expect_tie or [] for each in _untied(tied, names, model)]
    if max_duplicate_bytes is not None:
        found += _duplicates(tied, max_duplicate_bytes, model)
    if runtime:
        found += _undone(model, memory, limits_of(reading.limit))
    if as_json:
        print_json({"holds": not found, "findings": [asdict(finding) for finding in found]})
    else:
        for finding in found:
            typer.echo(str(finding))
        failed = f"{counted(len(found), 'thing')} did not hold"
        typer.echo(failed if found else "all that was asked holds")
    if found:
        raise typer.Exit(1)


def _untied(model: TiedModel, text: str, path: str) -> Iterator[Finding]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) < 2:
        raise PreconditionError(
            f"expected at least two names for --expect-tie, got {printable(text)!r}",
            None,
            "name two layers, as in emb,fc",
        )
    wanted = [_readers(model, name) for name in names]
    for tie in model.ties:
        tied = {slot.reader for slot in tie.slots}
        if all(tied & readers for readers in wanted) and len(set().union(*wanted) & tied) > 1:
            return
    shown = ", ".join(map(printable, names))
    targets = " ".join(f"-t {name}" for name in names)
    yield Finding("expect-tie", f"{shown}: not tied", f"tieops tie {path} OUT {targets}")


def _readers(model: TiedModel, name: str) -> set[tuple[str, str]]:
    """Return the readers that own a name of a tensor; else those that are called so."""
    from tieops.select import slots_of

    slots = slots_of(model, name)
    if any(name in (slot.layer, slot.name) for slot in slots):
        return {slot.reader for slot in slots}
    return {
        slot.reader
        for parameter in model.parameters
        if name in parameter.names
        for reader in _owners(model.readers(parameter), name)
        for slot in reader.slots
    } or {slot.reader for slot in slots if name not in slot.parameter.names}


def _owners(readers: Readers, name: str) -> tuple[Reader, ...]:
    owners = tuple(reader for reader in readers.all if name in reader.names)
    # A name that belongs to nobody says who is meant by the tensor that has it.
    return owners or (readers.all if name not in readers.unread else ())


def _duplicates(model: TiedModel, limit: int, path: str) -> Iterator[Finding]:
    wasted = sum(duplicate.wasted_bytes for duplicate in model.duplicates)
    if wasted > limit:
        first = printable(model.duplicates[0].parameters[0].name)
        what = f"{brief_bytes(wasted)} stored a second time, {first} first of all"
        yield Finding("max-duplicate-bytes", what, f"tieops tie {path} OUT")


def _undone(path: str, memory: Memory, limits: Limits) -> Iterator[Finding]:
    from tieops.runtime import ledger_of
    from tieops.runtime.memory.single_copy import MIN_BYTES
    from tieops.runtime.session_config import SessionConfig

    for held in ledger_of(SessionConfig(path, "cpu", memory, limits=limits)).undone:
        if held.nbytes < MIN_BYTES:
            continue  # nothing is arranged for these, and little is lost
        names = " = ".join(map(printable, held.names))
        what = f"{names}: {held.verdict}, {brief_bytes(held.resident_bytes)} of "
        yield Finding("runtime", what + brief_bytes(held.nbytes), _fix(held, memory, path))


def _fix(held: Held, memory: Memory, path: str) -> str:
    """Return the command or option that makes this weight one copy."""
    if any("cast" in copy.view for copy in held.copies):
        return "store it as float32: the CPU computes in that and keeps a copy in it"
    if any(copy.place == "private" and copy.kind == "original" for copy in held.copies):
        return f"tieops convert {path} OUT --external-data: inside the file it cannot be mapped"
    if memory == "default":
        return "--memory packed, or --memory mapped"
    if memory == "packed":
        packed = " and ".join(copy.name.partition("+")[0] for copy in held.copies if copy.is_packed)
        return f"--memory mapped: it is packed for {packed}"
    return f"tieops tie {path} OUT, which gives tied reads a form that is not copied"
