"""How many copies of each weight a session holds: counted in the graph that it made, and measured."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import onnx_ir

from tieops.errors import PreconditionError
from tieops.importers.onnx import from_onnx
from tieops.ir.brief import brief_bytes, counted, printable
from tieops.ir.parameter import Parameter, Slot
from tieops.runtime.optimized import initializers, packed_of, read_optimized, view_of
from tieops.runtime.probe import GRAPH, Measured, Probe, probe
from tieops.runtime.recipe import Provider, Recipe
from tieops.runtime.sessions import Session
from tieops.runtime.weights import MIN_BYTES, Memory
from tieops.tied_model import TiedModel

__all__ = ["Copy", "Held", "ResidentBytes", "Verdict", "ledger_of", "resident_bytes"]

Place: TypeAlias = Literal["private", "mapped", "device", "given back", "dropped"]
Verdict: TypeAlias = Literal["kept", "folded", "prepacked", "rewritten"]
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
        view: How a folded copy reads the parameter, such as "transpose"; else empty.
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
        holds equals no view of the parameter, as with blocked layouts of a convolution.
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
        others: Initializers of 1 MB or more that the runtime made and that equal no view of these.
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
        copies = [copy for each in self.parameters for copy in each.copies]
        return sum(c.nbytes for c in dict.fromkeys((*copies, *self.others)) if c.place == place)

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
        lines += [f"made by the runtime: {printable(c.name)}\n  {c}" for c in self.others]
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


def resident_bytes(session: Session) -> ResidentBytes:
    """Tell how many copies of each weight a session holds.

    The same session is opened twice more, in a process of its own: once to read that process's
    memory, once with ONNX Runtime told to write the graph that it made, in which its copies are
    found and compared bit for bit. This costs the time of two loads, and room in the temporary
    folder for the weights and their packed copies.

    Args:
        session: An open session.

    Returns:
        Each parameter of 1 MB or more, and each tied one, with its copies and a verdict. Prints
        itself; ``to_dict()`` is for JSON.

    Raises:
        PreconditionError: If the session is closed, or could not be opened again.
        UnsupportedModelError: If tieops cannot read the model that the session runs.

    Example:
        >>> import numpy as np
        >>> from tieops.runtime.sessions import session
        >>> text = '<ir_version: 10, opset_import: ["": 20]> g (int64[n] x) => (float[n, 9000] y)'
        >>> text += "<float[1] w = {0}> { h = Gather(w, x) t = Transpose<perm = [1, 0]>(w) "
        >>> graph = onnx_ir.from_onnx_text(text + "y = MatMul(h, t) }")
        >>> weight = np.random.default_rng(0).standard_normal((9000, 32), np.float32)
        >>> graph.graph.initializers["w"].const_value = onnx_ir.tensor(weight, name="w")
        >>> graph.graph.initializers["w"].shape = onnx_ir.Shape(weight.shape)
        >>> for memory in ("mapped", "packed", "default"):
        ...     found = resident_bytes(session(TiedModel(graph), "cpu", memory=memory))
        ...     print(memory, found.ties[0].verdict, [copy.kind for copy in found.ties[0].copies])
        mapped kept ['original']
        packed kept ['original', 'prepacked']
        default prepacked ['original', 'prepacked']
    """
    if session.is_closed:
        raise PreconditionError("cannot look into the session: it is closed", {}, "open a new one")
    return ledger_of(session.recipe)


def ledger_of(recipe: Recipe) -> ResidentBytes:
    """Tell what ``resident_bytes`` tells of a session that need not be open.

    Args:
        recipe: What a session would be opened with.

    Raises:
        PreconditionError: If the file does not exist, or no session can be opened.
        UnsupportedModelError: If tieops cannot read the model.
    """
    model = from_onnx(recipe.opened)
    with tempfile.TemporaryDirectory(prefix="tieops-") as name:
        folder = Path(name)
        found = probe(recipe, folder)
        held, others = _held(model, read_optimized(folder / GRAPH), recipe, found)
    return ResidentBytes(
        recipe.provider,
        recipe.memory,
        model.ledger.stored_bytes,
        held,
        others,
        found.measured,
        found.unmeasured,
    )


def _held(
    model: TiedModel, optimized: onnx_ir.Model, recipe: Recipe, found: Probe
) -> tuple[tuple[Held, ...], tuple[Copy, ...]]:
    slots: dict[Parameter, tuple[Slot, ...]] = {}
    for slot in model.slots:
        for parameter in dict.fromkeys(read.parameter for read in slot.reads):
            slots[parameter] = (*slots.get(parameter, ()), slot)
    tied = {tie.parameter for tie in model.ties}
    looked_at = [p for p in model.parameters if p in tied or p.nbytes >= MIN_BYTES]
    names = {parameter.name for parameter in model.parameters}
    made = {value for value in initializers(optimized) if value.name not in names}
    held: list[Held] = []
    for parameter in sorted(looked_at, key=lambda each: -each.nbytes):
        own = [value for value in initializers(optimized) if value.name == parameter.name]
        equal = {value: "" for value in own}
        for value in made:
            if value.const_value is None:
                continue
            view = view_of(parameter, slots.get(parameter, ()), value.const_value)
            if view is not None:
                equal[value] = str(view)
        made -= {*equal}
        copies = tuple(_copies(parameter, equal, optimized, recipe, found))
        held.append(
            Held(parameter.names, str(parameter), parameter.nbytes, parameter in tied, copies)
        )
    place: Place = "device" if recipe.provider == "cuda" else "private"
    sizes = [(v.name or "", v.const_value.nbytes) for v in made if v.const_value is not None]
    others = [Copy("folded", place, name, "", int(n)) for name, n in sizes if n >= MIN_BYTES]
    return tuple(held), tuple(sorted(others, key=lambda copy: -copy.nbytes))


def _copies(
    parameter: Parameter,
    equal: dict[onnx_ir.Value, str],
    optimized: onnx_ir.Model,
    recipe: Recipe,
    found: Probe,
) -> Iterator[Copy]:
    """Yield the copies of one parameter; ``equal`` has each initializer with its view."""
    on_gpu = recipe.provider == "cuda"
    packed = {value: packed_of(value) for value in equal}
    originals = [value for value in equal if value.name == parameter.name]
    if not originals:
        yield Copy("original", "dropped", parameter.name, "", parameter.nbytes)
    for value, view in equal.items():
        # Equal tensors packed for one operator share the buffer, which is listed with one of them.
        ops = {each.op_type for v, w in equal.items() if w == view for each in packed[v]}
        place: Place = "device" if on_gpu else "private"
        if value in originals:
            kind = "original"
            if not on_gpu:
                place = _place_of_original(parameter, recipe, found, packed=bool(ops))
        else:
            kind = "folded"
        nbytes = 0 if value.const_value is None else int(value.const_value.nbytes)
        if place != "given back" and _is_dropped(value, ops, optimized):
            place = "dropped"
        yield Copy(kind, place, value.name or "", view, nbytes)
    for each in dict.fromkeys(each for group in packed.values() for each in group):
        yield Copy("prepacked", "device" if on_gpu else "private", each.key, "", each.nbytes)


def _place_of_original(
    parameter: Parameter, recipe: Recipe, found: Probe, *, packed: bool
) -> Place:
    if parameter.name in found.arranged:
        return "given back" if recipe.memory == "packed" and packed else "mapped"
    external = isinstance(parameter.tensor, onnx_ir.ExternalTensor)
    return "mapped" if external else "private"


def _is_dropped(value: onnx_ir.Value, ops: Iterable[str], optimized: onnx_ir.Model) -> bool:
    """Tell whether the runtime frees an initializer: each reader has packed it for itself.

    Of initializers inside subgraphs it keeps the tensor all the same.
    """
    readers = [usage.node for usage in value.uses()]
    inside = value.graph is not optimized.graph
    return bool(readers) and not inside and all(node.op_type in {*ops} for node in readers)
