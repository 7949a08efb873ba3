"""The module that to_torch returns: a GraphModule that is copied and pickled as it is."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.fx.node import map_aggregate, map_arg

__all__ = ["ConvertedModule"]


class ConvertedModule(fx.GraphModule):
    """A GraphModule whose copies and pickles keep every name, tie and buffer.

    A plain GraphModule is copied with all its buffers in the state_dict and without the further
    names of a tied parameter, and is pickled by tracing its functions, which take sizes that a
    tracer does not know.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> ConvertedModule:
        return _rebuilt(*copy.deepcopy(_parts(self), memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, _parts(self)

    def __copy__(self) -> ConvertedModule:
        return _rebuilt(*_parts(self))


@dataclass(frozen=True)
class _Ref:
    """A node among the arguments of another one, by its place in the graph."""

    place: int


_Step = tuple[str, Any, tuple[Any, ...], dict[str, Any], str]


def _parts(module: fx.GraphModule) -> tuple[dict[str, Any], list[_Step]]:
    """Return a module's attributes and the nodes of its graph as plain data."""
    places: dict[fx.Node, Any] = {
        node: _Ref(place) for place, node in enumerate(module.graph.nodes)
    }
    steps: list[_Step] = []
    for node in module.graph.nodes:
        args, kwargs = map_arg((node.args, node.kwargs), lambda each: places[each])  # pyright: ignore
        steps.append((node.op, node.target, args, kwargs, node.name))
    made = vars(ConvertedModule(nn.Module(), fx.Graph())).keys() - vars(nn.Module()).keys()
    kept = {"meta", *(vars(module).keys() - made)}
    return {name: value for name, value in vars(module).items() if name in kept}, steps


def _rebuilt(attributes: dict[str, Any], steps: Sequence[_Step]) -> ConvertedModule:
    module = ConvertedModule(nn.Module(), fx.Graph())
    vars(module).update({name: copy.copy(value) for name, value in attributes.items()})
    graph = fx.Graph()
    nodes: list[fx.Node] = []

    def node(argument: Any) -> Any:
        return nodes[argument.place] if isinstance(argument, _Ref) else argument

    for op, target, args, kwargs, name in steps:
        given = map_aggregate((args, kwargs), node)
        nodes.append(graph.create_node(op, target, *given, name))  # pyright: ignore
    module.graph = graph
    return module
