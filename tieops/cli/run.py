"""``tieops run``: run a model once, on the GPU or the CPU, and report which."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import tieops
from tieops.arguments import file_path
from tieops.cli.reading import Limit, limits_of
from tieops.cli.shared_options import (
    Json,
    MemoryLimit,
    ProviderName,
    Sandboxed,
    Seconds,
    Sizes,
    print_json,
    refuse_torch,
    refuse_unused,
    sandbox_of,
    sizes_of,
)
from tieops.cli.streams import check_file, source_of
from tieops.errors import PreconditionError
from tieops.ir.notation import printable

__all__ = ["run"]


def run(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="The .onnx file to run; - for stdin.")],
    given: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", help="name=file.npy, or one .npz with all inputs."),
    ] = None,
    size: Sizes = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Write the outputs to this .npz.", parser=file_path, metavar="PATH"
        ),
    ] = None,
    provider: ProviderName = "auto",
    seed: Annotated[int, typer.Option(help="Seed of generated inputs.")] = 0,
    memory: Annotated[
        bool, typer.Option("--memory", help="Afterwards, list the copies of each weight in memory.")
    ] = False,
    limit: Limit = None,
    sandbox: Sandboxed = False,
    memory_limit: MemoryLimit = 4.0,
    seconds: Seconds = 60.0,
    as_json: Json = False,
) -> None:
    """Run a model on inputs from files, or on inputs generated from its signature.

    tieops run tied.onnx --size batch=4 --size sequence=16
    tieops run tied.onnx -i x=tokens.npy -o outputs.npz --memory
    """
    from tieops.verification.input_sets import make_inputs
    from tieops.verification.sandboxed_sides import SandboxedOnnx

    refuse_torch(model)
    check_file(None if out is None else _npz(out), "arrays")
    if given:
        refuse_unused(context, ("size", "seed"), "where inputs are given")
    feeds = _read_inputs(given or [])
    source, limits = source_of(model), limits_of(limit)
    if limit or not feeds:  # ONNX Runtime knows no limits
        read = tieops.from_onnx(source, limits=limits)
        feeds = feeds or make_inputs(read.ir, sizes=sizes_of(size), seed=seed)
    held = sandbox_of(sandbox, memory_limit, seconds)
    if held is not None:
        _check_sandboxed(provider, memory)
        with closing(SandboxedOnnx(source, held, limits=limits)) as side:
            names = side.output_names or ()
            outputs = dict(zip(names, side.run(feeds, None), strict=True))
        used, note, ledger = "cpu", "running on the CPU, in a sandbox", None
    else:
        session = tieops.session(source, provider=provider, limits=limits)
        outputs = session.run(feeds)
        used, note = session.provider, session.note
        ledger = tieops.resident_bytes(session) if memory else None
    if out is not None:
        _write_npz(out, outputs)
    if as_json:
        print_json(
            {
                "provider": used,
                "note": note,
                "inputs": {name: _described(array) for name, array in feeds.items()},
                "outputs": {name: _described(array) for name, array in outputs.items()},
                **({} if ledger is None else {"memory": ledger.to_dict()}),
            }
        )
        return
    typer.echo(note or f"running on {used}")
    for name, array in feeds.items():
        typer.echo(f"in   {printable(name)}: {_text(array)}")
    for name, array in outputs.items():
        typer.echo(f"out  {printable(name)}: {_text(array)}")
    if ledger is not None:
        typer.echo(f"\n{ledger}")


def _check_sandboxed(provider: str, memory: bool) -> None:
    if provider == "cuda" or memory:
        raise PreconditionError(
            "a sandboxed model runs on the CPU, and its memory is not measured",
            None,
            "leave out --provider cuda and --memory, or --sandbox",
        )


def _read_inputs(given: list[str]) -> dict[str, Any]:
    feeds: dict[str, Any] = {}
    for text in given:
        name, equals, path = text.partition("=")
        file = Path(path if equals else text)
        if file.exists() and not file.is_file():  # a FIFO would wait for a writer
            raise PreconditionError(
                f"{printable(str(file))} is not a regular file", None, "write it with numpy.save"
            )
        try:
            loaded = np.load(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise PreconditionError(
                f"cannot read the input {file}", {"numpy says": error}, "write it with numpy.save"
            ) from error
        if equals:
            feeds[name] = loaded
        elif isinstance(loaded, np.ndarray):
            raise PreconditionError(
                f"{file} holds one array, but does not say for which input",
                None,
                f"write name={file}",
            )
        else:
            feeds.update({key: loaded[key] for key in loaded})
    return feeds


def _write_npz(out: Path, outputs: dict[str, Any]) -> None:
    """Write arrays as numpy.savez does, whatever they are called; text without pickles.

    numpy's own takes each name for an argument, and one of its arguments is called ``file``.
    """
    from tieops.exporters.files import new_file

    with new_file(_npz(out)) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        for name, value in outputs.items():
            for key, array in _parts(name, value):
                array = array.astype(str) if array.dtype.kind == "O" else array
                with archive.open(f"{key}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)


def _npz(out: Path) -> Path:
    """Return the file that outputs go to: with its suffix, as numpy.savez gives it."""
    return out if out.name.endswith(".npz") or not out.name else out.with_name(f"{out.name}.npz")


def _parts(name: str, value: Any) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yield the arrays of an output; those of a sequence by number, those of a map by key."""
    if isinstance(value, list):
        for place, each in enumerate(value):
            yield from _parts(f"{name}.{place}", each)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _parts(f"{name}.{key}", each)
    elif value is not None:  # an optional without a value
        yield name, np.asarray(value)


def _described(value: Any) -> Any:
    if isinstance(value, list):
        return [_described(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _described(each) for key, each in value.items()}
    if value is None:
        return None
    array = np.asarray(value)
    return {"dtype": str(array.dtype), "shape": list(array.shape)}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"sequence of {len(value)}: {', '.join(map(_text, value[:3])) or 'nothing'}" + (
            ", …" if len(value) > 3 else ""
        )
    if isinstance(value, dict):
        return f"map of {len(value)}"
    if value is None:
        return "nothing"
    array = np.asarray(value)
    sizes = ",".join(str(size) for size in array.shape)
    if array.size == 0 or array.dtype.kind not in "fiu":
        return f"{array.dtype}[{sizes}]"
    return f"{array.dtype}[{sizes}] from {array.min():.6g} to {array.max():.6g}"
