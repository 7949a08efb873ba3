"""``tieops verify``: run two models on the same inputs and compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tieops
from tieops.cli.reading import Limit, Reading, Trust, limits_of
from tieops.cli.shared_options import (
    Json,
    MemoryLimit,
    ProviderName,
    Sandboxed,
    Seconds,
    Sizes,
    print_json,
    refuse_two_streams,
    sandbox_of,
    sizes_of,
)
from tieops.cli.streams import source_of

__all__ = ["verify"]


def verify(
    candidate: Annotated[Path, typer.Argument(help="The .onnx file to check; - for stdin.")],
    against: Annotated[
        Path, typer.Argument(help="What it should equal: an .onnx, .pt2 or .pt file.")
    ],
    rtol: Annotated[
        float, typer.Option(help="Relative tolerance; 0 with --atol 0: bit for bit.")
    ] = 1e-4,
    atol: Annotated[float, typer.Option(help="Absolute tolerance.")] = 1e-5,
    size: Sizes = None,
    seed: Annotated[int, typer.Option(help="Seed of the inputs.")] = 0,
    provider: ProviderName = "cpu",
    optimize: Annotated[
        bool, typer.Option(help="Use the graph optimizations of the runtime.")
    ] = True,
    trust: Trust = False,
    limit: Limit = None,
    sandbox: Sandboxed = False,
    memory_limit: MemoryLimit = 4.0,
    seconds: Seconds = 60.0,
    as_json: Json = False,
) -> None:
    """Compare the outputs of two models on inputs generated from their signature.

    Sizes vary, and integer inputs cover the whole table that they index. Exit 1 if the outputs
    differ or cannot be compared.

        tieops verify tied.onnx exported.onnx
    """
    refuse_two_streams(candidate, against)
    Reading((), trust, limit or ()).refuse_unused(str(candidate), str(against))
    report = tieops.verify(
        source_of(candidate),
        against=source_of(against),
        rtol=rtol,
        atol=atol,
        sizes=sizes_of(size),
        seed=seed,
        provider=provider,
        optimize=optimize,
        trust=trust,
        limits=limits_of(limit),
        sandbox=sandbox_of(sandbox, memory_limit, seconds) or False,
        raises=False,
    )
    if as_json:
        print_json(report.to_dict())
    else:
        typer.echo(str(report))
    if not report:
        raise typer.Exit(1)
