"""A way of one's own into a function: where one body serves many calls, but not with one weight.

A function's body is written once, so readers in it cannot differ from call to call, unless what
they read is handed in. `Ways.lift` takes a stored tensor out of a body and hands it in; where one
input of a function serves several readers, `Ways.part` gives one of them an input of its own. What
the body cuts off of what it is handed in is cut off in front of the calls then.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import onnx_ir

from tieops.ir.copies import copy_node, copy_nodes, store
from tieops.ir.fresh import FreshNames
from tieops.ir.lanes import stands_in
from tieops.ir.operators.operands import known_ints
from tieops.ir.operators.views import is_cut, is_view
from tieops.ir.parameter import Slot
from tieops.ir.scopes import all_graphs, function_graphs, nested_graphs
from tieops.passes.leave import cutting, handle_of

__all__ = ["Ways"]


def _movable(function: onnx_ir.Function, views: Sequence[onnx_ir.Node]) -> list[onnx_ir.Node]:
    """Return the first nodes of a chain in a body that would do the same in front of every call.

    They run whenever it is called, not in a branch alone, and what they do is written there.
    """
    return list(takewhile(lambda node: node.graph is function.graph and _is_fixed(node), views))


def _is_fixed(node: onnx_ir.Node) -> bool:
    producers = [value.producer() for value in node.inputs[1:] if value is not None]
    return not any(attr.is_ref() for attr in node.attributes.values()) and all(
        producer is not None
        and producer.op_type == "Constant"
        and known_ints(producer.outputs[0]) is not None
        for producer in producers
    )


class Ways:
    """Gives readers inside of functions what they read through inputs of the function, in place.

    Args:
        model: The graph.
        names: Where new inputs, nodes and tensors get their names.
    """

    def __init__(self, model: onnx_ir.Model, names: FreshNames) -> None:
        self._model = model
        self._names = names
        self._owners = function_graphs(model)
        self._calls: dict[onnx_ir.OperatorIdentifier, list[onnx_ir.Node]] = {}
        for graph in all_graphs(model):
            for node in graph:
                if node.op_identifier() in model.functions:
                    self._calls.setdefault(node.op_identifier(), []).append(node)
        self._closed = self._find_closed()
        self._left: dict[onnx_ir.Value, onnx_ir.Function] = {}
        self._operands: dict[tuple[onnx_ir.Graph, onnx_ir.Value], onnx_ir.Value] = {}
        self._copied: dict[onnx_ir.Value, onnx_ir.Value] = {}

    def has_other_calls(self, call: onnx_ir.Node) -> bool:
        """Tell whether a function is called from somewhere else too."""
        return any(other is not call for other in self._calls[call.op_identifier()])

    def can_lift(self, value: onnx_ir.Value) -> bool:
        """Tell whether a tensor is stored in a function that can have more inputs."""
        function = None if value.graph is None else self._owners.get(value.graph)
        return function is not None and function.identifier() not in self._closed

    def lift(self, value: onnx_ir.Value) -> onnx_ir.Value:
        """Store a tensor of a function's body in the main graph, and hand it in at every call."""
        assert value.graph is not None
        assert value.const_value is not None
        function = self._owners[value.graph]
        inner = self._new_input(function, f"{value.name}_in")
        inner.type, inner.shape = value.type, value.shape
        self._keep_outputs(value, inner)
        value.replace_all_uses_with(inner)
        producer, graph = value.producer(), value.graph
        if producer is not None:
            graph.remove(producer, safe=True)
        else:
            del graph.initializers[value.name or ""]
        self._names.release(value.name or "")
        name = self._names.take(value.name or "weight")
        stored = store(self._model, name, value.const_value.numpy())
        stored.metadata_props.update(value.metadata_props)
        for call in self._calls.get(function.identifier(), []):
            self._hand_in(call, inner, self._brought(call, stored))
        return stored

    def can_part(self, slot: Slot) -> bool:
        """Tell whether a reader can get an input of its own.

        Its way in has to be views and calls alone, of functions that can have more inputs.
        """
        node, index = slot.node, slot.index
        if slot.path and slot.path[-1].op_identifier() in self._closed:
            return False
        for call in reversed(slot.path):
            source, _ = self._way_in(node, index)
            function = self._model.functions[call.op_identifier()]
            if source is not None and source.const_value is not None:
                return True  # once it is lifted
            if source not in function.inputs:
                return False
            node, index = call, function.inputs.index(source)
        return True

    def can_move_cut(self, slot: Slot) -> bool:
        """Tell whether all that functions cut off for a slot can be cut off before the first."""
        read, entry = slot.reads[0], slot.reads[0].entry
        if entry is None or read.view.elements == entry.view.elements:
            return False
        if slot.is_joined or not self.can_part(slot):
            return False
        node, index, cut = slot.node, slot.index, list[onnx_ir.Node]()
        for call in reversed(slot.path):
            function = self._model.functions[call.op_identifier()]
            source, views = self._way_in(node, index)
            assert source is not None
            movable = _movable(function, views)
            if cut and (node.graph is not function.graph or len(movable) < len(views)):
                return False  # what was moved in front of the inner call stays there
            count = len(views) if cut else cutting(movable)
            if any(is_cut(node) for node in views[count:]):
                return False
            cut = [*views[:count], *cut]
            node, index = call, function.inputs.index(source)
        before = [*entry.nodes, *cut]
        return any(node.graph in self._owners for node in entry.nodes) or cutting(before) == len(
            before
        )

    def owned_elements(self, slot: Slot) -> int:
        """Return how many elements a slot gets that leaves."""
        read = slot.reads[0]
        handed_in = None if self.can_move_cut(slot) else read.entry
        return (handed_in or read).view.elements

    def _find_closed(self) -> set[onnx_ir.OperatorIdentifier]:
        """Return the functions that can have no more inputs: stand-ins, and what these call."""
        found: set[onnx_ir.OperatorIdentifier] = set()
        functions = self._model.functions
        pending = [key for key in functions if stands_in(key[0])]
        while pending:
            key = pending.pop()
            if key in found:
                continue
            found.add(key)
            nodes = (node for graph in nested_graphs(functions[key].graph) for node in graph)
            pending += [key for node in nodes if (key := node.op_identifier()) in functions]
        return found

    def handles_of(self, slot: Slot) -> set[object]:
        """Return the handles that a slot reads through: its own, and of calls that return it."""
        entry = slot.reads[0].entry
        node, index = (slot.node, slot.index) if entry is None else (slot.path[0], entry.index)
        found: set[object] = {handle_of(slot)}
        value = node.inputs[index]
        while value is not None and (producer := value.producer()) is not None:
            place = 0
            if producer.op_identifier() in self._model.functions:
                returned = self._returned(producer, value)
                if returned is None:
                    break
                place = returned
                found.add((producer, place))
            elif not is_view(producer):
                break
            value = producer.inputs[place]
        return found

    def _returned(self, call: onnx_ir.Node, output: onnx_ir.Value) -> int | None:
        """Return which input of a call an output of it is, or views; None if it is neither."""
        function = self._model.functions[call.op_identifier()]
        value: onnx_ir.Value | None = function.outputs[call.outputs.index(output)]
        while value is not None and (producer := value.producer()) is not None:
            place: int | None = 0 if is_view(producer) else None
            if producer.op_identifier() in self._model.functions:
                place = self._returned(producer, value)
            if place is None:
                return None
            value = producer.inputs[place]
        place = function.inputs.index(value) if value in function.inputs else None
        return place if place is not None and place < len(call.inputs) else None

    def part(self, node: onnx_ir.Node, index: int) -> None:
        """Give one input of a node within a function an input of the function's for itself.

        All calls hand in there what they handed in for it before, each through a way of its own,
        and without what the body cut off.
        """
        assert node.graph is not None
        function = self._owners[node.graph]
        source, views = self._way_in(node, index)
        assert source is not None
        place = function.inputs.index(source)
        count = cutting(_movable(function, views))
        inner = self._new_input(function, source.name or "weight")
        self._left[source] = function
        old = node.inputs[index]
        cut = views[count].inputs[0] if count < len(views) else old
        assert old is not None
        assert cut is not None
        replaced = copy_nodes(self._model, [views[count:]], {cut: inner}, self._names)
        node.replace_input_with(index, replaced[old])
        for call in self._calls.get(function.identifier(), []):
            given = call.inputs[place] if place < len(call.inputs) else None
            if given is None:
                continue  # left out here as it was there
            moved = self._copy_in_front(call, views[:count], {source: given})
            at = self._hand_in(call, inner, moved[cut])
            if self._is_handed_on(call, at):
                self.part(call, at)

    def close_unread(self) -> bool:
        """Take inputs off that every reader left, from functions and calls; tell if there were any.

        The views through which they were read have to be gone.
        """
        unread = [v for v in self._left if not v.uses() and not v.is_graph_output()]
        for value in unread:
            function = self._left.pop(value)
            place = function.inputs.index(value)
            del function.inputs[place]
            for call in self._calls.get(function.identifier(), []):
                inputs = [*call.inputs[:place], *call.inputs[place + 1 :]]
                for index, given in enumerate(inputs):
                    call.replace_input_with(index, given)
                call.resize_inputs(len(inputs))
        return bool(unread)

    def _copy_in_front(
        self,
        call: onnx_ir.Node,
        nodes: Sequence[onnx_ir.Node],
        replaced: dict[onnx_ir.Value, onnx_ir.Value],
    ) -> dict[onnx_ir.Value, onnx_ir.Value]:
        """Copy nodes of a function's body, and the Constants they read, to where it is called."""
        graph = call.graph
        assert graph is not None
        function = self._owners.get(graph)
        root = self._model.graph if function is None else function.graph
        for operand in (value for node in nodes for value in node.inputs[1:] if value is not None):
            first = self._copied.get(operand, operand)
            if (root, first) not in self._operands:
                producer = first.producer()
                assert producer is not None
                copy = copy_node(producer, [], self._names)
                root.insert_before(root[0], copy)  # where all calls see it
                self._operands[root, first] = copy.outputs[0]
                self._copied[copy.outputs[0]] = first
            replaced[operand] = self._operands[root, first]
        for node in nodes:
            inputs = [None if value is None else replaced[value] for value in node.inputs]
            copy = copy_node(node, inputs, self._names)
            graph.insert_before(call, copy)
            replaced.update(zip(node.outputs, copy.outputs, strict=True))
        return replaced

    def _is_handed_on(self, call: onnx_ir.Node, index: int) -> bool:
        """Tell whether what a call within a function hands in comes in there, by views alone."""
        function = None if call.graph is None else self._owners.get(call.graph)
        return function is not None and self._way_in(call, index)[0] in function.inputs

    def _way_in(
        self, node: onnx_ir.Node, index: int
    ) -> tuple[onnx_ir.Value | None, list[onnx_ir.Node]]:
        """Return where an input comes from within its body, and the views between, in order."""
        value, views = node.inputs[index], list[onnx_ir.Node]()
        while value is not None and (producer := value.producer()) is not None:
            if not is_view(producer) or producer.op_identifier() in self._model.functions:
                break
            views.insert(0, producer)
            value = producer.inputs[0]
        return value, views

    def _keep_outputs(self, value: onnx_ir.Value, inner: onnx_ir.Value) -> None:
        """Let a body return what it is handed in through an Identity, which runtimes insist on."""
        graph = value.graph
        assert graph is not None
        if not value.is_graph_output():
            return
        identity = onnx_ir.node(
            "Identity", [inner], name=self._names.take(f"{value.name}_identity")
        )
        out = identity.outputs[0]
        out.name, out.type, out.shape = (
            self._names.take(f"{value.name}_out"),
            value.type,
            value.shape,
        )
        graph.append(identity)
        for position, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[position] = out

    def _new_input(self, function: onnx_ir.Function, name: str) -> onnx_ir.Value:
        value = onnx_ir.Value(name=self._names.take(name))
        function.inputs.append(value)
        return value

    def _hand_in(
        self, call: onnx_ir.Node, inner: onnx_ir.Value, value: onnx_ir.Value | None
    ) -> int:
        """Make a call hand in a value for an input of its function; return which input it is."""
        place = self._model.functions[call.op_identifier()].inputs.index(inner)
        call.resize_inputs(max(place + 1, len(call.inputs)))
        call.replace_input_with(place, value)
        return place

    def _brought(self, call: onnx_ir.Node, stored: onnx_ir.Value) -> onnx_ir.Value:
        """Return what a call can hand in: the tensor itself, or an input of the body it is in."""
        assert call.graph is not None
        function = self._owners.get(call.graph)
        if function is None:
            return stored
        inner = self._new_input(function, f"{stored.name}_in")
        for outer in self._calls.get(function.identifier(), []):
            self._hand_in(outer, inner, self._brought(outer, stored))
        return inner
