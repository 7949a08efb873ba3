"""Names of layers: a module's own, and numbers for its further calls."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["LayerNames"]


class LayerNames:
    """Hands out names: a module's FQN, then "fqn@1", "fqn@2" for its further calls."""

    def __init__(self, pinned: Collection[str]) -> None:
        self._used: set[str] = set()
        self._pinned = pinned
        self._next: dict[str, int] = {}

    def unique(self, name: str, pinned: str = "") -> str:
        """Return a name that no other layer has, or is going to have by a record in the file."""
        if name not in self._used and (name == pinned or name not in self._pinned):
            self._used.add(name)
            return name
        while True:
            count = self._next.get(name, 0) + 1
            self._next[name] = count
            candidate = f"{name}@{count}"
            if candidate not in self._used and candidate not in self._pinned:
                self._used.add(candidate)
                return candidate
