"""The module that to_torch returns: a GraphModule that can be copied and pickled."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.fx.node import map_aggregate, map_arg

__all__ = ["ConvertedModule", "PlainModule", "converted", "is_of_graph_module"]


class ConvertedModule(fx.GraphModule):
    """A GraphModule whose copies and pickles keep every name, tie and buffer.

    A plain GraphModule is copied with all its buffers in the state_dict and without the further
    names of a tied parameter, and is pickled by tracing its functions, which take sizes that a
    tracer does not know.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> ConvertedModule:
        return _rebuilt(*copy.deepcopy(_parts(self, self.graph), memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, _parts(self, self.graph)

    def __copy__(self) -> ConvertedModule:
        return _rebuilt(*_parts(self, self.graph))


class PlainModule(nn.Module):
    """A module with the forward of a GraphModule, and with layers called ``graph`` or ``code``.

    A GraphModule has these names for itself, and torch, which asks it for them, would find a layer.
    ``converted`` makes a class for each instance, as fx does.
    """

    _tieops_graph: fx.Graph

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return _rebuilt(*copy.deepcopy(_parts(self, self._tieops_graph), memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, _parts(self, self._tieops_graph)

    def __copy__(self) -> nn.Module:
        return _rebuilt(*_parts(self, self._tieops_graph))


def converted(content: nn.Module, graph: fx.Graph) -> ConvertedModule | PlainModule:
    """Return the module that runs a graph, with all that ``content`` holds.

    Returns:
        A GraphModule; a plain module if ``content`` has a name that a GraphModule needs.

    Example:
        >>> graph = fx.Graph()
        >>> graph.output(graph.placeholder("x")) and None
        >>> isinstance(converted(nn.Module(), graph), fx.GraphModule)
        True
        >>> type(converted(nn.ModuleDict({"code": nn.ReLU()}), graph)).__mro__[1].__name__
        'PlainModule'
    """
    program = ConvertedModule(nn.Module(), fx.Graph())
    program.graph = graph
    names = _names_in(content)
    if not any(map(is_of_graph_module, names)):
        vars(program).update(vars(content))
        return program
    shown = {"code": program.code, "graph": graph}
    known = {name: value for name, value in shown.items() if name not in names}
    known |= {"forward": type(program).forward, "_tieops_graph": graph}
    module = type("ConvertedModule", (PlainModule,), known)()
    vars(module).update(vars(content))
    return module


def is_of_graph_module(name: str) -> bool:
    """Return whether a GraphModule has an attribute of this name that other modules do not have."""
    return hasattr(_EMPTY, name) and not hasattr(nn.Module, name) and name not in _EVERY_MODULE


_EVERY_MODULE = frozenset(vars(nn.Module()))
_EMPTY = fx.GraphModule(nn.Module(), fx.Graph())


def _names_in(module: nn.Module) -> set[str]:
    return {*module._parameters, *module._buffers, *module._modules}  # pyright: ignore[reportPrivateUsage]


@dataclass(frozen=True)
class _Ref:
    """A node among the arguments of another one, by its place in the graph."""

    place: int


_Step = tuple[str, Any, tuple[Any, ...], dict[str, Any], str]


def _parts(module: nn.Module, graph: fx.Graph) -> tuple[dict[str, Any], list[_Step]]:
    """Return a module's attributes and the nodes of its graph as plain data."""
    places: dict[fx.Node, Any] = {node: _Ref(place) for place, node in enumerate(graph.nodes)}
    steps: list[_Step] = []
    for node in graph.nodes:
        args, kwargs = map_arg((node.args, node.kwargs), lambda each: places[each])  # pyright: ignore
        steps.append((node.op, node.target, args, kwargs, node.name))
    made = vars(_EMPTY).keys() - _EVERY_MODULE - {"meta"}
    return {name: value for name, value in vars(module).items() if name not in made}, steps


def _rebuilt(attributes: dict[str, Any], steps: Sequence[_Step]) -> Any:
    content = nn.Module()
    vars(content).update({name: copy.copy(value) for name, value in attributes.items()})
    graph = fx.Graph()
    nodes: list[fx.Node] = []

    def node(argument: Any) -> Any:
        return nodes[argument.place] if isinstance(argument, _Ref) else argument

    for op, target, args, kwargs, name in steps:
        given = map_aggregate((args, kwargs), node)
        nodes.append(graph.create_node(op, target, *given, name))  # pyright: ignore
    return converted(content, graph)
