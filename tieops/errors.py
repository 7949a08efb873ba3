"""The errors that tieops raises on purpose: one tree, so that one ``except`` clause catches all.

An error holds data, and renders itself in up to three parts: what went wrong, the facts on both
sides, and the fix:

    cannot tie lm_head.weight to wte.weight: shapes differ
      wte.weight: f32[50257,768]    lm_head.weight: f32[768,50264]
      fix: pad one of them to the other's size, or name the rows to share
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "ExportError",
    "MissingDependencyError",
    "PostconditionError",
    "PreconditionError",
    "ProviderError",
    "SelectionError",
    "TieMismatchError",
    "TieopsError",
    "UnsupportedModelError",
    "UntrustedFileError",
    "VerificationError",
]

LONGEST_NAME = 1000
_LONGEST_TEXT = 10_000


def printable(name: str) -> str:
    r"""Return a name from a file made safe for a terminal: escaped, and cut where it is long.

    Control characters, line ends and what turns the direction of text are escaped. A text that
    was made safe stays as it is.

    Example:
        >>> printable("fc\x1b[31m.weight")
        'fc\\x1b[31m.weight'
    """
    return _escaped(name, LONGEST_NAME)


def _escaped(text: str, longest: int) -> str:
    if len(text) > longest:
        text = f"{text[: longest - 100]}…{text[-99:]}"
    if text.isprintable():
        return text
    text = text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= longest else f"{text[: longest - 100]}…{text[-99:]}"


class TieopsError(Exception):
    """The root of the tree.

    Args:
        what: One line that says what went wrong, naming the thing it happened to.
        facts: What was found on each side, label to text, in the order to print them.
        fix: What the reader can do about it.

    Example:
        >>> print(TieopsError("cannot tie a to b", {"a": "f32[2,3]", "b": "f32[4]"}, "pad b"))
        cannot tie a to b
          a: f32[2,3]    b: f32[4]
          fix: pad b
    """

    def __init__(
        self, what: str, facts: Mapping[str, object] | None = None, fix: str | None = None
    ) -> None:
        super().__init__(what)
        self.what = what
        self.facts = dict(facts or {})
        self.fix = fix

    def __str__(self) -> str:
        # Whoever made it has escaped names; what another library said may hold some more.
        lines = [_escaped(self.what, _LONGEST_TEXT)]
        facts = [_escaped(f"{label}: {fact}", _LONGEST_TEXT) for label, fact in self.facts.items()]
        # Side by side while that is readable, one below the other when it is not.
        joined = "    ".join(facts)
        lines += [joined] if len(joined) <= 96 else facts
        if self.fix:
            lines.append(_escaped(f"fix: {self.fix}", _LONGEST_TEXT))
        return "\n  ".join(line for line in lines if line)


class UnsupportedModelError(TieopsError):
    """The model holds something that tieops can neither keep nor carry over."""


class SelectionError(TieopsError, LookupError):
    """A name or predicate selects nothing, or more than was asked for."""

    def __str__(self) -> str:
        return TieopsError.__str__(self)


class PreconditionError(TieopsError):
    """A verb cannot be applied to this model; nothing was changed."""


class TieMismatchError(PreconditionError):
    """Two parameters cannot be tied: dtype, shape or values differ."""


class PostconditionError(TieopsError):
    """A pass did not keep its promise: a bug in tieops, please report it."""


class ExportError(TieopsError):
    """Writing a model, or handing it to another format, did not work; the old file is whole."""


class VerificationError(TieopsError, AssertionError):
    """Two models that should be equal are not, or could not be compared."""


class ProviderError(TieopsError):
    """What was asked to run the model is not what would run it."""


class UntrustedFileError(TieopsError):
    """A file is not what it says it is, or reaches outside of its place."""


class MissingDependencyError(TieopsError, ImportError):
    """An optional package is needed for this and is not installed."""

    def __str__(self) -> str:
        return TieopsError.__str__(self)
