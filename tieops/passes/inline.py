"""Inline calls for passes: which tensors stay one, and the calls around a head.

Only those: other calls of the same functions stay calls, and then the main graph is edited.
``CallInliner`` does this for readers that leave a tie, ``inline_layers`` for layers that are
replaced, removed or cut at. A call whose input serves one slot alone is handed another tensor, and
stays a call.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import onnx_ir

from tieops.analysis.shapes import infer_in_place
from tieops.errors import PreconditionError, TieopsError, UnsupportedModelError
from tieops.ir.edit import NameAuthority
from tieops.ir.functions.calls import Path, call_behind, call_paths, calls_of, function_graphs
from tieops.ir.functions.inlining import Inliner
from tieops.ir.layer import Layer
from tieops.ir.notation import printable
from tieops.ir.parameter import Slot
from tieops.ir.tie import Tie
from tieops.model import TiedModel
from tieops.passes.base import Change, unchangeable
from tieops.passes.detach import handle_of, handles_of

__all__ = [
    "CallInliner",
    "Detached",
    "Place",
    "drafted",
    "inline_all",
    "inline_layers",
    "places_of",
    "stuck_slots",
]

Detached: TypeAlias = Sequence[tuple[Tie, Sequence[Slot]]]
"""Ties, each with those of its slots that leave it."""
_FOR_OWN_WEIGHT = "so that what it reads need not be what others read"
_FOR_SIZE = "so that its size can change"


def _inliner_of(
    tied: TiedModel, names: NameAuthority, *, runtime_functions: bool = False
) -> Inliner:
    """Return what inlines calls of a model: parameters stay tied, and layers keep their names."""
    held = [parameter.value for parameter in tied.parameters]
    layers = {(slot.path, slot.node): slot.layer for slot in tied.slots}
    return Inliner(tied.ir, names, held, layers, runtime_functions=runtime_functions)


def inline_all(model: onnx_ir.Model) -> None:
    """Inline all calls of all functions, in place; what a body stores is stored once.

    Raises:
        UnsupportedModelError: If a function cannot be inlined.
    """
    inliner = _inliner_of(TiedModel(model), NameAuthority(model), runtime_functions=True)
    while calls := calls_of(model, model.graph):
        _check(inliner, calls, UnsupportedModelError, "export the model without functions")
        inliner.inline((call,) for call in calls)


# --- for layers that are edited at one call ------------------------------------------------------


def drafted(model: TiedModel) -> TiedModel:
    """Return a copy of a model to plan an edit on: calls may be inlined in it.

    It has the ranks and sizes that hand-written and older files lack.
    """
    copy = model.clone()
    infer_in_place(copy)
    return TiedModel(copy)


def inline_layers(
    draft: TiedModel, layers: Sequence[Layer], *, behind: bool = False
) -> tuple[TiedModel, Sequence[Layer], tuple[Change, ...]]:
    """Inline the calls that lead to some layers of a draft, in place; other calls stay calls.

    Args:
        draft: A copy of the model; what was derived from it is no longer true afterwards.
        layers: Its layers.
        behind: Whether to inline the calls behind these layers too, whose sizes are to follow.

    Returns:
        The draft and the layers as they are now, and what was done.

    Raises:
        PreconditionError: If a layer lies in the body of an If, Loop or Scan, or a function cannot
            be inlined.
    """
    called = [layer for layer in layers if layer.path or (behind and layer.slots)]
    if not draft.ir.functions or not called:
        return draft, layers, ()
    inliner = _inliner_of(draft, NameAuthority(draft.ir), runtime_functions=True)
    changes: list[Change] = []
    found: dict[Layer, onnx_ir.Node] = {}
    for layer in called:
        node, inlined = _inline_path(inliner, draft.ir, layer.path, layer.slots[0].node)
        changes += inlined
        changes += _inline_behind(inliner, draft.ir, node) if behind else []
        found[layer] = node
    if not changes:
        return draft, layers, ()
    infer_in_place(draft.ir)
    tied = TiedModel(draft.ir)
    home = {node: layer for layer in tied.layers for node in layer.nodes}
    now = [home[found.get(layer, layer.nodes[0])] for layer in layers]
    return tied, now, tuple(changes)


def _inline_path(
    inliner: Inliner, model: onnx_ir.Model, path: Path, node: onnx_ir.Node
) -> tuple[onnx_ir.Node, list[Change]]:
    """Inline the calls that lead to a node of a function, in place; other calls stay calls.

    Args:
        inliner: Inlines calls of the model.
        model: The graph.
        path: The calls, outermost first.
        node: A node of the function that the last of them calls.

    Returns:
        The node as the main graph has it now, and what was done.

    Raises:
        PreconditionError: If a call or the node lies in the body of an If, Loop or Scan, or a
            function cannot be inlined; nothing has changed then.
    """
    graph = model.graph
    for inner in (*path, node):
        if inner.graph is not graph:
            raise PreconditionError(
                f"{printable(inner.name or inner.op_type)} lies in a function and in the body of "
                "an If, Loop or Scan",
                {"calls": " → ".join(each.op_type for each in path)},
                "a branch cannot change its size alone: name a head outside of it",
            )
        if inner is not node:
            graph = model.functions[inner.op_identifier()].graph
    _check(inliner, path)
    changes = _inlined(inliner.inline([path] if path else []), _FOR_SIZE)
    return inliner.now(path, node)[1], changes


def _inline_behind(inliner: Inliner, model: onnx_ir.Model, node: onnx_ir.Node) -> list[Change]:
    """Inline all calls of the main graph that come after a node on the way to an output.

    Raises:
        PreconditionError: If one of the functions cannot be inlined.
    """
    changes: list[Change] = []
    while (call := call_behind(model, node)) is not None:
        _check(inliner, [call])
        changes += _inlined(inliner.inline([(call,)]), _FOR_SIZE)
    return changes


def _check(
    inliner: Inliner,
    calls: Sequence[onnx_ir.Node],
    error: type[TieopsError] = PreconditionError,
    fix: str = "name a head outside of it, or export the model without functions",
) -> None:
    """Refuse calls that cannot be inlined."""
    why = inliner.obstacle(calls)
    if why:
        what = f"the function {printable(calls[0].op_type)} cannot be inlined"
        raise error(what, {"why": why}, fix)


def _inlined(calls: Iterable[onnx_ir.Node], why: str) -> list[Change]:
    return [Change(f"call of {call.op_type}", f"inlined, {why}") for call in calls]


# --- for slots that get weights of their own -----------------------------------------------------


def stuck_slots(tie: Tie, leaving: Sequence[Slot], model: onnx_ir.Model) -> list[Slot]:
    """Return the slots that cannot be given another weight without a slot that stays."""
    if not model.functions:
        return []
    gone = set(leaving)
    staying = {h for slot in tie.slots if slot not in gone for h in handles_of(slot, model)}
    return [
        slot
        for slot in leaving
        if handle_of(slot) in staying or _is_held(slot) or _computing_call(slot, model) is not None
    ]


def _is_held(slot: Slot) -> bool:
    """Return whether what a slot reads is stored in a function, for all calls at once."""
    return bool(slot.path) and slot.reads[0].entry is None


def _computing_call(slot: Slot, model: onnx_ir.Model) -> onnx_ir.Node | None:
    """Return the call that computes what a slot reads and returns it; None if there is none.

    Its body serves all of its calls, so a slot that leaves needs nodes of its own instead.
    """
    source = slot.reads[0].entry or slot.reads[0]
    last = slot.node if source is slot.reads[0] else slot.path[0]
    if not source.view.computed:
        return None
    graphs = {node.graph for node in source.nodes}
    for node in (last, *reversed(source.nodes)):
        for value in node.inputs:
            call = value.producer() if value is not None else None
            function = None if call is None else model.functions.get(call.op_identifier())
            if function is not None and function.graph in graphs:
                return call
    return None


class CallInliner:
    """The function calls that slots are reached through, and which of them to inline.

    Where one input of a call serves other slots too, or the body cuts off what a slot reads, all
    calls on the slot's path are inlined, so that it owns no more than that. What a body stores is
    read by all of its calls.

    Args:
        tied: The model, before any call is inlined.
        together: Whether the slots that leave one tie get one tensor.
        accidental: Whether accidental ties are taken apart, and not the others.
    """

    def __init__(self, tied: TiedModel, *, together: bool, accidental: bool) -> None:
        self.names = NameAuthority(tied.ir)
        """Where copies of nodes and values get their names."""
        self._tied = tied
        self._together = together
        self._accidental = accidental
        self._inliner = _inliner_of(tied, self.names)
        self._paths = call_paths(tied.ir)
        self._owners = function_graphs(tied.ir)
        self._depths: dict[Path, int] = {}

    def ties_of(self, tied: TiedModel) -> Sequence[Tie]:
        """Return the ties of a model that are concerned."""
        return tied.accidental_ties if self._accidental else tied.ties

    def owned_elements(self, slot: Slot) -> int:
        """Return how many elements a slot gets that leaves."""
        read = slot.reads[0]
        if read.entry is None or self._depth(slot.path) == len(slot.path):
            return read.view.elements
        return read.entry.view.elements

    def check(self, leaving: Detached) -> None:
        """Refuse slots that cannot leave.

        Raises:
            PreconditionError: With those that would have to leave too.
        """
        for tie, slots in leaving:
            for slot in stuck_slots(tie, slots, self._tied.ir):
                why = self._obstacle(tie, slot)
                if why:
                    raise PreconditionError(
                        f"cannot untie {printable(slot.name)} alone: others read what it reads "
                        "through the same function",
                        {
                            "with it": ", ".join(s.name for s in tie.slots if s not in slots),
                            "why": why,
                        },
                        "name them too, or inline the function",
                    )

    def inline(self, leaving: Detached) -> tuple[TiedModel, Detached, list[Change]]:
        """Inline what slots need that leave, in place.

        Args:
            leaving: Ties of the model before, and which of their slots leave.

        Returns:
            The model, the ties and the slots as they are now, and what was done.
        """
        able = {
            slot
            for tie, slots in leaving
            for slot in slots
            if not unchangeable(tie.parameter) and not self._obstacle(tie, slot)
        }
        opened = [tie.parameter.value for tie, slots in leaving if able.intersection(slots)]
        tied, changes = self._tied, list[Change]()
        found = [(tie, dict(zip(slots, slots, strict=True))) for tie, slots in leaving]
        # What is in the way of a slot may show only when its calls are gone: a call in their
        # bodies that computes its weight. So it is asked again, of the graph as it is then.
        while gone := self._inliner.inline(
            [path for each in found for path in self._shared_paths(*each, able)], opened
        ):
            changes += _inlined(gone, _FOR_OWN_WEIGHT)
            tied = TiedModel(tied.ir)
            found = self._now(tied, leaving)
        return tied, [(tie, [*slots]) for tie, slots in found], changes

    def _now(self, tied: TiedModel, leaving: Detached) -> list[tuple[Tie, dict[Slot, Slot]]]:
        """Return ties and slots of the model before any inlining as they are now.

        A node whose operands or attributes a call binds may be a reader before, and part of a view
        after: then the slots that read through it stand for it.

        Returns:
            Ties that are left, and for each slot that leaves which one it was.
        """
        ties: dict[onnx_ir.Value, list[Tie]] = {}
        for tie in self.ties_of(tied):
            ties.setdefault(tie.parameter.value, []).append(tie)
        found: list[tuple[Tie, dict[Slot, Slot]]] = []
        for before, slots in leaving:
            value = before.parameter.value
            for tie in ties.get(self._inliner.moved.get(value, value), []):
                places = places_of(tie.slots)
                mine: dict[Slot, Slot] = {}
                for old in slots:
                    path, node = self._inliner.now(old.path, old.node)
                    new = places.get((path, node, old.index, tie.parameter.value))
                    through = [s for s in tie.slots if any(node in read.nodes for read in s.reads)]
                    mine |= dict.fromkeys(through if new is None else [new], old)
                if mine:
                    found.append((tie, mine))
        return found

    def _shared_paths(
        self, tie: Tie, leaving: Mapping[Slot, Slot], able: Collection[Slot]
    ) -> Iterator[Path]:
        """Yield the paths to inline, so that each of the able slots is read by itself."""
        model = self._tied.ir
        sharing: dict[object, set[bool | Slot]] = {}
        for slot in tie.slots:
            own = slot in leaving
            mine = slot if own and not self._together else own
            for handle in handles_of(slot, model):
                sharing.setdefault(handle, set()).add(mine)
        for slot in (now for now, before in leaving.items() if before in able):
            depth = self._depth(slot.path)
            entry = slot.reads[0].entry
            cuts = entry is not None and slot.reads[0].view.elements != entry.view.elements
            returning = _computing_call(slot, model)
            if returning is not None and self._inliner.obstacle((returning,)):
                returning = None
            if returning is not None and not slot.path:
                yield (returning,)
            elif depth and (
                returning is not None
                or len(sharing[handle_of(slot)]) > 1
                or ((cuts or slot.is_joined) and depth == len(slot.path))
            ):
                yield slot.path[:depth]

    def _obstacle(self, tie: Tie, slot: Slot) -> str:
        """Return why a slot cannot be told from others that are reached through its calls."""
        owner = self._owners.get(tie.parameter.value.graph or self._tied.ir.graph)
        storing = [] if owner is None else self._paths.get(owner.identifier(), [])
        why = self._inliner.obstacle(call for path in storing for call in path)
        count = self._depth(slot.path) + 1
        if why or count > len(slot.path):
            return why
        others = [other for other in tie.slots if other is not slot]
        if all(
            other.path[:count] != slot.path[:count]
            and handle_of(slot) not in handles_of(other, self._tied.ir)
            for other in others
        ):
            return ""
        return self._inliner.obstacle(slot.path[:count])

    def _depth(self, path: Path) -> int:
        """Return how many calls of a path can be inlined, from the outermost on."""
        if path not in self._depths:
            counts = range(len(path), 0, -1)
            self._depths[path] = next(
                (count for count in counts if not self._inliner.obstacle(path[:count])), 0
            )
        return self._depths[path]


Place: TypeAlias = tuple[Path, onnx_ir.Node, int, onnx_ir.Value]
"""Where a slot reads which tensor: the calls that lead to it, the node, its input, the tensor."""


def places_of(slots: Iterable[Slot]) -> dict[Place, Slot]:
    """Return slots by where they read which tensor."""
    return {
        (slot.path, slot.node, slot.index, read.parameter.value): slot
        for slot in slots
        for read in slot.reads
    }
