"""Validate the arguments of verbs before anything is done."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tieops.errors import PreconditionError, printable

__all__ = ["described", "expect", "file_path", "mapping_of", "names_of", "whole_number"]


def described(value: object) -> str:
    """Return what a value is, with its article, for an error.

    Example:
        >>> described(3), described([]), described(None)
        ('an int', 'a list', 'None')
    """
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def expect(kinds: type | tuple[type, ...], value: object, wanted: str, fix: str) -> None:
    """Refuse a value that is of none of the kinds.

    Args:
        kinds: Any of these will do.
        value: What was given.
        wanted: What is expected, and for what, such as "a path to write to".
        fix: What to give instead.

    Raises:
        PreconditionError: If it is of none.
    """
    if not isinstance(value, kinds):
        raise PreconditionError(f"expected {wanted}, got {described(value)}", None, fix)


def file_path(value: Any, what: str = "a path to write to") -> Path:
    """Return the path of a file that is to be written.

    Raises:
        PreconditionError: If it is neither a text nor a path, or ends as the path of a folder does.
    """
    fix = 'give the path of a file, such as "model.onnx"'
    expect((str, os.PathLike), value, what, fix)
    if os.fspath(value).endswith((os.sep, os.altsep or os.sep)):
        raise PreconditionError(f"expected {what}, got a folder: {printable(value)}", None, fix)
    return Path(value)


def names_of(value: Any, what: str) -> tuple[str, ...]:
    """Return names; a single one may be given alone.

    Args:
        value: A text, or texts.
        what: What they name, such as "names of outputs".

    Raises:
        PreconditionError: If it is none of these.

    Example:
        >>> names_of("y", "names of outputs"), names_of(["y", "z"], "names of outputs")
        (('y',), ('y', 'z'))
    """
    fix = 'give a list of texts, such as ["y"]'
    expect(Iterable, value, what, fix)
    names = (value,) if isinstance(value, str) else tuple(value)
    for name in names:
        expect(str, name, what, fix)
    return names


def mapping_of(value: Any, what: str, fix: str) -> dict[str, str]:
    """Return texts by names.

    Raises:
        PreconditionError: If it is no mapping of texts to texts.
    """
    expect(Mapping, value, what, fix)
    for pair in value.items():
        for text in pair:
            expect(str, text, what, fix)
    return dict(value)


def whole_number(value: Any) -> int | None:
    """Return an int of any type that is one, such as numpy's; None for what is not, and for bools.

    Example:
        >>> import numpy as np
        >>> whole_number(np.int64(3)), whole_number(3.0), whole_number(True)
        (3, None, None)
    """
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
