"""Graphs that hypothesis draws, and what is known of every reader in them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
from hypothesis import strategies as st

import tieops
from tests.support.model_facts import serialized
from tests.support.plain_runtime import PlainRuntime
from tieops.analysis.duplicates import by_content as content
from tieops.ir.view import Reshape, Slice, Step, Transpose
from tieops.model import TiedModel

Shape = tuple[int, ...]


SEEDS = st.integers(0, 2**32 - 1)


def one_bit_changed(array: np.ndarray, position: int, bit: int) -> np.ndarray:
    """Return a copy with one bit of one element flipped."""
    flat = np.ascontiguousarray(array).reshape(-1).copy()
    if flat.dtype == np.bool_:
        flat[position] = not flat[position]
    elif flat.dtype == ml_dtypes.int4:
        flat[position] = int(flat[position]) ^ 1
    else:
        raw = flat.view("u1").reshape(flat.size, -1)
        raw[position, bit // 8 % raw.shape[1]] ^= 1 << bit % 8
    return flat.reshape(array.shape)


def factored(total: int) -> st.SearchStrategy[Shape]:
    """Draw a shape of so many elements."""

    def grow(rest: int, left: int) -> st.SearchStrategy[Shape]:
        if left == 0:
            return st.just((rest,))
        divisors = [size for size in range(1, rest + 1) if rest % size == 0]
        return st.sampled_from(divisors).flatmap(
            lambda size: grow(rest // size, left - 1).map(lambda tail: (size, *tail))
        )

    return st.integers(0, 3).flatmap(lambda left: grow(total, left))


@st.composite
def a_range(draw: st.DrawFn, size: int, *, forward: bool) -> tuple[int, int, int]:
    start, stop = sorted(draw(st.tuples(st.integers(0, size - 1), st.integers(1, size))))
    stop = max(stop, start + 1)
    if forward:
        return start, stop, 1
    step = draw(st.sampled_from([1, 2, 3, -1, -2]))
    return (start, stop, step) if step > 0 else (stop - 1, start - 1, step)


def by_hand(step: Step, array: np.ndarray) -> np.ndarray:
    match step:
        case Transpose(perm):
            return np.transpose(array, perm)
        case Reshape(sizes):
            return np.reshape(array, sizes)
        case Slice(ranges):
            return array[np.ix_(*(list(range(*each)) for each in ranges))]
        case _:
            raise TypeError(step)


BASES: list[Shape] = [(8, 8), (8, 12), (4, 4, 5), (72,), (3, 4)]


FLOAT = onnx.TensorProto.FLOAT


@dataclass(frozen=True)
class Known:
    """A value of a drawn graph: which elements of which stored tensor it holds."""

    name: str
    labels: np.ndarray
    """Each element's number among all elements stored, copies counted on their own."""
    origins: np.ndarray
    """The same with copies that ``tie`` joins counted as one."""
    is_reshaped: bool = False
    """After a Reshape a block need not be a box of the stored tensor: none is drawn."""


@dataclass
class Drawn:
    """A drawn graph and what each of its readers sees."""

    proto: onnx.ModelProto
    readers: dict[tuple[str, int], Known]
    """Output of the reading node and number of its input, to what arrives there."""

    def model(self) -> TiedModel:
        return TiedModel(onnx_ir.from_proto(self.proto))

    def tied(self, kind: str) -> set[frozenset[tuple[str, int]]]:
        """Group readers that see a common element, directly or through others."""
        groups: list[tuple[set[tuple[str, int]], set[int]]] = []
        for reader, known in self.readers.items():
            names, elements = {reader}, set(getattr(known, kind).flat)
            apart = []
            for other in groups:
                if elements & other[1]:
                    names, elements = names | other[0], elements | other[1]
                else:
                    apart.append(other)
            groups = [*apart, (names, elements)]
        return {frozenset(names) for names, _ in groups if len(names) > 1}


def found_ties(model: TiedModel) -> set[frozenset[tuple[str, int]]]:
    """Return what two or more slots share; a lone slot of a tensor with two names is left out."""
    return {
        frozenset((slot.node.outputs[0].name, slot.index) for slot in tie.slots)
        for tie in model.ties
        if len(tie.slots) > 1
    }


@st.composite
def stored_tensors(draw: st.DrawFn) -> tuple[dict[str, np.ndarray], list[Known]]:
    """Draw tensors, with permuted and near copies of them."""
    rng = np.random.default_rng(draw(SEEDS))
    arrays: dict[str, np.ndarray] = {}
    pool: list[Known] = []
    for i, shape in enumerate(draw(st.lists(st.sampled_from(BASES), min_size=1, max_size=3))):
        base = rng.standard_normal(shape).astype("f4")
        origin = np.arange(base.size).reshape(shape) + 1_000_000 * (i + 1)
        for j in range(draw(st.integers(1, 3))):
            perm = (
                tuple(draw(st.permutations(range(len(shape))))) if j else tuple(range(len(shape)))
            )
            array, origins = base.transpose(perm).copy(), origin.transpose(perm)
            is_near = bool(j) and draw(st.integers(0, 3)) == 0
            if is_near:
                array = one_bit_changed(array, draw(st.integers(0, array.size - 1)), 3 + j)
            if is_near or array.size < content.MIN_ELEMENTS:
                origins = origins + 10_000 * j  # not joined: elements of its own
            labels = np.arange(array.size).reshape(array.shape) + 10_000 * len(pool)
            name = f"{draw(st.sampled_from(['val_', 'w']))}{len(pool)}"
            arrays[name] = array
            pool.append(Known(name, labels, origins))
    return arrays, pool


@st.composite
def movements(draw: st.DrawFn, known: Known, name: str) -> tuple[list[onnx.NodeProto], Known]:
    """Draw one node that moves what is known, with its operands."""
    make, shape = onnx.helper.make_node, known.labels.shape
    kinds = ["identity", "transpose", "reshape"] + (["slice", "split"] * (not known.is_reshaped))
    kind = draw(st.sampled_from(kinds))
    is_reshaped = known.is_reshaped or kind == "reshape"
    if kind == "identity":
        nodes = [make("Identity", [known.name], [name])]
        step: Step = Transpose(tuple(range(len(shape))))
    elif kind == "transpose":
        step = Transpose(tuple(draw(st.permutations(range(len(shape))))))
        nodes = [make("Transpose", [known.name], [name], perm=step.perm)]
    elif kind == "reshape":
        step = Reshape(draw(factored(math.prod(shape))))
        sizes = make("Constant", [], [f"{name}_sizes"], value_ints=step.sizes)
        nodes = [sizes, make("Reshape", [known.name, f"{name}_sizes"], [name])]
    else:
        axis = draw(st.integers(0, len(shape) - 1))
        start, stop, _ = draw(a_range(shape[axis], forward=True))
        ranges = [(0, size, 1) for size in shape]
        if kind == "slice" or shape[axis] % 2:
            operands = {"from": start, "to": stop - shape[axis] or 2**62, "axis": axis - len(shape)}
            nodes = [
                make("Constant", [], [f"{name}_{what}"], value_ints=[number])
                for what, number in operands.items()
            ]
            nodes.append(make("Slice", [known.name, *(f"{name}_{o}" for o in operands)], [name]))
        else:
            half = shape[axis] // 2
            which = draw(st.integers(0, 1))
            start, stop = half * which, half * (which + 1)
            outputs = [f"{name}_other", name] if which else [name, f"{name}_other"]
            nodes = [make("Split", [known.name], outputs, axis=axis, num_outputs=2)]
        ranges[axis] = (start, stop, 1)
        step = Slice(tuple(ranges))
    moved = (by_hand(step, known.labels), by_hand(step, known.origins))
    return nodes, Known(name, *moved, is_reshaped)


@st.composite
def readers(
    draw: st.DrawFn, known: Known, name: str
) -> tuple[onnx.NodeProto, int, onnx.ValueInfoProto]:
    """Draw one node that reads what is known: the node, which input reads, and its other input."""
    make, shape = onnx.helper.make_node, known.labels.shape
    declare = onnx.helper.make_tensor_value_info
    kinds = ["mul", "add"] + ["gather"] * bool(shape) + ["matmul", "gemm"] * (len(shape) == 2)
    kind = draw(st.sampled_from(kinds))
    if kind == "gather":
        fed = declare(f"ids{shape[0]}", onnx.TensorProto.INT64, [5])
        return make("Gather", [known.name, fed.name], [name]), 0, fed
    if kind in ("mul", "add"):
        fed = declare("scalar", FLOAT, [])
        return make(kind.capitalize(), [fed.name, known.name], [name]), 1, fed
    transposed = kind == "gemm" and draw(st.booleans())
    inner = shape[1] if transposed else shape[0]
    fed = declare(f"x{inner}", FLOAT, [2, inner])
    if kind == "matmul":
        return make("MatMul", [fed.name, known.name], [name]), 1, fed
    return make("Gemm", [fed.name, known.name], [name], transB=int(transposed)), 1, fed


@st.composite
def graphs(draw: st.DrawFn, views_first: bool = False) -> Drawn:
    """Draw a graph of movements of a few stored tensors, and readers of what they give.

    Every reader is a graph output, so each can be compared. ``views_first`` puts movements before
    readers.
    """
    arrays, pool = draw(stored_tensors())
    moving: list[onnx.NodeProto] = []
    reading: list[onnx.NodeProto] = []
    order: list[onnx.NodeProto] = []
    inputs: dict[str, onnx.ValueInfoProto] = {}
    seen: dict[tuple[str, int], Known] = {}
    for number in range(draw(st.integers(2, 10))):
        known = draw(st.sampled_from(pool))
        if number and draw(st.booleans()):
            nodes, moved = draw(movements(known, f"v{number}"))
            pool.append(moved)
            moving += nodes
            order += nodes
        else:
            node, index, fed = draw(readers(known, f"o{number}"))
            inputs[fed.name] = fed
            seen[f"o{number}", index] = known
            reading.append(node)
            order.append(node)
    graph = onnx.helper.make_graph(
        [*moving, *reading] if views_first else order,
        "drawn",
        list(inputs.values()),
        [
            onnx.helper.make_tensor_value_info(name, FLOAT, [None] * known.labels.ndim)
            for (name, _), known in seen.items()
        ],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opset = onnx.helper.make_opsetid("", 20)
    return Drawn(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), seen)


def feeds_of(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    feeds: dict[str, np.ndarray] = {}
    for value in proto.graph.input:
        shape = [each.dim_value for each in value.type.tensor_type.shape.dim]
        if value.name.startswith("ids"):
            feeds[value.name] = rng.integers(0, int(value.name[3:]), shape)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype("f4")
    return feeds


def bits_of(outputs: Iterable[np.ndarray]) -> list[tuple[Shape, bytes]]:
    return [(each.shape, each.tobytes()) for each in outputs]


def check_tie(drawn: Drawn, runtime: PlainRuntime) -> None:
    model = drawn.model()
    before = serialized(model.ir)
    tied = tieops.tie(model)
    assert serialized(model.ir) == before
    assert serialized(tieops.tie(tied).ir) == serialized(tied.ir)
    onnx.checker.check_model(onnx_ir.to_proto(tied.ir), full_check=True)
    assert found_ties(tied) == drawn.tied("origins")
    assert all(duplicate.held_back for duplicate in tied.duplicates)
    feeds = feeds_of(drawn.proto)
    assert bits_of(runtime.run(tied.ir, feeds)) == bits_of(runtime.run(model.ir, feeds))
