"""Convert the nodes of one ONNX graph to nodes of a torch.fx graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir
import torch
from onnx_ir.tensor_adapters import to_torch_dtype
from torch import fx, nn

from tieops.errors import UnsupportedModelError
from tieops.exporters.torch.module import converted, is_of_graph_module
from tieops.exporters.torch.ops import Operator, find, host, snake
from tieops.exporters.torch.ops.recurrent import onnx_packed
from tieops.exporters.torch.ops.symbolic_ints import ON_INTEGERS, SymbolicInts, literal_of
from tieops.exporters.torch.store import Store
from tieops.exporters.torch.tensor_names import identifier, read
from tieops.ir.metadata.keys import PADDING_IDX, is_generated_name
from tieops.ir.metadata.parsing import number
from tieops.ir.notation import brief_dtype, printable
from tieops.ir.operators.identity import domain_of, operator_name, opset_version
from tieops.ir.operators.predicates import (
    is_constant_operator,
    is_gather,
    is_range,
    is_recurrent,
    is_shape,
    is_size_query,
    keeps_integers,
)

__all__ = ["Program", "Translator"]

_DTYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")
TABLE = "tieops/exporters/torch/ops"


class Program:
    """What all graphs of one model share while they are translated."""

    def __init__(
        self, model: onnx_ir.Model, store: Store, host: dict[onnx_ir.Value, SymbolicInts]
    ) -> None:
        self.opsets = model.opset_imports
        self.store = store
        self.host = host

    def operator(self, node: onnx_ir.Node) -> Operator:
        """Return the table's entry for a node.

        Raises:
            UnsupportedModelError: If there is none.
        """
        domain = domain_of(node.domain)
        version = node.version or opset_version(self.opsets, domain) or 1
        found = find(domain, node.op_type, version)
        if found is None:
            raise UnsupportedModelError(
                f"to_torch does not support the operator {printable(operator_name(node))}",
                {"node": printable(node.name or "without a name"), "opset": version},
                f"add a function for it to a file of {TABLE}",
            )
        return found


class Translator:
    """Writes one ONNX graph as one fx graph.

    A value has up to three forms, each made when it is first wanted: a tensor, Python numbers
    (``numbers``), and for packed recurrent weights the tuple of their parts (``parts``). What an
    inner graph wants of an outer one becomes a placeholder here and an argument there.
    """

    def __init__(
        self, program: Program, graph: onnx_ir.Graph, module: nn.Module, outer: Translator | None
    ) -> None:
        self._program = program
        self._source = graph
        self._module = module
        self._outer = outer
        self._names: set[str] = set()
        self._made: dict[tuple[object, str], Any] = {}
        self._own = {output for node in graph for output in node.outputs}
        self.graph = fx.Graph()
        self.captured: list[Any] = []
        """What the outer graph has to hand over after the inputs, as nodes of the outer graph."""

    def run(self, inputs: Sequence[onnx_ir.Value]) -> fx.Graph:
        """Translate all nodes; the graph's arguments are ``inputs``, then what it captures."""
        for value in inputs:
            self._made[value, "tensor"] = self._placeholder(value.name or "input")
        for node in self._source:
            self._translate(node)
        outputs = [self.tensor(value) for value in self._source.outputs]
        is_single = self._outer is None and len(outputs) == 1
        self.graph.output(outputs[0] if is_single else tuple(outputs))
        return self.graph

    # --- the forms of a value -------------------------------------------------------------------

    def tensor(self, value: onnx_ir.Value) -> Any:
        """Return the node that is this value as a tensor."""
        return self._get(value, "tensor")

    def numbers(self, value: onnx_ir.Value) -> Any:
        """Return Python numbers, or the node that computes them."""
        literal = literal_of(value)
        if literal is None and value.const_value is not None:
            literal = tuple(value.const_value.numpy().reshape(-1).tolist())
        return self._get(value, "numbers") if literal is None else literal

    def parts(self, value: onnx_ir.Value) -> Any:
        """Return the parts of a recurrent weight where the module has them, else the tensor."""
        if value.const_value is not None and self._program.store.place(value).packed:
            return self._get(value, "parts")
        return self.tensor(value)

    def like(self) -> Any:
        """Return an input that stands for the device that the program runs on; None without any."""
        top = self
        while top._outer is not None:
            top = top._outer
        first = next((v for v in top._source.inputs if (v, "tensor") in top._made), None)
        return None if first is None else self.tensor(first)

    def _get(self, value: onnx_ir.Value, form: str) -> Any:
        key = (value, form)
        if key not in self._made:
            self._made[key] = self._make(value, form)
        return self._made[key]

    def _make(self, value: onnx_ir.Value, form: str) -> Any:
        is_local = value in self._own or (value, "tensor") in self._made
        if self._outer is not None and (value.const_value is not None or not is_local):
            # The outermost module has everything that is stored.
            self.captured.append(self._outer._get(value, form))
            return self._placeholder(value.name or "outer")
        if value.const_value is not None:
            return self._read(value, form)
        if form == "numbers":
            return self._call(host.to_numbers, (self.tensor(value),), value, "_numbers")
        kwargs = {"dtype": to_torch_dtype(self._program.host[value].dtype), "like": self.like()}
        return self._call(host.to_tensor, (self.numbers(value),), value, "_tensor", kwargs)

    def _read(self, value: onnx_ir.Value, form: str) -> Any:
        stored = self._program.store.place(value)
        nodes = tuple(read(self.graph, self._module, target) for target in stored.targets)
        if stored.packed is None:
            if stored.perm is None:
                return nodes[0]
            return self._call(torch.permute, (nodes[0], stored.perm), value, "_view")
        if form == "parts":
            return nodes
        return self._call(onnx_packed, (self._get(value, "parts"), *stored.packed), value)

    # --- nodes ----------------------------------------------------------------------------------

    def _translate(self, node: onnx_ir.Node) -> None:
        if is_constant_operator(node) and node.outputs[0].const_value is not None:
            return
        if node.outputs and node.outputs[0] in self._program.host:
            self._made[node.outputs[0], "numbers"] = self._host(node)
            return
        entry = self._program.operator(node)
        _check_dtypes(node)
        args = [self._argument(node, i, entry) for i in range(len(node.inputs))]
        while args and args[-1] is None:
            args.pop()
        kwargs = self._attributes(node, entry) | self._extras(node, entry)
        if isinstance(entry.target, type):
            found = self._submodule(node, entry, args, kwargs)
        else:
            found = self._call(entry.target, tuple(args), node.outputs[0], "", kwargs)
        self._take(node, entry, found)

    def _take(self, node: onnx_ir.Node, entry: Operator, found: Any) -> None:
        if not entry.many:
            self._made[node.outputs[0], "tensor"] = found
            return
        for index, output in enumerate(node.outputs):
            if output.uses() or output.is_graph_output():
                item = self._call(operator.getitem, (found, index), output)
                self._made[output, "tensor"] = item

    def _host(self, node: onnx_ir.Node) -> Any:
        function, _ = ON_INTEGERS[node.op_type]
        wants_tensor = is_size_query(node)
        if is_shape(node) and node.inputs[0] in self._program.host:
            function, wants_tensor = host.length, False
        args = [
            None if v is None else self.tensor(v) if wants_tensor else self.numbers(v)
            for v in node.inputs
        ]
        kwargs = self._attributes(node, None)
        return self._call(function, tuple(args), node.outputs[0], "", kwargs)

    def _argument(self, node: onnx_ir.Node, index: int, entry: Operator) -> Any:
        value = node.inputs[index]
        if value is None:
            return None
        if index in entry.literals:
            return self.numbers(value)
        if is_recurrent(node) and index in (1, 2, 3):
            return self.parts(value)
        if index in entry.scalars and self._is_scalar(value):
            others = [v for i, v in enumerate(node.inputs) if i != index and v is not None]
            if (index and others) or not all(self._is_scalar(other) for other in others):
                return literal_of(value)
        return self.tensor(value)

    def _is_scalar(self, value: onnx_ir.Value) -> bool:
        tensor = value.const_value
        if tensor is None or len(tensor.shape):
            return False
        return value not in self._program.store and not tensor.dtype.is_string()

    def _attributes(self, node: onnx_ir.Node, entry: Operator | None) -> dict[str, Any]:
        kwargs: dict[str, Any] = {}
        for name, attribute in node.attributes.items():
            if attribute.type in (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS):
                continue
            if name == "consumed_inputs":
                continue  # of opset 1: which inputs a runtime might overwrite
            argument = snake(name)
            if entry is not None and argument not in entry.arguments:
                raise UnsupportedModelError(
                    f"to_torch does not support the attribute {printable(name)} of "
                    f"{printable(node.op_type)}",
                    {"node": printable(node.name or "without a name")},
                    f"add it to the operator's function in {TABLE}",
                )
            if attribute.type == onnx_ir.AttributeType.TENSOR:
                tensor = attribute.as_tensor()
                kwargs[argument] = tensor.numpy().reshape(-1)[0].item()
                kwargs["dtype"] = to_torch_dtype(tensor.dtype)
            elif name in _DTYPE_ATTRIBUTES:
                kwargs |= self._dtype(node, argument, attribute.as_int())
            elif entry is None or _plain(attribute.value) != entry.arguments[argument]:
                kwargs[argument] = _plain(attribute.value)
        return kwargs

    def _dtype(self, node: onnx_ir.Node, argument: str, number: int) -> dict[str, Any]:
        if number == 0:
            return {}
        dtype = _torch_dtype(number)
        if dtype is None:
            raise UnsupportedModelError(
                f"torch has no dtype for the output of {printable(node.op_type)}",
                {"node": printable(node.name or "without a name"), "dtype": number},
                "convert to another dtype",
            )
        return {argument: dtype}

    def _extras(self, node: onnx_ir.Node, entry: Operator) -> dict[str, Any]:
        """Return the arguments that are neither inputs nor attributes."""
        extras: dict[str, Any] = {}
        if "outputs" in entry.arguments:
            extras["outputs"] = len(node.outputs)
        if "like" in entry.arguments:
            extras["like"] = self.like()
        row = number(node.metadata_props.get(PADDING_IDX))
        if is_gather(node) and row is not None:
            extras["padding_idx"] = row
        if is_range(node) and (dtype := self._dtype_of(node.inputs[0])) is not None:
            extras["dtype"] = dtype
        return extras

    def _dtype_of(self, value: onnx_ir.Value | None) -> torch.dtype | None:
        if value is None:
            return None
        known = self._program.host.get(value)
        tensor = value.const_value
        dtype = known.dtype if known else tensor.dtype if tensor is not None else value.dtype
        return None if dtype is None else to_torch_dtype(dtype)

    def _submodule(
        self, node: onnx_ir.Node, entry: Operator, args: list[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Add what an operator needs a module for, with a module in it for each inner graph."""
        handed: dict[str, Any] = {}
        for name, attribute in node.attributes.items():
            if attribute.type == onnx_ir.AttributeType.GRAPH:
                inner = nn.Module()
                translator = Translator(self._program, attribute.as_graph(), inner, self)
                graph = translator.run(attribute.as_graph().inputs)
                kwargs[name] = converted(inner, graph)
                if translator.captured:
                    handed[name] = tuple(translator.captured)
        name = identifier(node.name or f"{node.op_type}_{len(self.graph.nodes)}")
        while hasattr(self._module, name) or is_of_graph_module(name):
            name += "_"
        self._module.add_module(name, entry.target(**kwargs))
        return self.graph.create_node("call_module", name, tuple(args), handed)

    def _call(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        value: onnx_ir.Value,
        suffix: str = "",
        kwargs: dict[str, Any] | None = None,
    ) -> fx.Node:
        name = value.name or ""
        if not name or is_generated_name(name):
            name = function.__name__
        return self.graph.create_node(
            "call_function", function, args, kwargs or {}, name=identifier(name + suffix)
        )

    def _placeholder(self, wanted: str) -> fx.Node:
        """Add an argument under this name, or one beside it where two values have it."""
        name = identifier(wanted)
        while name in self._names:
            name += "_"
        self._names.add(name)
        return self.graph.placeholder(name)


def _torch_dtype(number: int) -> torch.dtype | None:
    try:
        dtype = onnx_ir.DataType(number)
        return to_torch_dtype(dtype) if dtype.bitwidth >= 8 else None
    except (TypeError, ValueError):
        return None


def _check_dtypes(node: onnx_ir.Node) -> None:
    """Refuse inputs whose dtype torch computes nothing with."""
    for value in node.inputs:
        tensor = value.const_value if value is not None else None
        dtype = tensor.dtype if tensor is not None else value.dtype if value is not None else None
        if value is None or dtype in (None, onnx_ir.DataType.UNDEFINED):
            continue
        if dtype == onnx_ir.DataType.STRING or (dtype.bitwidth < 8 and not keeps_integers(node)):
            raise UnsupportedModelError(
                f"torch cannot compute {printable(node.op_type)} of {brief_dtype(dtype)}",
                {"node": printable(node.name or "without a name"), "input": str(value.name)},
                "convert to a dtype of torch",
            )


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(value)
    return value.decode() if isinstance(value, bytes) else value
