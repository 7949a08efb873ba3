"""Names near to one that nothing has, for the errors that say so."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from tieops.ir.notation import printable

__all__ = ["nearest"]

_SHOWN = 8


def nearest(name: str, known: Iterable[str], what: str) -> dict[str, object]:
    """Return the known names that are nearest to one, or the first of them if none is near.

    Args:
        name: What was asked for.
        known: The names there are.
        what: What these are called, such as "outputs".

    Returns:
        A fact for an error: under "nearest", or under ``what``.

    Example:
        >>> nearest("logit", ["logits", "hidden"], "outputs"), nearest("x", ["y"], "outputs")
        ({'nearest': 'logits'}, {'outputs': 'y'})
    """
    names = [each for each in known if each]
    near = difflib.get_close_matches(name, names, n=4, cutoff=0.4)
    shown = ", ".join(map(printable, near or names[:_SHOWN])) or "none"
    return {"nearest" if near else what: shown}
