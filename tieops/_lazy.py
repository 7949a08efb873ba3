"""Names that packages offer before their modules are loaded.

A package's ``__init__`` that imports its modules makes everyone wait for what few need: onnx_ir
takes most of a second, torch several. So a name is looked up where it is defined when it is used.
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
