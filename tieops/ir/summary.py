"""``print(model)``: layers, parameters, ties, duplicates and the ledger as one table to read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tieops.ir.brief import brief, brief_bytes, counted, printable
from tieops.ir.layers import Layer
from tieops.ir.parameter import Parameter, Slot
from tieops.ir.ties import Duplicate, Ledger, Tie

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["summary"]

Row = tuple[str, str, str, str, str]
MAX_NAME = 28
"""Columns for a name in the table; a longer one keeps its end, which tells more than its start."""
MAX_ROWS = 60
"""A longer model shows its first and last layers and says how many lie between."""


def summary(
    layers: Sequence[Layer],
    parameters: Sequence[Parameter],
    ties: Sequence[Tie],
    duplicates: Sequence[Duplicate],
    ledger: Ledger,
    *,
    width: int = 100,
) -> str:
    """Return the model as plain text of at most ``width`` columns.

    Args:
        layers: All layers, in order; plain operators between learnable ones are counted, not shown.
        parameters: What is stored.
        ties: What is shared.
        duplicates: What could be.
        ledger: Where the bytes are.
        width: Columns.
    """
    from rich.console import Console

    tied = {slot: tie for tie in ties for slot in tie.slots}
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, highlight=False, markup=False)
    console.print(_layer_table(layers, tied))
    console.print()
    _section(console, "tie", [str(tie) for tie in ties])
    if duplicates:
        _section(console, "duplicate", [str(duplicate) for duplicate in duplicates])
    console.print(f"{counted(len(parameters), 'parameter')}, {ledger}", soft_wrap=True)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _section(console: Console, title: str, items: Sequence[str]) -> None:
    if not items:
        console.print(f"no {title}s")
        return
    console.print(counted(len(items), title))
    for item in items[:MAX_ROWS]:
        for line in item.splitlines():
            console.print(f"  {line}", soft_wrap=True)
    if len(items) > MAX_ROWS:
        console.print(f"  … and {len(items) - MAX_ROWS} more")


def _layer_table(layers: Sequence[Layer], tied: dict[Slot, Tie]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("layer", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("learnables", overflow="fold")
    table.add_column("bytes", no_wrap=True, justify="right")
    table.add_column("stored as", overflow="fold", min_width=20)
    rows: list[Row] = []
    plain: list[Layer] = []
    for layer in layers:
        if not layer.is_learnable:
            plain.append(layer)
            continue
        rows += _plain_row(plain)
        plain = []
        for row, slot in enumerate(layer.slots):
            name, kind = (_short(layer.name), _short(layer.kind)) if row == 0 else ("", "")
            rows.append((name, kind, *_slot_row(slot, tied.get(slot))))
    rows += _plain_row(plain)
    for row in _cut(rows):
        table.add_row(*row)
    return table


def _cut(rows: list[Row]) -> list[Row]:
    if len(rows) <= MAX_ROWS:
        return rows
    half = MAX_ROWS // 2
    between = ("…", f"{len(rows) - 2 * half} more rows", "", "", "")
    return [*rows[:half], between, *rows[-half:]]


def _plain_row(layers: Sequence[Layer]) -> list[Row]:
    if not layers:
        return []
    if len(layers) == 1:
        return [(_short(layers[0].name), _short(layers[0].kind), "", "", "")]
    kinds = list(dict.fromkeys(layer.kind for layer in layers))
    shown = ", ".join(kinds[:2]) + (", …" if len(kinds) > 2 else "")
    return [(f"({len(layers)} operators)", printable(shown), "", "", "")]


def _slot_row(slot: Slot, tie: Tie | None) -> tuple[str, str, str]:
    what = f"{printable(slot.role)} {brief(slot.parameter.dtype, slot.view.shape)}"
    notes = ["tied"] if tie else []
    notes += [str(slot.view)] if not slot.view.is_identity else []
    # A layer's own tensor under its own name: nothing to tell.
    name = "" if slot.parameter.name == slot.name and not tie else _short(slot.parameter.name)
    note = f"({', '.join(notes)})" if notes else ""
    return what, brief_bytes(slot.parameter.nbytes), f"{name} {note}".strip()


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= MAX_NAME else "…" + name[1 - MAX_NAME :]
