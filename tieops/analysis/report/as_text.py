"""Render an analysis as text: ties, waste and errors on the first screen, then the layers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tieops.analysis.report.entries import Entry, entries_of, shape_text
from tieops.analysis.report.sections import (
    Section,
    cut_to,
    headline,
    sections_of,
    shortened,
    squeezed,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from tieops.analysis.report.findings import Findings

__all__ = ["as_text", "print_to"]

SCREEN = 24
"""Lines of a terminal as it comes; what matters has to fit in, and the prompt below it."""
MAX_ENTRIES = 150
"""A longer model, folded, shows its first and last layers and says how many lie between."""
MAX_NAME = 28
_STYLES = {"tied": "green", "wasted": "yellow", "wrong": "red"}


def as_text(analysis: Findings, *, width: int = 80, **options: Any) -> str:
    """Return an analysis as plain text of ``width`` columns; what is to be copied is not wrapped.

    Args:
        analysis: The analysis.
        width: Columns.
        options: Those of ``print_to``.
    """
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None)
    print_to(console, analysis, **options)
    return out.getvalue().rstrip("\n")


def print_to(
    console: Console, analysis: Findings, *, path: str = "", everything: bool = False
) -> None:
    """Print an analysis to a console of rich.

    Args:
        console: Where to; its width is kept.
        analysis: The analysis.
        path: The model's file: fixes are written as commands, else as calls in Python.
        everything: Every tie, problem and layer; else the first of them, repeated blocks folded.
    """
    from rich.text import Text

    width = console.width
    head = headline(analysis, width, path)
    sections = sections_of(analysis, width, path)
    if not everything:
        sections = cut_to(sections, SCREEN - 1 - len(head))
    lines = [Text(line) for line in head]
    for section in sections:
        lines += [Text(), *_section(section)]
    entries = list(entries_of(analysis.rows, analysis.repeats, everything=everything))
    lines += [Text(), *_layers(entries, width, everything=everything)]
    for line in lines:
        line.rstrip()
        console.print(line, soft_wrap=True)


def _section(section: Section) -> Iterator[Text]:
    from rich.text import Text

    style = f"bold {_STYLES[section.title]}" if section.is_marked else "bold"
    yield Text.assemble((f"{section.title:8}", style), section.summary)
    for item in section.items:
        yield from (Text(f"  {line}") for line in item)


def _layers(entries: Sequence[Entry], width: int, *, everything: bool) -> Iterator[Text]:
    from rich.text import Text

    names = [len(each.name) + 2 * each.depth for each in entries if each.kind]
    columns = min(MAX_NAME, max((5, *names))), 11
    title = f"{'layer':{columns[0]}}  {'type':{columns[1]}}  input -> output"
    yield Text(f"{title:{width - 6}}stores", style="bold")
    half = len(entries) if everything else MAX_ENTRIES // 2
    for entry in entries[:half]:
        yield from _entry(entry, width, columns)
    if len(entries) > 2 * half:
        yield Text(f"… {len(entries) - 2 * half} more")
    for entry in entries[max(half, len(entries) - half) :]:
        yield from _entry(entry, width, columns)


def _entry(entry: Entry, width: int, columns: tuple[int, int]) -> Iterator[Text]:
    from rich.text import Text

    indent = "  " * entry.depth
    if not entry.kind:
        yield Text(shortened(indent + entry.name, width, keep_end=False), style="dim")
        return
    name = indent + shortened(entry.name, columns[0] - len(indent))
    kind = shortened(entry.kind, columns[1])
    room = width - sum(columns) - 4 - (len(entry.stores) + 1 if entry.stores else 0)
    line = f"{name:{columns[0]}}  {kind:{columns[1]}}  {_shapes(entry, room):{room}} {entry.stores}"
    yield Text(line, style="" if entry.learnables or entry.stores else "dim")
    for text, stores in entry.learnables:
        room = width - len(indent) - 12
        yield Text(f"{indent}    {squeezed(text, room):{room}}{stores:>8}")


def _shapes(entry: Entry, room: int) -> str:
    """Return what goes in and comes out; what comes out alone where both do not fit."""
    out = entry.output
    if out is None:
        return ""
    for longest in (12, 8, 6):
        sides = (shape_text(side, longest) for side in (entry.input, out) if side is not None)
        if len(text := " -> ".join(sides)) <= room:
            return text
    for longest in (12, 8, 6):
        if len(text := f"-> {shape_text(out, longest)}") <= room:
            return text
    return shortened(f"-> {shape_text(out, 4)}", room, keep_end=False)
