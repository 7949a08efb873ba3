"""Lists that print themselves, and that are indexed by name too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from typing import Generic, TypeVar, overload

from tieops.errors import SelectionError
from tieops.ir.nearest import nearest
from tieops.ir.notation import counted, printable

__all__ = ["Listing"]

T = TypeVar("T")
_SHOWN_LINES = 40
"""How many lines a REPL or a notebook shows of a list; ``print`` shows all."""


class Listing(Sequence[T], Generic[T]):
    """A read-only list that shows its items in a REPL and a notebook, indexed by place or name.

    Args:
        items: The items; each prints itself.
        title: What one of them is called.
        names: Returns the names of an item; without it there are none.
        text: Returns an item as text; ``str`` by default.

    Raises:
        SelectionError: If it is indexed by a name that no item has, or several have; a LookupError.

    Example:
        >>> words = Listing(["fc.weight", "fc.bias"], "parameter", lambda word: [word])
        >>> words["fc.bias"], "fc.weight" in words, len(words)
        ('fc.bias', True, 2)
        >>> words
        2 parameters
          fc.weight
          fc.bias
    """

    def __init__(
        self,
        items: Iterable[T],
        title: str,
        names: Callable[[T], Iterable[str]] = lambda item: (),
        text: Callable[[T], str] = str,
    ) -> None:
        self._items = tuple(items)
        self._title = title
        self._names = names
        self._text = text

    @overload
    def __getitem__(self, index: int | str) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | str | slice) -> T | Sequence[T]:
        return self._named(index) if isinstance(index, str) else self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def __contains__(self, item: object) -> bool:
        if isinstance(item, str) and any(item in self._names(each) for each in self._items):
            return True
        return item in self._items

    def __str__(self) -> str:
        return "\n".join(map(self._text, self._items)) or f"no {self._title}s"

    def __repr__(self) -> str:
        if not self._items:
            return str(self)
        return "\n".join(
            [counted(len(self), self._title), *(f"  {line}" for line in self._lines())]
        )

    def _repr_html_(self) -> str:
        head, lines = counted(len(self), self._title), "\n".join(self._lines())
        return f"<b>{escape(head)}</b><pre>{escape(lines)}</pre>"

    def _lines(self) -> list[str]:
        lines: list[str] = []
        for count, item in enumerate(self._items):
            if len(lines) >= _SHOWN_LINES:
                return [*lines, f"… {len(self) - count} more"]
            lines += self._text(item).splitlines()
        return lines

    def _named(self, name: str) -> T:
        found = [item for item in self._items if name in self._names(item)]
        if len(found) == 1:
            return found[0]
        if found:
            raise SelectionError(
                f"{counted(len(found), self._title)} are called {printable(name)}",
                {"found": ", ".join(printable(self._text(item)) for item in found[:4])},
                "index the list by place instead",
            )
        known = list(dict.fromkeys(each for item in self._items for each in self._names(item)))
        raise SelectionError(
            f"no {self._title} is called {printable(name)}",
            nearest(name, known, "names"),
            "use one of these names, or index the list by place",
        )
