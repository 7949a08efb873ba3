"""Parse metadata of a file defensively: anybody can write anything there.

A malformed value is ignored, as if its key were absent.
"""

from __future__ import annotations

import ast
import json
import warnings

__all__ = ["listed", "number", "parsed", "whole_texts"]

MAX_LITERAL_CHARS = 10_000
"""Python's own parser takes memory and stack by the length of what it parses."""
MAX_NAME_BYTES = 65_536
"""The longest name that a file may hold by default; a longer one could not be read again."""
MAX_DIGITS = 18
"""Any number of so many digits fits into 64 bits."""


def parsed(text: str | None) -> object:
    """Return what a text of JSON holds; None if it is none.

    Example:
        >>> parsed('["a"]'), parsed("[" * 100_000), parsed(None)
        (['a'], None, None)
    """
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def whole_texts(found: object) -> list[str]:
    r"""Return the names in a list of anything: texts that can be written to a file again.

    Example:
        >>> whole_texts(["a", "", 3, None, "\ud800"]), whole_texts({"a": 1})
        (['a'], [])
    """
    return [each for each in found if _is_name(each)] if isinstance(found, list) else []


def listed(text: str | None) -> list[str]:
    """Return a list of texts as torch's exporter writes it, with ``repr``; empty if it is none.

    Each text has its place, so with one that is something else the list means nothing.

    Example:
        >>> listed("['', 'fc', 'linear']"), listed("['fc', 1]"), listed("{[]}")
        (['', 'fc', 'linear'], [], [])
    """
    if not text or len(text) > MAX_LITERAL_CHARS:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Python warns of odd literals
            found = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, Warning):
        return []
    if not isinstance(found, list) or not all(each == "" or _is_name(each) for each in found):
        return []
    return found


def number(text: str | None) -> int | None:
    """Return a number that is not negative; None if the text is none, or is one of many digits.

    Example:
        >>> number("12"), number("-1"), number("9" * 5000), number("٣")
        (12, None, None, None)
    """
    if text is None or len(text) > MAX_DIGITS or not (text.isascii() and text.isdecimal()):
        return None
    return int(text)


def _is_name(found: object) -> bool:
    if not isinstance(found, str) or not found:
        return False
    try:
        return len(found.encode()) <= MAX_NAME_BYTES
    except UnicodeEncodeError:  # half of a pair, which JSON and Python can write and UTF-8 cannot
        return False
