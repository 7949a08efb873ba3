"""Check the graphs of a ModelProto: unique names, defined before use, with consistent types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

import onnx
from onnx import AttributeProto

from tieops.errors import UnsupportedModelError
from tieops.ir.operators.identity import domain_of, domain_title
from tieops.untrusted.limits import Limits, check_limit
from tieops.untrusted.onnx_attributes import check_attributes, check_metadata
from tieops.untrusted.onnx_calls import Key, node_graphs, node_key
from tieops.untrusted.onnx_operators import (
    check_against,
    check_operands,
    operator_of,
    result_types,
    sizes_of,
)
from tieops.untrusted.onnx_tensors import check_tensor, shown
from tieops.untrusted.onnx_types import check_declared, element_type

__all__ = ["GraphChecks", "refuse_repeats"]

_Body = onnx.GraphProto | onnx.FunctionProto


def refuse_repeats(what: str, names: Iterable[str]) -> None:
    """Refuse two of one name.

    Raises:
        UnsupportedModelError: With the first name that is repeated.
    """
    listed = list(names)
    if len(listed) == len(set(listed)):
        return
    repeated = [name for name, count in Counter(listed).items() if count > 1]
    raise UnsupportedModelError(
        f"duplicate {what}: {shown(repeated[0])}",
        {"repeated": len(repeated)},
        "readers take either the first or the last: rename or remove one",
    )


class GraphChecks:
    """Checks graphs, and counts over all of them.

    Args:
        functions: The model's functions.
        limits: What they may hold together.
        operators: Whether nodes are held to ONNX's schemas.
    """

    def __init__(
        self, functions: dict[Key, onnx.FunctionProto], limits: Limits, *, operators: bool = True
    ) -> None:
        self._operators = operators
        self._functions = functions
        self._limits = limits
        self._tensors = 0

    def run(self, body: _Body, opsets: dict[str, int], function: onnx.FunctionProto | None) -> None:
        """Check a graph or a function's body, and all graphs nested in it.

        Args:
            body: What holds the nodes.
            opsets: Version by domain.
            function: The function whose body it is.

        Raises:
            UnsupportedModelError: With the graph and the name, node or tensor.
            UntrustedFileError: For a tensor whose bytes are not what its shape says.
        """
        stack: list[tuple[_Body, tuple[set[str], ...]]] = [(body, ())]
        while stack:
            current, outer = stack.pop()
            check_limit(self._limits, "depth", len(outer), "graphs within graphs")
            types = self._check_header(current)
            defined = _defined(current)
            self._check_nodes(current, opsets, function, (defined, types, outer))
            _check_outputs(current, defined)
            check_declared(current, types)
            scopes = (*outer, defined)
            for node in current.node:
                stack.extend((graph, scopes) for graph in node_graphs(node))

    def _check_header(self, body: _Body) -> dict[str, int]:
        """Check everything but the nodes; return the element types that are known so far."""
        name = _name(body)
        check_metadata(body.metadata_props, name)
        if isinstance(body, onnx.FunctionProto):
            return {}
        if body.sparse_initializer:
            first = body.sparse_initializer[0].values.name
            raise UnsupportedModelError(
                f"{name} has sparse initializers, which tieops would lose",
                {"sparse": len(body.sparse_initializer), "first": shown(first)},
                "store them dense",
            )
        nameless = sum(1 for tensor in body.initializer if not tensor.name)
        if nameless:
            raise UnsupportedModelError(
                f"{name} has initializers without a name, which nothing can read",
                {"nameless": nameless},
                "name or remove them",
            )
        refuse_repeats(f"initializer of {name}", (tensor.name for tensor in body.initializer))
        refuse_repeats(f"input of {name}", (value.name for value in body.input))
        refuse_repeats(f"output of {name}", (value.name for value in body.output))
        self._count_tensors(len(body.initializer))
        types: dict[str, int] = {}
        for value in body.input:
            if not value.name:
                raise UnsupportedModelError(f"{name} has an input without a name", None, "name it")
            types[value.name] = element_type(value)
        for tensor in body.initializer:
            check_tensor(tensor, self._limits)
            if len(tensor.metadata_props) > 1:
                check_metadata(tensor.metadata_props, shown(tensor.name))
            types.setdefault(tensor.name, tensor.data_type)
        return types

    def _count_tensors(self, count: int) -> None:
        self._tensors += count
        if self._tensors > self._limits.tensors:
            check_limit(self._limits, "tensors", self._tensors, "tensors")

    def _check_nodes(
        self,
        body: _Body,
        opsets: dict[str, int],
        function: onnx.FunctionProto | None,
        names: tuple[set[str], dict[str, int], tuple[set[str], ...]],
    ) -> None:
        defined, types, outer = names
        sizes = cache(lambda: sizes_of(body) if isinstance(body, onnx.GraphProto) else {})
        made: set[str] = set()
        before = {e.name for e in body.input} | {e.name for e in body.initializer} if (
            outer and isinstance(body, onnx.GraphProto)) else set[str]()  # fmt: skip
        for node in body.node:
            for name in node.input:
                if name and name not in defined and not any(name in scope for scope in outer):
                    raise UnsupportedModelError(
                        f"nothing defines {shown(name)}",
                        {"read by": f"{shown(node.op_type)} {shown(node.name)}".strip()},
                        "export the model again: an initializer or a node is missing",
                    )
                if outer and name in defined and name not in before:
                    _refuse_ambiguous(name, made, outer, body)
            made.update(node.output)
            attributes = check_attributes(node, function, self._limits)
            if attributes and AttributeProto.TENSOR in attributes.values():
                self._count_tensors(1)
            self._check_operator(node, opsets, attributes, types)
            if isinstance(body, onnx.GraphProto):
                check_operands(node, sizes)

    def _check_operator(
        self,
        node: onnx.NodeProto,
        opsets: dict[str, int],
        attributes: dict[str, int],
        types: dict[str, int],
    ) -> None:
        domain = domain_of(node.domain)
        version = opsets.get(domain)
        if version is None:
            raise UnsupportedModelError(
                f"no opset is imported for the domain {shown(domain_title(domain))}",
                {"read by": f"{shown(node.op_type)} {shown(node.name)}".strip()},
                "each reader would choose its own version: add it to opset_import",
            )
        called = self._functions.get(node_key(node))
        if called is not None:
            _check_call(node, called)
            return
        operator = operator_of(domain, node.op_type, version) if self._operators else None
        if operator is None:
            return
        check_against(operator, node, attributes)
        for name, kind in result_types(operator, node, types):
            types[name] = kind


def _name(body: _Body) -> str:
    if isinstance(body, onnx.FunctionProto):
        return f"function {shown(body.name)}"
    return shown(body.name) or "the graph"


def _defined(body: _Body) -> set[str]:
    """Return what a graph defines; no name twice, but for an input with a stored value."""
    graph = isinstance(body, onnx.GraphProto)
    defined = {each.name for each in body.input} if graph else set[str](body.input)
    if isinstance(body, onnx.GraphProto):
        defined |= {tensor.name for tensor in body.initializer}
    for node in body.node:
        for name in node.output:
            if name in defined:
                raise UnsupportedModelError(
                    f"duplicate value {shown(name)} in {_name(body)}",
                    {"written again by": f"{shown(node.op_type)} {shown(node.name)}".strip()},
                    "readers take either the first or the last: rename one",
                )
            if name:
                defined.add(name)
    return defined


def _check_outputs(body: _Body, defined: set[str]) -> None:
    names: Sequence[str] = (
        body.output
        if isinstance(body, onnx.FunctionProto)
        else [value.name for value in body.output]
    )
    for name in names:
        if name not in defined:
            raise UnsupportedModelError(
                f"nothing in {_name(body)} defines its output {shown(name) or '?'}",
                None,
                "export the model again; to return an outer value, return an Identity of it",
            )


def _refuse_ambiguous(name: str, made: set[str], outer: tuple[set[str], ...], body: _Body) -> None:
    """Refuse a read of a name of an outer graph that this graph gives another value later."""
    if name not in made and any(name in scope for scope in outer):
        raise UnsupportedModelError(
            f"{shown(name)} is read in {_name(body)} before it is defined there, and is the name "
            "of an outer value too",
            None,
            "readers take either of the two: rename one",
        )


def _check_call(node: onnx.NodeProto, function: onnx.FunctionProto) -> None:
    for what, has, takes in (
        ("inputs", len(node.input), len(function.input)),
        ("outputs", len(node.output), len(function.output)),
    ):
        if has > takes:
            raise UnsupportedModelError(
                f"a call to {shown(node.op_type)} has more {what} than the function",
                {"call": has, "function": takes},
                "export the model again",
            )
