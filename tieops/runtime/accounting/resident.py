"""What a session holds of each weight: the copies, a verdict on each tie, and totals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tieops.ir.notation import brief_bytes, counted, printable
from tieops.runtime.accounting.probe import Measured
from tieops.runtime.session_arguments import Memory, Provider

__all__ = ["Copy", "Held", "Place", "ResidentBytes", "Verdict"]

Place: TypeAlias = Literal["private", "mapped", "device", "given back", "dropped"]
"""Where a copy is: memory of the process, pages of a file, the GPU; or it is gone by now."""
Verdict: TypeAlias = Literal["kept", "folded", "prepacked", "rewritten"]
"""What became of a parameter: one resident copy, a second one, or none that equals it."""
_RESIDENT = ("private", "mapped", "device")


@dataclass(frozen=True)
class Copy:
    """One copy of a parameter's elements.

    Attributes:
        kind: "original", "folded" (an initializer that the runtime made, equal bit for bit to a
            view of the parameter) or "prepacked" (in the layout of one operator's kernel).
        place: "private" (no other process shares it), "mapped" (pages of the data file), "device"
            (memory of the GPU); of an original also "given back" (its pages are read again where
            they are touched) or "dropped" (the runtime has freed it).
        name: The initializer, or of a packed copy ONNX Runtime's key: operator and hash.
        view: How a folded copy reads the parameter, such as "transpose", or "reordered" for the
            blocked layout of a convolution, or "computed" if it equals no view; else empty.
        nbytes: Its size.
    """

    kind: Literal["original", "folded", "prepacked"]
    place: Place
    name: str
    view: str
    nbytes: int

    @property
    def is_resident(self) -> bool:
        """Whether it takes memory."""
        return self.place in _RESIDENT

    @property
    def is_packed(self) -> bool:
        """Whether it is in the layout of one operator's kernel."""
        return self.kind == "prepacked"

    def __str__(self) -> str:
        what = {"folded": self.view or "copy", "prepacked": self.name.partition("+")[0]}
        note = what.get(self.kind, "")
        return f"{self.kind:<9}  {brief_bytes(self.nbytes):>8}  {self.place:<10}  {note}".rstrip()


@dataclass(frozen=True)
class Held:
    """A parameter and the copies of it that the runtime holds.

    Attributes:
        names: Every name of the parameter.
        text: The parameter, as ``name: f32[2,3]``.
        nbytes: What the file stores.
        is_tied: Whether two or more slots share it.
        copies: What the runtime made of it.
    """

    names: tuple[str, ...]
    text: str
    nbytes: int
    is_tied: bool
    copies: tuple[Copy, ...]

    @property
    def resident_bytes(self) -> int:
        """The bytes of all copies that take memory."""
        return sum(copy.nbytes for copy in self.copies if copy.is_resident)

    @property
    def verdict(self) -> Verdict:
        """What became of it: kept (one resident copy), folded, prepacked or rewritten.

        "folded": the runtime computed a copy of a view, such as the transpose, and holds another
        one beside it. "prepacked": it packed a copy and another one stays. "rewritten": what it
        holds equals no view of the parameter, as where it fuses two weights into one.
        """
        resident = [copy for copy in self.copies if copy.is_resident]
        if not resident:
            return "rewritten"
        if len(resident) == 1:
            return "kept"
        return "folded" if any(copy.kind == "folded" for copy in self.copies) else "prepacked"

    def __str__(self) -> str:
        names = " = ".join(map(printable, self.names))
        what = f"{self.verdict}, {brief_bytes(self.resident_bytes)} of {brief_bytes(self.nbytes)}"
        lines = [f"{names}: {self.text.rpartition(': ')[2]}  {what}"]
        return "\n".join([*lines, *(f"  {copy}" for copy in self.copies)])


@dataclass(frozen=True)
class ResidentBytes:
    """The copies of weights that a session holds after loading, counted and measured.

    Attributes:
        provider: "cuda" or "cpu".
        memory: The memory mode.
        unique_bytes: What the model stores: one copy of everything.
        parameters: The tied ones and those of 1 MB or more, the largest first.
        others: Initializers of 1 MB or more that the runtime made and that equal no view of these,
            each followed by its packed copies.
        measured: Memory that opening the session took in a process of its own.
        unmeasured: Why a figure is missing; empty where none is.
    """

    provider: Provider
    memory: Memory
    unique_bytes: int
    parameters: tuple[Held, ...]
    others: tuple[Copy, ...]
    measured: Measured
    unmeasured: str

    @property
    def ties(self) -> tuple[Held, ...]:
        """The parameters that are tied."""
        return tuple(each for each in self.parameters if each.is_tied)

    @property
    def undone(self) -> tuple[Held, ...]:
        """The tied parameters that the runtime holds more than one copy of."""
        return tuple(each for each in self.ties if each.verdict in ("folded", "prepacked"))

    def counted_bytes(self, place: Place) -> int:
        """Return the bytes of all copies in one place, each packed buffer once."""
        copies = [copy for each in self.parameters for copy in each.copies] + [*self.others]
        packed = dict.fromkeys(copy for copy in copies if copy.is_packed)
        others = [copy for copy in copies if not copy.is_packed]
        return sum(copy.nbytes for copy in (*packed, *others) if copy.place == place)

    def to_dict(self) -> dict[str, Any]:
        """Return it all as JSON-ready data."""
        return {
            "provider": self.provider,
            "memory": self.memory,
            "unique_bytes": self.unique_bytes,
            "counted_bytes": {place: self.counted_bytes(place) for place in _RESIDENT},
            "measured": {k: v for k, v in vars(self.measured).items() if v is not None},
            "unmeasured": self.unmeasured,
            "parameters": [
                {
                    "names": list(each.names),
                    "bytes": each.nbytes,
                    "tied": each.is_tied,
                    "verdict": each.verdict,
                    "resident_bytes": each.resident_bytes,
                    "copies": [vars(copy) for copy in each.copies],
                }
                for each in self.parameters
            ],
            "others": [vars(copy) for copy in self.others],
        }

    def __str__(self) -> str:
        lines = [f"on {self.provider}, memory={self.memory}"]
        lines += [str(each) for each in self.parameters]
        for copy in self.others:
            heading = [] if copy.is_packed else [f"made by the runtime: {printable(copy.name)}"]
            lines += [*heading, f"  {copy}"]
        counts = [f"{brief_bytes(self.counted_bytes(p))} {p}" for p in _RESIDENT if
                  self.counted_bytes(p)]  # fmt: skip
        lines.append(f"unique    {brief_bytes(self.unique_bytes)}")
        lines.append(f"counted   {', '.join(counts) or 'nothing'}")
        found = [
            f"{brief_bytes(count)} {name.removesuffix('_bytes')}"
            for name, count in vars(self.measured).items()
            if count is not None
        ]
        lines += [f"measured  {', '.join(found)}"] if found else []
        lines += [f"not measured: {self.unmeasured}"] if self.unmeasured else []
        ties = counted(len(self.ties), "tie")
        lines.append(f"{ties}, {len(self.undone)} undone by the runtime")
        return "\n".join(lines)
