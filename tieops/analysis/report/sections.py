"""The first screen of an analysis: tied, wasted, wrong, with a few lines per item."""

from __future__ import annotations

import os
import re
import shlex
import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tieops.analysis.report.rows import reading
from tieops.ir.notation import brief_bytes, counted, printable
from tieops.ir.problem import Problem
from tieops.ir.tie import Tie

if TYPE_CHECKING:
    from tieops.analysis.report.findings import Findings

__all__ = ["Section", "cut_to", "headline", "readers", "sections_of", "shortened", "squeezed"]


@dataclass(frozen=True)
class Section:
    """A heading with its answer, and what there is to say about it.

    Args:
        title: tied, wasted or wrong.
        summary: The answer, on the line of the title.
        items: Lines that belong together, the most important item first.
        is_marked: Whether the title is worth a colour: something is there.
    """

    title: str
    summary: str
    items: tuple[tuple[str, ...], ...]
    is_marked: bool = False


def headline(analysis: Findings, width: int, path: str = "") -> list[str]:
    """Return what the model is, in three lines."""
    totals = analysis.totals
    name = f"{printable(os.path.basename(path))}: " if path else ""
    sides = [
        ", ".join(f"{printable(port.name)} {port.type}" for port in side)
        for side in (analysis.inputs, analysis.outputs)
    ]
    plain = len(analysis.rows) - totals.layers
    return [
        shortened(
            f"{name}{counted(totals.layers, 'layer')} with learnables, "
            f"{counted(plain, 'operator')}, {counted(totals.parameters, 'parameter')}",
            width,
        ),
        shortened(" -> ".join(side or "nothing" for side in sides), width, keep_end=False),
        f"{totals.learnables_read:,} learnables read, {totals.learnables_stored:,} stored; "
        f"{brief_bytes(totals.read_bytes)} read, {brief_bytes(totals.stored_bytes)} stored",
    ]


def sections_of(analysis: Findings, width: int, path: str = "") -> list[Section]:
    """Return the three sections, whole."""
    ties, totals = analysis.ties, analysis.totals
    slots = sum(len(tie.slots) for tie in ties)
    tied = "nothing"
    if ties:
        saved = brief_bytes(totals.saved_bytes)
        tied = f"{counted(len(ties), 'parameter')}, read in {counted(slots, 'slot')}, saves {saved}"
    waste, wrong = analysis.of_severity("waste"), analysis.of_severity("wrong")
    cautions = analysis.of_severity("caution")
    held_back = [each for each in analysis.duplicates if each.held_back]
    wasted = f"{brief_bytes(totals.wasted_bytes)}" if waste else "nothing"
    if held_back:
        wasted += f" ({counted(len(held_back), 'small or constant duplicate')} left apart)"
    said = counted(len(wrong), "thing") if wrong else "nothing"
    if cautions:
        said += f", but take care in {counted(len(cautions), 'case')}" if not wrong else (
            f", and take care in {counted(len(cautions), 'case')}"
        )  # fmt: skip
    return [
        Section("tied", tied, tuple(_tie_lines(tie, width) for tie in ties), bool(ties)),
        Section("wasted", wasted, tuple(_items(waste, width, path)), bool(waste)),
        Section("wrong", said, tuple(_items((*wrong, *cautions), width, path)), bool(wrong)),
    ]


def cut_to(sections: Sequence[Section], lines: int) -> list[Section]:
    """Return the sections with as many items as fit, each section getting its share.

    Args:
        sections: The sections.
        lines: How many lines there are, for titles and empty lines between them too.
    """
    left = lines - 2 * len(sections)
    shown = [0] * len(sections)
    for rank in range(max((len(section.items) for section in sections), default=0)):
        for place, section in enumerate(sections):
            if shown[place] != rank or rank >= len(section.items):
                continue
            # A line for "and more" is kept free until the last item is in.
            more = 0 if rank + 1 == len(section.items) else 1
            need = len(section.items[rank]) + more - (1 if rank else 0)
            if need <= left or rank == 0:
                shown[place] += 1
                left -= need
    return [_cut(section, count) for section, count in zip(sections, shown, strict=True)]


def _cut(section: Section, count: int) -> Section:
    more = len(section.items) - count
    if not more:
        return section
    return replace(section, items=(*section.items[:count], (f"… and {more} more",)))


def _tie_lines(tie: Tie, width: int) -> tuple[str, ...]:
    names = [printable(name) for name in tie.names]
    kind = str(tie.parameter).rpartition(": ")[2]
    saved = f"saves {brief_bytes(tie.saved_bytes)}" if tie.saved_bytes else "read once"
    facts = f"{kind} ({tie.evidence}), {saved}"
    room = width - len(facts) - 4
    text = " = ".join(names)
    if len(text) > room and len(names) > 1:
        each = max(12, (room - 3 - 9 * (len(names) > 2)) // 2)
        text = " = ".join(shortened(name, each) for name in names[:2])
        text += f" = {len(names) - 2} more" if len(names) > 2 else ""
    return f"{shortened(text, room)}: {facts}", f"  {squeezed(readers(tie), width - 4)}"


def readers(tie: Tie) -> str:
    """Return the slots of a tie in one line; the calls of one module together.

    ``ffn.weight`` and ``ffn@1.weight`` to ``ffn@11.weight`` become ``ffn.weight ×12``.
    """
    layers = {slot.layer for slot in tie.slots}
    counts: dict[str, int] = {}
    for slot in tie.slots:
        view = reading(str(slot.view), len(slot.reads))
        name = printable(f"{_module(slot.layer, layers)}.{slot.role}".removeprefix("."))
        name += f" ({view})" if view else ""
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{name} ×{n}" if n > 1 else name for name, n in counts.items())


def _module(layer: str, layers: Collection[str]) -> str:
    """Return the module that a layer is a call of; torch's older exporter calls those fqn_1."""
    layer = layer.partition("@")[0]
    first = re.sub(r"_\d+$", "", layer)
    return first if first in layers else layer


def _items(problems: Sequence[Problem], width: int, path: str) -> Iterator[tuple[str, ...]]:
    """Yield problems of one kind together, with what fixes them."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        each_apart = "" if problem.severity == "caution" else problem.command
        groups.setdefault((problem.kind, each_apart), []).append(problem)
    for same in groups.values():
        shown = same[: 1 if same[0].severity == "caution" else 3]
        lines = [line for problem in shown for line in _wrapped(problem.what, width)]
        if len(same) > len(shown):
            lines.append(f"… and {len(same) - len(shown)} more like that")
        yield (*lines, f"  fix: {_fix(same[0], path)}") if same[0].call else tuple(lines)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width - 4, subsequent_indent="  ", break_on_hyphens=False)


def _fix(problem: Problem, path: str) -> str:
    return problem.command.replace("MODEL", shlex.quote(printable(path))) if path else problem.call


def shortened(text: str, width: int, keep_end: bool = True) -> str:
    """Return a text of at most ``width`` columns; a name's end tells more than its start."""
    if len(text) <= width:
        return text
    return "…" + text[1 - width :] if keep_end else text[: width - 1] + "…"


def squeezed(text: str, width: int) -> str:
    """Return a text with its middle cut out where it is too long: both ends tell something."""
    if len(text) <= width:
        return text
    end = width * 3 // 5
    return f"{text[: width - end - 1]}…{text[-end:]}"
