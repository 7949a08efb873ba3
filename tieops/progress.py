"""Progress of long steps: one line on a terminal, silence elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["advance", "on_terminal", "progress", "silent"]

DELAY_S = 0.5
"""What is done by then has nothing to say."""
_Unit = Literal["", "bytes", "steps"]


def on_terminal() -> bool:
    """Return whether stderr is a terminal, where progress is worth showing."""
    stream: TextIO | None = sys.stderr  # None in a process that began with it closed
    return stream is not None and not stream.closed and stream.isatty()


@contextmanager
def progress(what: str, total: int | None = None, unit: _Unit = "") -> Generator[None]:
    """Show on a terminal's stderr what runs, for how long, and how far it is.

    Within another one nothing is shown, because the outer one names what the user asked for.

    Args:
        what: What runs.
        total: Where ``advance`` will end, if that is known.
        unit: ``bytes``, with bytes per second; ``steps``; nothing if ``advance`` is not called.
    """
    if not on_terminal() or _displays:
        _displays.append(None)
        try:
            yield
        finally:
            _displays.pop()
        return
    display = _Display(what, total, unit)
    _displays.append(display)
    try:
        yield
    finally:
        _displays.pop()
        display.close()


@contextmanager
def silent() -> Generator[None]:
    """Show no progress of what runs in here, because the caller reports it."""
    _displays.append(None)
    try:
        yield
    finally:
        _displays.pop()


def advance(amount: int) -> None:
    """Advance the progress that is shown."""
    if _displays and _displays[-1] is not None:
        _displays[-1].done += amount


class _Display:
    """A line that appears after a while and goes when it is closed."""

    def __init__(self, what: str, total: int | None, unit: _Unit) -> None:
        self.done = 0
        self._what, self._total, self._unit = what, total, unit
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _show(self) -> None:
        if self._closed.wait(DELAY_S):
            return
        shown, task = self._bar()
        with shown:
            while not self._closed.wait(0.1):
                shown.update(task, completed=self.done)

    def _bar(self) -> tuple[Progress, TaskID]:
        from rich import progress as bars
        from rich.console import Console

        columns: list[bars.ProgressColumn] = [
            bars.SpinnerColumn(),
            bars.TextColumn("{task.description}", markup=False),
        ]
        if self._total:
            columns.append(bars.BarColumn(20))
        if self._unit == "bytes":
            columns += [bars.DownloadColumn(), bars.TransferSpeedColumn()]
        elif self._unit == "steps":
            columns.append(bars.MofNCompleteColumn())
        columns.append(bars.TimeElapsedColumn())
        shown = bars.Progress(*columns, console=Console(stderr=True), transient=True)
        return shown, shown.add_task(self._what, total=self._total)


_displays: list[_Display | None] = []
