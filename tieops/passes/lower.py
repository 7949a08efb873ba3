"""Lower tied reads: ``Transpose(W)`` and ``MatMul`` become a ``Gemm``, which runtimes keep single.

ONNX Runtime folds ``Transpose(W)`` into a second copy of W when it loads a model, below 1 GiB. A
``Gemm`` that transposes on the fly is never folded; inputs of more than two axes are flattened
around it. All operators are standard ones.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir

from tieops.analysis.problems.runtime_copies import is_transposed_product
from tieops.analysis.shapes import derived
from tieops.ir.edit import NameAuthority, add_initializer, replace_value
from tieops.ir.functions.calls import function_graphs
from tieops.ir.metadata.keys import origin_of
from tieops.ir.operators.identity import opset_version
from tieops.ir.operators.predicates import is_gemm, is_matmul, is_permutation
from tieops.ir.parameter import Slot
from tieops.model import TiedModel
from tieops.passes.base import Change, Plan, Preserves, Rewrite, Skip, SurgeryPass
from tieops.passes.node_builder import NodeBuilder

__all__ = ["LowerPlan", "LowerTiedReadsPass"]

MIN_OPSET = 14
"""Where Reshape can be told that a size of 0 is a size, for inputs without rows."""
_GEMM_DTYPES = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16")


@dataclass(frozen=True, kw_only=True, eq=False)
class LowerPlan(Plan):
    """Which reads are lowered.

    Args:
        shapes: The slots, each with the shape of what its weight is multiplied by, if it is known.
    """

    shapes: Mapping[Slot, onnx_ir.Shape | None]


@dataclass(frozen=True, kw_only=True)
class LowerTiedReadsPass(SurgeryPass[LowerPlan]):
    """Read tied weights through Gemm's own transpose instead of a Transpose node."""

    preserves: ClassVar[Preserves] = Preserves.SIGNATURE | Preserves.NUMERICS

    def plan(self, model: TiedModel) -> LowerPlan:
        """Find every tied read that has the form."""
        functions = function_graphs(model.ir)
        slots: list[Slot] = []
        skips: list[Skip] = []
        for slot in filter(is_transposed_product, _shared(model)):
            why = _why_not(slot, functions, opset_version(model.ir.opset_imports))
            if why:
                skips.append(Skip(slot.name, why))
            else:
                slots.append(slot)
        given = {slot: slot.node.inputs[0] for slot in slots if is_matmul(slot.node)}
        known = derived(model.ir, {x for x in given.values() if x is not None})
        shapes = {slot: known.get(x) if (x := given.get(slot)) else None for slot in slots}
        return LowerPlan(model=model, skips=tuple(skips), shapes=shapes)

    def apply(self, model: onnx_ir.Model, plan: LowerPlan) -> Rewrite:
        """Lower them."""
        names = NameAuthority(model)
        for slot, shape in plan.shapes.items():
            if is_gemm(slot.node):
                _flip(slot)
            else:
                _matmul_to_gemm(slot, shape, model, names)
            _drop_view(slot)
        what = "reads its weight through Gemm's transB"
        return Rewrite(tuple(Change(slot.name, what) for slot in plan.shapes), plan.skips)


def _why_not(slot: Slot, functions: Container[onnx_ir.Graph | None], opset: int) -> str:
    """Return why a read cannot be lowered; empty if it can."""
    if slot.path or slot.parameter.value.graph in functions:
        return "it is read in a function"
    if opset < MIN_OPSET:
        return f"opset {opset} is older than {MIN_OPSET}"
    if slot.parameter.dtype.name not in _GEMM_DTYPES:
        return f"Gemm takes no {slot.parameter.dtype.name.lower()}"
    return ""


def _shared(model: TiedModel) -> list[Slot]:
    """Return the slots of ties; and of what was tied once, so that untying changes no bit."""
    tied = {slot for tie in model.ties for slot in tie.slots}
    return [slot for slot in model.slots if slot in tied or origin_of(slot.parameter.value)]


def _flip(slot: Slot) -> None:
    node = slot.node
    attr = node.attributes.get("transB")
    node.attributes["transB"] = onnx_ir.AttrInt64("transB", 0 if attr and attr.as_int() else 1)
    node.replace_input_with(1, slot.parameter.value)


def _matmul_to_gemm(
    slot: Slot, shape: onnx_ir.Shape | None, model: onnx_ir.Model, names: NameAuthority
) -> None:
    # A bias that is added afterwards stays where it is: within the Gemm it would be added first,
    # and round otherwise. Without it ONNX Runtime's packed Gemm is its packed MatMul bit for bit.
    node, weight = slot.node, slot.parameter
    x, out = node.inputs[0], node.outputs[0]
    assert x is not None
    features, hidden = weight.shape
    build = NodeBuilder(node.name or out.name or "linear", node, names)
    if shape is not None and shape.rank() == 2:
        result = build("Gemm", [x, weight.value], {"transB": 1}, part="gemm")
    else:
        flat = build("Reshape", [x, _ints(model, -1, hidden)], part="flat")
        rows = build("Gemm", [flat, weight.value], {"transB": 1}, part="gemm")
        sizes = _unflattened(build, model, x, shape, features)
        # Computed sizes may be 0, which is a size here and not "as it was".
        as_given = {} if sizes.is_initializer() else {"allowzero": 1}
        result = build("Reshape", [rows, sizes], as_given, part="unflat")
    graph = node.graph
    assert graph is not None
    graph.insert_before(node, build.nodes)
    replace_value(out, result)
    graph.remove(node, safe=True)


def _unflattened(
    build: NodeBuilder,
    model: onnx_ir.Model,
    x: onnx_ir.Value,
    shape: onnx_ir.Shape | None,
    features: int,
) -> onnx_ir.Value:
    """Return the sizes of ``x``, ``features`` for the last: a constant if one at most varies."""
    leading = [] if shape is None else list(shape.dims[:-1])
    fixed = [size if isinstance(size, int) else -1 for size in leading]
    if shape is not None and fixed.count(-1) <= 1 and 0 not in fixed:
        return _ints(model, *fixed, features)
    whole = build("Shape", [x], part="shape")
    lead = build("Slice", [whole, _ints(model, 0), _ints(model, -1)], part="leading")
    return build("Concat", [lead, _ints(model, features)], {"axis": 0}, part="sizes")


def _drop_view(slot: Slot) -> None:
    for node in reversed(slot.reads[0].nodes):
        if not is_permutation(node):
            return
        out = node.outputs[0]
        if node.graph is None or out.uses() or out.is_graph_output():
            return
        node.graph.remove(node, safe=True)


def _ints(model: onnx_ir.Model, *numbers: int) -> onnx_ir.Value:
    """Return an operand of these numbers: one initializer for all that need the same."""
    name = "tieops.ints_" + "_".join(str(number) for number in numbers)
    known = model.graph.initializers.get(name)
    return add_initializer(model, name, np.array(numbers, np.int64)) if known is None else known
