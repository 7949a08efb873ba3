"""What a case is: a builder of files, how they are read, and the wanted outcome."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import tieops

__all__ = ["PREPARED", "Case", "all_cases", "case"]

SECRET = b"the secret beside the model's folder"
"""What lies in ``../secret.bin``: no outcome may show it, no written file may hold it."""


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Args:
        name: Unique; the tests are called after it.
        build: Writes files into the folder it is given, which is the working directory too, and
            returns what is read. ``../secret.bin`` lies beside that folder.
        words: What the text of the error must hold; None where reading must work, and an empty
            tuple where either is right.
        holds: What must hold of the model that was read, and raises where it does not.
        read: How it is read.
        options: Keyword arguments of ``read``.
        memory_mb: How much more memory the reader may ask for than the source itself has.
        clock_s: How long it may take.
    """

    name: str
    build: Callable[[Path], Any]
    words: tuple[str, ...] | None = ()
    holds: Callable[[Any], None] | None = None
    read: Callable[..., Any] = tieops.from_onnx
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    memory_mb: int = 1024
    clock_s: float = 20.0


CASES: dict[str, Case] = {}
PREPARED: list[Callable[[], object]] = []
"""What takes seconds to make and is kept by its maker: called once, before a case is forked."""


def case(
    *words: str, name: str | None = None, ok: bool = False, **options: Any
) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    """Make a case of a builder: refused with these words in the text, or read where ``ok``.

    Without words and ``ok`` both outcomes are right, as long as they are quick and clean.
    """

    def register(build: Callable[[Path], Any]) -> Callable[[Path], Any]:
        title = name or build.__name__
        if title in CASES:
            raise ValueError(f"two cases are called {title}")
        CASES[title] = Case(title, build, None if ok else words, **options)
        return build

    return register


@cache
def all_cases() -> dict[str, Case]:
    """Return every case of the modules ``cases_*`` of this package, by name."""
    package = importlib.import_module("tests.hostile")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith("cases_"):
            importlib.import_module(f"tests.hostile.{module.name}")
    return CASES
