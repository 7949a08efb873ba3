"""Inline calls: move what a body computes and stores to the place of the call.

A body that stores a weight reads it in all of its calls, and cannot read a tensor outside itself.
When one of these calls is inlined, the weight moves to the main graph; so the others are inlined
too, because otherwise inlining would untie them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx
import onnx_ir
import onnx_ir.passes.common as common_passes

from tieops.ir.edit import NameAuthority, drop_unread, move_to_main_graph, substitute
from tieops.ir.functions.calls import Path, call_paths, call_title, function_graphs
from tieops.ir.notation import printable
from tieops.ir.operators.identity import domain_of, domain_title, is_runtime_domain, opset_version
from tieops.ir.walk import all_nodes, is_constant, nested_graphs, set_layer_name

__all__ = ["Inliner"]

_GRAPHS = (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS)
_AT_ONCE = 500
_COPY_OF = "tieops.copy_of"
"""While calls are inlined: on a node or value, which one of the function's body it is a copy of."""


class Inliner:
    """Inlines calls of the main graph and of the graphs nested in it, in place.

    Nodes keep their names, and values theirs, with a number where there would be two of one name.
    A layer keeps its name.

    Args:
        model: The graph.
        names: Where copies of nodes and values get their names.
        held: Stored tensors that stay one for all of their readers. Operands (a shape, an axis)
            need not be among them: each copy of a body has its own.
        layers: What the layer of a node is called that is reached through some calls.
        runtime_functions: Whether functions of runtimes' own domains are inlined too. A runtime
            runs its operators in their place, so outputs may differ in rounding afterwards.
    """

    def __init__(
        self,
        model: onnx_ir.Model,
        names: NameAuthority,
        held: Iterable[onnx_ir.Value] = (),
        layers: Mapping[tuple[Path, onnx_ir.Node], str] | None = None,
        *,
        runtime_functions: bool = False,
    ) -> None:
        self.moved: dict[onnx_ir.Value, onnx_ir.Value] = {}
        """Which tensor of the main graph each of ``held`` is now that was stored in a body."""
        self._model = model
        self._names = names
        self._layers = layers or {}
        self._runtime_functions = runtime_functions
        self._copies: dict[tuple[Path, onnx_ir.Node], onnx_ir.Node] = {}
        self._origins: dict[onnx_ir.Node, Path] = {}
        self._inlined: set[onnx_ir.Node] = set()
        self._opened: set[onnx_ir.OperatorIdentifier] = set()
        self._held: dict[onnx_ir.OperatorIdentifier, list[onnx_ir.Value]] = {}
        owners = function_graphs(model)
        for value in held:
            owner = owners.get(value.graph) if value.graph is not None else None
            if owner is not None:
                self._held.setdefault(owner.identifier(), []).append(value)
        self._paths = call_paths(model)
        self._closed: dict[onnx_ir.OperatorIdentifier, str] = {}
        self._released: set[onnx_ir.OperatorIdentifier] = set()

    def now(self, path: Path, node: onnx_ir.Node) -> tuple[Path, onnx_ir.Node]:
        """Return where a node is that is reached through some calls.

        Args:
            path: The calls, of the model as it was before any was inlined, or as it is now.
            node: The node.

        Returns:
            The calls that still lead to it, and the node, or its copy.
        """
        if path and path[0] in self._origins:
            path = (*self._origins[path[0]], *path[1:])
        for count in range(len(path), 0, -1):
            inner = node if count == len(path) else path[count]
            copy = self._copies.get((path[:count], inner))
            if copy is not None:
                return ((), copy) if count == len(path) else ((copy, *path[count + 1 :]), node)
        return path, node

    def obstacle(self, calls: Iterable[onnx_ir.Node]) -> str:
        """Return why calls cannot be inlined, in the order in which they lead into each other.

        Args:
            calls: Calls of the model as it was before any was inlined, or as it is now.

        Returns:
            Empty if they can be.
        """
        pending, seen = list(calls), set[onnx_ir.Node]()
        while pending:
            call = pending.pop()
            if call in seen or call in self._inlined:
                continue
            seen.add(call)
            why = self._obstacle(call)
            if why:
                return why
            if call.op_identifier() in self._held:
                pending += {n for path in self._paths[call.op_identifier()] for n in path} - seen
        return ""

    def inline(
        self, paths: Iterable[Path], moving: Iterable[onnx_ir.Value] = ()
    ) -> list[onnx_ir.Node]:
        """Inline all calls of some paths, and the others that read what the same bodies store.

        Args:
            paths: Paths without an ``obstacle``, of the model as it was before any was inlined, or
                as it is now.
            moving: Of the tensors that stay one, those to move to the main graph in any case.

        Returns:
            The calls that are no more.
        """
        paths, moving = list(paths), set(moving)
        self._opened |= {key for key, held in self._held.items() if not moving.isdisjoint(held)}
        gone: list[onnx_ir.Node] = []
        while True:
            calls = dict.fromkeys(call for path in paths if (call := self._next_call(path)))
            self._opened |= {call.op_identifier() for call in calls} & self._held.keys()
            calls |= self._on_the_way()
            if not calls:
                return gone
            self._inline(list(calls))
            gone += calls

    def _next_call(self, path: Path) -> onnx_ir.Node | None:
        """Return the call to inline next, so that all of a path is in the end."""
        outer, call = self.now(path[:-1], path[-1])
        return None if call in self._inlined else (*outer, call)[0]

    def _on_the_way(self) -> dict[onnx_ir.Node, None]:
        """Return the calls of the main graph that lead to a body whose tensors moved out of it."""
        if not self._opened:
            return {}
        paths = call_paths(self._model)
        return dict.fromkeys(path[0] for key in self._opened for path in paths.get(key, []))

    def _obstacle(self, call: onnx_ir.Node) -> str:
        function = self._model.functions[call.op_identifier()]
        attributes = [*call.attributes.values(), *function.attributes.values()]
        if any(each.type in _GRAPHS for each in attributes):
            return f"function {printable(function.name)} takes a graph as an attribute"
        for given, output in zip(call.outputs, function.outputs, strict=False):
            place = function.inputs.index(output) if output in function.inputs else -1
            is_given = place < len(call.inputs) and call.inputs[place] is not None
            if place >= 0 and not is_given and given.name:
                return (
                    f"function {printable(function.name)} returns an input that a call leaves out"
                )
        key = function.identifier()
        if key not in self._closed:
            self._closed[key] = self._closed_by(function)
        return self._closed[key]

    def _closed_by(self, function: onnx_ir.Function) -> str:
        name = printable(function.name)
        if is_runtime_domain(function.domain) and not self._runtime_functions:
            return f"function {name} stands in for an operator of the runtime"
        for domain, version in function.opset_imports.items():
            known = opset_version(self._model.opset_imports, domain)
            if known in (0, version):
                continue
            for graph in nested_graphs(function.graph):
                for node in graph:
                    if domain_of(node.domain) != domain_of(domain) or node.op_identifier() in (
                        self._model.functions
                    ):
                        continue
                    if not _is_same(node, version, known):
                        return (
                            f"function {name} imports opset {version} of {domain_title(domain)}, "
                            f"the model {known}, and {node.op_type} may differ between them"
                        )
        return ""

    def _inline(self, calls: Sequence[onnx_ir.Node]) -> None:
        """Put copies of bodies in the place of calls."""
        bodies: list[onnx_ir.Function] = []
        # The first call in the graph gets the names of the body, and those of what it stores.
        wanted = set(calls)
        calls = [node for node in all_nodes(self._model) if node in wanted]
        for call in calls:
            self._origins.setdefault(call, (call,))
        self._inlined |= wanted
        paths, mine = call_paths(self._model), set(calls)
        keys = dict.fromkeys(call.op_identifier() for call in calls)
        for key in keys:
            if key in self._opened or all(path[-1] in mine for path in paths[key]):
                self._release_names(key)
        for count, call in enumerate(calls):
            body = self._copy_of(self._model.functions[call.op_identifier()], self._origins[call])
            body.overload = call.overload = f"{_COPY_OF}.{count}"
            call.metadata_props.clear()  # which onnx_ir would give to every node of the body
            for output in call.outputs:
                output.name = output.name or None  # one that is left out has no name to keep
            bodies.append(body)
        # Its time grows with the square of how many functions it is given.
        for start in range(0, len(bodies), _AT_ONCE):
            some = bodies[start : start + _AT_ONCE]
            common_passes.InlinePass()(
                onnx_ir.Model(self._model.graph, ir_version=self._model.ir_version, functions=some)
            )
        self._note_copies()
        self._drop_uncalled(keys)

    def _copy_of(self, function: onnx_ir.Function, path: Path) -> onnx_ir.Function:
        """Return a copy of a function for one call, with names that the main graph can take."""
        body = function.clone()
        pairs = zip(nested_graphs(function.graph), nested_graphs(body.graph), strict=True)
        held = set(self._held.get(function.identifier(), ()))
        for old_graph, graph in pairs:
            if graph is not body.graph:
                for value in graph.inputs:
                    self._rename(value)
            for old, value in zip(
                old_graph.initializers.values(), list(graph.initializers.values()), strict=True
            ):
                self._rename(value)
                if old in held:
                    value.meta[_COPY_OF] = old
            for old, node in zip(old_graph, graph, strict=True):
                self._name(node, self._layers.get((path, old)))
                node.meta[_COPY_OF] = (path, old)
                for output in node.outputs:
                    self._rename(output, node.op_type)
                if old.outputs and old.outputs[0] in held:
                    node.outputs[0].meta[_COPY_OF] = old.outputs[0]
        self._return_own_values(body)
        imported = {domain_of(each): each for each in self._model.opset_imports}
        for domain in list(body.opset_imports):
            version = body.opset_imports.pop(domain)
            mine = imported.get(domain_of(domain), domain_of(domain))
            body.opset_imports[mine] = self._model.opset_imports.get(mine, version)
        return body

    def _name(self, node: onnx_ir.Node, layer: str | None) -> None:
        if layer is not None:
            set_layer_name(node, layer)
        elif node.op_identifier() in self._model.functions:
            set_layer_name(node, call_title(node))
        first = next((value.name or "" for value in node.outputs), "")
        node.name = self._names.take(node.name or f"{node.op_type}_{first}")

    def _rename(self, value: onnx_ir.Value, otherwise: str = "value") -> None:
        # A value writes its name to its tensor, which the model that this one was copied from has.
        tensor, value.const_value = value.const_value, None
        if value.name != "":
            value.name = self._names.take(value.name or otherwise)
        if value.is_initializer():
            value.const_value = tensor

    def _return_own_values(self, body: onnx_ir.Function) -> None:
        """Make a body return values that nodes compute, one for each output.

        ``onnx_ir`` gives a value that is returned the name of the call's output: it must not be
        what the call was handed in, or a tensor that is stored.
        """
        seen: set[onnx_ir.Value] = set()
        for index, output in enumerate(list(body.outputs)):
            producer = output.producer()
            if producer is not None and not is_constant(producer) and output not in seen:
                seen.add(output)
                continue
            name = self._names.take(f"{output.name}_returned")
            identity = onnx_ir.node("Identity", [output], name=self._names.take(f"{name}_identity"))
            identity.outputs[0].name = name
            identity.outputs[0].type, identity.outputs[0].shape = output.type, output.shape
            identity.meta[_COPY_OF] = None
            body.append(identity)
            body.outputs[index] = identity.outputs[0]

    def _note_copies(self) -> None:
        """Note which nodes are copies of which, and move tensors that stay one out of bodies."""
        for graph in list(nested_graphs(self._model.graph)):
            stored = [*graph.initializers.values()]
            for node in list(graph):
                if _COPY_OF not in node.meta:
                    continue
                origin = node.meta.pop(_COPY_OF)
                if origin is None:
                    _bypass(graph, node)
                    continue
                path, old = origin
                self._copies[path, old] = node
                if old.op_identifier() in self._model.functions:
                    self._origins[node] = (*path, old)
                if is_constant(node):
                    stored.append(node.outputs[0])
            for value in stored:
                if _COPY_OF in value.meta:
                    self._move(value, value.meta.pop(_COPY_OF))

    def _move(self, copy: onnx_ir.Value, held: onnx_ir.Value) -> None:
        """Make the readers of a copy of a tensor that stays one read that in the main graph."""
        known = self.moved.get(held)
        if known is None:
            tensor = copy.const_value
            assert tensor is not None
            if isinstance(tensor, onnx_ir.TensorProtoTensor):  # whose proto a caller may hold
                copy.const_value = onnx_ir.Tensor(tensor.numpy(), dtype=tensor.dtype)
            self.moved[held] = move_to_main_graph(self._model, copy, self._names)
            return
        assert known.const_value is not None
        axes = tuple(range(known.const_value.shape.rank()))
        substitute(copy, known, axes, self._names)
        drop_unread([copy])

    def _release_names(self, key: onnx_ir.OperatorIdentifier) -> None:
        """Let the copies of a body that goes have its names."""
        if key in self._released:
            return
        self._released.add(key)
        for graph in nested_graphs(self._model.functions[key].graph):
            values = [*graph.inputs, *graph.initializers.values()]
            values += [output for node in graph for output in node.outputs]
            for each in (*values, *graph):
                if each.name is not None:
                    self._names.release(each.name)

    def _drop_uncalled(self, keys: Iterable[onnx_ir.OperatorIdentifier]) -> None:
        called = {node.op_identifier() for node in all_nodes(self._model)}
        for key in keys:
            if key not in called:
                del self._model.functions[key]


def _is_same(node: onnx_ir.Node, version: int, other: int) -> bool:
    """Return whether an operator means the same in two versions of its domain."""
    try:
        since = [
            onnx.defs.get_schema(node.op_type, each, node.domain).since_version
            for each in (version, other)
        ]
    except onnx.defs.SchemaError:
        return False
    return since[0] == since[1]


def _bypass(graph: onnx_ir.Graph, identity: onnx_ir.Node) -> None:
    """Take an Identity out, unless a graph returns what it gives."""
    given, output = identity.inputs[0], identity.outputs[0]
    if given is None or output.is_graph_output():
        return
    given.type, given.shape = given.type or output.type, given.shape or output.shape
    output.replace_all_uses_with(given)
    graph.remove(identity, safe=True)
