"""Lazy package attributes: a name loads its module when it is first used.

An ``__init__`` that imports all of its modules makes every user wait for what few of them need:
onnx_ir takes most of a second to load, torch several.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["lazy"]


def lazy(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package.

    Args:
        package: The package's name.
        homes: The module that defines each name, by the name.

    Returns:
        A function that loads a name's module and returns what the name stands for. For any other
        name it raises AttributeError.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return __getattr__
