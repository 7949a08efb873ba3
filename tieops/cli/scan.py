"""``tieops scan``: report the ties and the waste of many models, as JSON lines and a summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import tieops
from tieops.arguments import file_path
from tieops.cli.reading import Limit, limits_of
from tieops.cli.shared_options import Json
from tieops.cli.streams import check_file

__all__ = ["scan"]


def scan(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders or URLs of .onnx files; the URL of a folder ends with /."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Write the JSON lines here; if it is there, go on where it ends.",
            parser=file_path,
            metavar="PATH",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", "-j", min=1, help="Number of processes; default: one per processor."
        ),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.001, help="Time limit per model, in seconds.")
    ] = None,
    memory: Annotated[
        int | None, typer.Option(min=1, help="Memory limit per process, in MB.")
    ] = None,
    whole: Annotated[
        bool,
        typer.Option("--whole", help="Read remote weights whole if their samples are equal."),
    ] = False,
    ordered: Annotated[
        bool, typer.Option("--ordered", help="Print lines in the order of the names.")
    ] = False,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Scan many models: a line of JSON for each, then a summary; exit 1 if one cannot be read.

    The lines go to stdout and the summary to stderr; with -o the lines go to the file, and the
    summary to stdout. A model that cannot be read has the error in its line, and the scan
    continues. Of remote models, only the graph and samples are read. With --json, the summary is
    JSON too.

        tieops scan models/ -o found.jsonl
        tieops scan https://host/models/ s3://bucket/bert.onnx --timeout 60
    """
    from tieops.scanning.summary import Summary

    check_file(out, "a scan that can go on")
    summary = Summary()
    for record in tieops.scan(
        paths,
        workers=jobs,
        out=out,
        whole=whole,
        ordered=ordered,
        timeout_s=timeout,
        max_memory_bytes=None if memory is None else memory * 1_000_000,
        limits=limits_of(limit),
    ):
        summary.add(record)
        if out is None:
            typer.echo(json.dumps(record.to_dict()))
    told = json.dumps(summary.to_dict(), indent=2) if as_json else str(summary)
    typer.echo(told, err=out is None)
    if summary.failed:
        raise typer.Exit(1)
