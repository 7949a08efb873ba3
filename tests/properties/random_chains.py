"""Random chains of operators that move elements, with operands in every form there is.

A chain begins at a value of known shape. Each step has the operands that fit, given as a stored
tensor, a Constant, computed from stored tensors, fed by the caller, overridable by the caller,
computed from the shape of an input, left out, or by reference within a function.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from tests.support.plain_runtime import REFUSALS

FORMS = ("stored", "constant", "identity", "concat", "fed", "overridable", "sizes", "referenced")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One operator: what it is given beside its data, and the shape that comes out."""

    op: str
    shape: Shape
    operands: Mapping[int, Sequence[int]] = field(default_factory=dict)
    attributes: Mapping[str, object] = field(default_factory=dict)


class Program:
    """A model while it is written.

    Args:
        seed: What is drawn.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.feeds: dict[str, np.ndarray] = {}
        self.operands: list[str] = []
        """The inputs that are operands."""
        self._count = 0

    def name(self, what: str) -> str:
        self._count += 1
        return f"{what}{self._count}"

    def store(self, name: str, array: np.ndarray) -> str:
        self.stored.append(numpy_helper.from_array(array, name))
        return name

    def feed(self, name: str, array: np.ndarray, *, symbolic: bool = False) -> str:
        sizes = [f"{name}_n", *array.shape[1:]] if symbolic else array.shape
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        self.inputs.append(helper.make_tensor_value_info(name, dtype, sizes))
        self.feeds[name] = array
        return name

    def node(self, op: str, inputs: Sequence[str], **attributes: object) -> str:
        out = self.name("v")
        self.nodes.append(helper.make_node(op, inputs, [out], name=f"{op}_{out}", **attributes))
        return out

    def returns(self, value: str) -> None:
        self.outputs.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, None))

    def weight(self, shape: Shape) -> np.ndarray:
        """Return whole numbers: how ONNX Runtime rounds depends on which of them are stored."""
        return self.rng.integers(-99, 100, shape).astype(np.float32)

    def chain(self, value: str, shape: Shape, steps: int) -> tuple[str, Shape]:
        """Move a value a few times; return what comes out and its shape."""
        for _ in range(steps):
            step = self._draw(shape)
            if math.prod(step.shape) == 0 or math.prod(step.shape) > 4096 or len(step.shape) > 5:
                continue
            value = self._apply(step, value)
            shape = step.shape
        return value, shape

    def proto(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "g", self.inputs, self.outputs, self.stored)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
        return helper.make_model(
            graph, ir_version=8, opset_imports=opsets, functions=self.functions
        )

    # --- one step -------------------------------------------------------------------------------

    def _apply(self, step: Step, value: str) -> str:
        form = str(self.rng.choice(FORMS))
        if form == "referenced":
            return self._call(step, value)
        inputs = [value] + [""] * max(step.operands, default=0)
        for index, values in step.operands.items():
            inputs[index] = self._operand(values, str(self.rng.choice([form, *FORMS[:-1]])))
        return self.node(step.op, inputs, **step.attributes)

    def _call(self, step: Step, value: str) -> str:
        """Put the step into a function that a call gives all that it is told."""
        name, body = self.name("f"), list[onnx.NodeProto]()
        given: dict[str, object] = dict(step.attributes)
        inputs = ["x"] + [""] * max(step.operands, default=0)
        for index, values in step.operands.items():
            inputs[index] = f"operand{index}"
            given[inputs[index]] = list(values)
            constant = helper.make_node("Constant", [], [inputs[index]])
            kind = onnx.AttributeProto.INTS
            constant.attribute.add(name="value_ints", ref_attr_name=inputs[index], type=kind)
            body.append(constant)
        node = helper.make_node(step.op, inputs, ["y"], name=f"{step.op}_in_{name}")
        for each, given_value in step.attributes.items():
            kind = helper.make_attribute(each, given_value).type
            node.attribute.add(name=each, ref_attr_name=each, type=kind)
        body.append(node)
        opsets = [helper.make_opsetid("", 18)]
        self.functions.append(
            helper.make_function("local", name, ["x"], ["y"], body, opsets, list(given))
        )
        out = self.name("v")
        self.nodes.append(helper.make_node(name, [value], [out], f"call_{name}", domain="local"))
        for each, given_value in given.items():
            self.nodes[-1].attribute.append(helper.make_attribute(each, given_value))
        return out

    def _operand(self, values: Sequence[int], form: str) -> str:
        name, array = self.name("o"), np.array(values, np.int64)
        if form == "constant":
            made = helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
            self.nodes.append(made)
            return name
        if form == "identity":
            return self.node("Identity", [self.store(name, array)])
        if form == "concat" and array.size:
            parts = [self.store(f"{name}_{at}", array[at : at + 1]) for at in range(array.size)]
            return self.node("Concat", parts, axis=0)
        if form == "sizes" and array.size and array.min() >= 0:
            # The sizes of an input that may have any.
            sized = np.zeros((*(int(each) for each in array), 0), np.float32)
            sizes = [*(f"{name}_{at}" for at in range(array.size)), 0]
            self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes))
            self.feeds[name] = sized
            return self.node("Shape", [name], end=array.size)
        if form == "fed":
            self.operands.append(name)
            return self.feed(name, array)
        if form == "overridable":
            self.operands.append(name)
            return self.feed(self.store(name, array), array)
        return self.store(name, array)

    def _draw(self, shape: Shape) -> Step:
        kinds = ["Identity", "Unsqueeze", "Reshape", "Flatten", "Squeeze"]
        kinds += ["Transpose", "Slice", "Tile", "Gather", "Pad", "Expand"] if shape else []
        kind = str(self.rng.choice(kinds))
        draw = getattr(self, f"_{kind.lower()}")
        return draw(shape, int(self.rng.integers(len(shape))) if shape else 0)

    def _either_sign(self, axis: int, rank: int) -> int:
        """Return an axis, counted from the front or from the back."""
        return int(self.rng.choice([axis, axis - rank]))

    def _identity(self, shape: Shape, _: int) -> Step:
        return Step("Identity", shape)

    def _unsqueeze(self, shape: Shape, _: int) -> Step:
        at = int(self.rng.integers(len(shape) + 1))
        return Step("Unsqueeze", (*shape[:at], 1, *shape[at:]), {1: [at]})

    def _squeeze(self, shape: Shape, _: int) -> Step:
        ones = [at for at, each in enumerate(shape) if each == 1]
        if not ones or self.rng.random() < 0.3:
            return Step("Squeeze", tuple(each for each in shape if each != 1))
        gone = int(self.rng.choice(ones))
        return Step("Squeeze", (*shape[:gone], *shape[gone + 1 :]), {1: [gone]})

    def _flatten(self, shape: Shape, _: int) -> Step:
        at = int(self.rng.integers(len(shape) + 1))
        return Step("Flatten", (math.prod(shape[:at]), math.prod(shape[at:])), {}, {"axis": at})

    def _transpose(self, shape: Shape, _: int) -> Step:
        perm = [int(each) for each in self.rng.permutation(len(shape))]
        if self.rng.random() < 0.2:
            return Step("Transpose", tuple(reversed(shape)))
        return Step("Transpose", tuple(shape[each] for each in perm), {}, {"perm": perm})

    def _slice(self, shape: Shape, axis: int) -> Step:
        rng, size = self.rng, shape[axis]
        start = int(rng.integers(size))
        stop = int(rng.choice([size, 2**31 - 1, min(start + 2, size)]))
        step = int(rng.choice([1, 1, 2]))
        left = len(range(size)[start:stop:step])
        operands = {1: [start], 2: [stop]}
        if axis or step != 1 or rng.random() < 0.5:
            operands[3] = [self._either_sign(axis, len(shape))]
        if step != 1:
            operands[4] = [step]
        return Step("Slice", (*shape[:axis], left, *shape[axis + 1 :]), operands)

    def _tile(self, shape: Shape, axis: int) -> Step:
        times = [1] * len(shape)
        times[axis] = int(self.rng.integers(1, 3))
        sizes = tuple(a * b for a, b in zip(shape, times, strict=True))
        return Step("Tile", sizes, {1: times})

    def _gather(self, shape: Shape, axis: int) -> Step:
        ids = [int(each) for each in self.rng.integers(-shape[axis], shape[axis], 3)]
        sizes = (*shape[:axis], 3, *shape[axis + 1 :])
        return Step("Gather", sizes, {1: ids}, {"axis": self._either_sign(axis, len(shape))})

    def _pad(self, shape: Shape, axis: int) -> Step:
        amounts = [0] * (2 * len(shape))
        amounts[axis] = int(self.rng.integers(2))
        sizes = (*shape[:axis], shape[axis] + amounts[axis], *shape[axis + 1 :])
        return Step("Pad", sizes, {1: amounts})

    def _expand(self, shape: Shape, _: int) -> Step:
        return Step("Expand", shape, {1: [e if self.rng.random() < 0.5 else 1 for e in shape]})

    def _reshape(self, shape: Shape, _: int) -> Step:
        total = math.prod(shape)
        sizes = list(shape)
        if len(sizes) > 1 and self.rng.random() < 0.5:
            at = int(self.rng.integers(len(sizes) - 1))
            sizes[at : at + 2] = [sizes[at] * sizes[at + 1]]
        elif sizes and self.rng.random() < 0.7:
            at = int(self.rng.integers(len(sizes)))
            two = sizes[at] // 2
            sizes[at : at + 1] = [2, two] if sizes[at] == 2 * two and two else [1, sizes[at]]
        target = list(sizes)
        if target and self.rng.random() < 0.4:
            target[int(self.rng.integers(len(target)))] = -1
        for at, size in enumerate(target):
            if at < len(shape) and shape[at] == size and self.rng.random() < 0.3:
                target[at] = 0
        assert math.prod(sizes) == total
        return Step("Reshape", tuple(sizes), {1: target})


def run(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray] | None:
    """Return what ONNX Runtime computes without optimization; None if it fails."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
        taken = {each.name for each in session.get_inputs()}
        taken |= {each.name for each in session.get_overridable_initializers()}
        return session.run(None, {k: v for k, v in feeds.items() if k in taken})
    except REFUSALS:
        return None


def other_feeds(program: Program) -> list[dict[str, np.ndarray]]:
    """Return the feeds, and some in which one operand has other values."""
    found = [program.feeds]
    for name in program.operands[:3]:
        values = program.feeds[name]
        if values.size:
            other = program.rng.permutation(values)
            other[program.rng.integers(values.size)] += program.rng.choice([-1, 1])
            found.append({**program.feeds, name: other})
    return found
