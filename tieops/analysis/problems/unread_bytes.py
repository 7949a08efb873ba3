"""Find bytes of data files that no tensor reads: left by an edit, or padding."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import onnx_ir

from tieops.ir.notation import brief_bytes, printable
from tieops.ir.problem import Problem
from tieops.ir.storage.data_files import data_parts, mentions, models_in, unread_bytes

__all__ = ["unread_data", "unread_problems"]


def unread_data(model: onnx_ir.Model) -> dict[str, int]:
    """Return how many bytes of each data file nobody reads; a file that is read whole is not in it.

    A file that another model beside the data refers to has none: what this one does not read is
    the other one's.

    Args:
        model: The graph; left alone.
    """
    found: dict[str, int] = {}
    for path, parts in data_parts(model).items():
        with suppress(OSError):  # who asks for the values is told that the file is gone
            unread = unread_bytes(os.stat(path).st_size, parts)
            if unread and not _is_shared(model, Path(path)):
                found[path] = unread
    return found


def _is_shared(model: onnx_ir.Model, data: Path) -> bool:
    """Return whether another model in the folder of some data refers to it."""
    return len([each for each in models_in(data.parent) if mentions([each], data.name)]) > 1


def unread_problems(model: onnx_ir.Model) -> Iterator[Problem]:
    """Yield a problem for each data file with bytes that nobody reads.

    Args:
        model: The graph; left alone.
    """
    for path, unread in unread_data(model).items():
        name = printable(os.path.basename(path))
        yield Problem(
            "unread data",
            "waste",
            f"no tensor reads {brief_bytes(unread)} of {name}",
            "tieops convert --no-join MODEL OUT",
            'tieops.to_onnx(model, "out.onnx")',
            unread,
        )
