"""Every pass on random graphs of all sorts of operators: no output changes by a single bit.

The graphs are chains of onnx's own node cases: inputs of one are outputs of another where dtype and
shape agree, and weights are shared, copied and stored transposed at random.
"""

from __future__ import annotations

import copy
import functools
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import tieops
from tests.support.onnx_cases import onnx_cases
from tests.support.plain_runtime import REFUSALS, PlainRuntime
from tieops.errors import PreconditionError
from tieops.model import TiedModel

SEEDS = range(40)
OPSET, IR_VERSION = 21, 10
MOST_ELEMENTS = 512
# Random by design, or by what they leave open: nothing to compare.
RANDOM = {"Bernoulli", "Dropout", "Multinomial", "RandomNormalLike", "RandomUniformLike"}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Step:
    """One operator of a case, and one run of it: inputs and outputs by position; None is absent."""

    node: onnx.NodeProto
    inputs: tuple[np.ndarray | None, ...]
    outputs: tuple[np.ndarray | None, ...]


def step_of(case: Any) -> Step | None:
    """Return a case as a step, if it is one plain operator of small tensors at our opset."""
    graph, opsets = case.model.graph, case.model.opset_import
    if len(graph.node) != 1 or len(opsets) != 1 or opsets[0].domain or not case.data_sets:
        return None
    (node,) = graph.node
    schema = onnx.defs.get_schema(node.op_type, opsets[0].version, node.domain)
    at_ours = onnx.defs.has(node.op_type, node.domain) and _version(node.op_type)
    if node.op_type in RANDOM or _trains(node) or schema.since_version != at_ours:
        return None
    read, written = case.data_sets[0]
    if not all(isinstance(each, np.ndarray) for each in (*read, *written)):
        return None
    arrays = dict(zip((v.name for v in graph.input), read, strict=True))
    arrays |= dict(zip((v.name for v in graph.output), written, strict=True))
    if any(a.size > MOST_ELEMENTS or a.dtype.kind not in "fiub" for a in arrays.values()):
        return None
    return Step(
        node,
        tuple(arrays.get(name) for name in node.input),
        tuple(arrays.get(name) for name in node.output),
    )


def _trains(node: onnx.NodeProto) -> bool:
    # ONNX Runtime updates running statistics in place: two that are one value are not defined.
    return any(attr.name == "training_mode" and attr.i for attr in node.attribute)


def _version(op_type: str) -> int | None:
    try:
        return onnx.defs.get_schema(op_type, OPSET, "").since_version
    except onnx.defs.SchemaError:
        return None


@functools.cache
def steps() -> tuple[Step, ...]:
    found = map(step_of, onnx_cases())
    return tuple(step for step in found if step is not None)


class Chain:
    """A graph that grows by one step at a time."""

    def __init__(self, seed: int) -> None:
        self.choice = random.Random(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.feeds: Arrays = {"at": np.zeros(1, np.int64)}
        self.stored: Arrays = {}
        self.made: Arrays = {}

    def fits(self, step: Step) -> bool:
        """Tell whether a step can read what another one made, or what is stored."""
        here = {(a.dtype, a.shape) for a in (*self.made.values(), *self.stored.values())}
        return any(
            array is not None and array.size > 1 and (array.dtype, array.shape) in here
            for array in step.inputs
        )

    def add(self, step: Step) -> None:
        """Add a step; what it reads is made by another, stored, or fed."""
        at = len(self.nodes)
        names = [self._read(at, i, array) for i, array in enumerate(step.inputs)]
        node = onnx.NodeProto()
        node.CopyFrom(step.node)
        node.name = f"step_{at}"
        del node.input[:], node.output[:]
        node.input.extend(names)
        for i, array in enumerate(step.outputs):
            node.output.append("" if array is None else f"made_{at}_{i}")
            if array is not None:
                self.made[f"made_{at}_{i}"] = array
        self.nodes.append(node)

    def _read(self, at: int, index: int, array: np.ndarray | None) -> str:
        if array is None:
            return ""
        if array.dtype.kind == "f" and array.size > 1:
            alike = [
                name for name, other in self.made.items()
                if (other.dtype, other.shape) == (array.dtype, array.shape)
            ]  # fmt: skip
            if alike and self.choice.random() < 0.6:
                return self.choice.choice(alike)
            if self.choice.random() < 0.3:
                self.feeds[f"fed_{at}_{index}"] = array
                return f"fed_{at}_{index}"
        return self._store(at, index, array)

    def _store(self, at: int, index: int, array: np.ndarray) -> str:
        """Store an array: as it is, or equal to another one, in the same or another order."""
        name = f"w_{at}_{index}"
        alike = [
            other for other, known in self.stored.items()
            if known.dtype == array.dtype and sorted(known.shape) == sorted(array.shape)
            and array.dtype.kind == "f" and array.size > 1
        ]  # fmt: skip
        if not alike:
            self.stored[name] = array
            return name
        other = self.choice.choice(alike)
        known = self.stored[other]
        how = self.choice.choice(["share", "copy", "transpose"])
        if how == "share" and known.shape == array.shape:
            return other
        if how == "copy" and known.shape == array.shape:
            self.stored[name] = known.copy()
        elif how == "transpose" and known.T.shape == array.shape:
            if self.choice.random() < 0.5:
                self.stored[name] = np.ascontiguousarray(known.T)
            else:
                self.nodes.append(helper.make_node("Transpose", [other], [name], f"turn_{name}"))
        else:
            self.stored[name] = array
        return name

    def outputs(self) -> Arrays:
        """Return every step's results, and a row of every float tensor: an embedding reads it."""
        rows = {
            f"row_{name}": array[:1] for name, array in self.stored.items()
            if array.dtype.kind == "f" and array.ndim and array.size > 1
        }  # fmt: skip
        return self.made | rows

    def model(self) -> onnx.ModelProto:
        """Return the graph, with all of ``outputs``."""
        outputs = self.outputs()
        lookups = [
            helper.make_node("Gather", [name.removeprefix("row_"), "at"], [name], f"look_{name}")
            for name in outputs.keys() - self.made.keys()
        ]
        graph = helper.make_graph(
            [*self.nodes, *sorted(lookups, key=lambda node: node.name)],
            "chain",
            [_port(name, array) for name, array in self.feeds.items()],
            [_port(name, array) for name, array in outputs.items()],
            [numpy_helper.from_array(array, name) for name, array in self.stored.items()],
        )
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)


def _port(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, array.shape)


@dataclass(frozen=True, eq=False)
class Drawn:
    """A graph, its inputs, and the bits of its outputs as ONNX Runtime has them."""

    model: TiedModel
    feeds: Arrays
    bits: dict[str, bytes]


def bits_of(model: TiedModel, feeds: Arrays, runtime: PlainRuntime) -> dict[str, bytes]:
    names = [str(value.name) for value in model.ir.graph.outputs]
    used = {str(value.name) for value in model.inputs}
    outputs = runtime.run(model.ir, {name: feeds[name] for name in used})
    return {name: np.asarray(each).tobytes() for name, each in zip(names, outputs, strict=True)}


@functools.cache
def drawn(seed: int, runtime: PlainRuntime) -> Drawn:
    """Return a graph of three to ten results that ONNX Runtime can compute."""
    choice = random.Random(seed)
    grown, wanted, found = Chain(seed), choice.randint(3, 10), None
    for _ in range(40):
        fitting = [step for step in steps() if grown.fits(step)]
        step = choice.choice(fitting if fitting and choice.random() < 0.7 else steps())
        tried = copy.deepcopy(grown)
        tried.add(step)
        model = tieops.from_onnx(tried.model())
        try:
            outputs = runtime.run(model.ir, tried.feeds)
        except REFUSALS:  # no kernel for this type, or a value that the operator cannot take
            continue
        # What an operator keeps of its inputs (NonZero, Unique) is as long as they happen to say.
        if [each.shape for each in outputs] != [each.shape for each in tried.outputs().values()]:
            continue
        grown, found = tried, Drawn(model, tried.feeds, bits_of(model, tried.feeds, runtime))
        if len(grown.made) >= wanted:
            break
    assert found is not None
    return found


@pytest.fixture(params=SEEDS)
def case(request: pytest.FixtureRequest, plain_runtime: PlainRuntime) -> Drawn:
    return drawn(request.param, plain_runtime)


def test_the_graphs_are_of_all_sorts_and_share_weights(plain_runtime):
    every = [drawn(seed, plain_runtime).model for seed in SEEDS]
    kinds = {node.op_type for model in every for node in model.ir.graph}
    assert len(kinds) > 60
    assert sum(len(model.duplicates) for model in every) > 10
    assert sum(len(tie.slots) > 1 for model in every for tie in model.ties) > 10
    chained = [
        node for model in every for node in model.ir.graph for value in node.inputs
        if value is not None and value.producer() and value.is_graph_output()
    ]  # fmt: skip
    assert len(chained) > 20


def test_tied_untied_and_tied_again(case, plain_runtime):
    for include_small in (False, True):
        tied = tieops.tie(case.model, include_small=include_small)
        assert bits_of(tied, case.feeds, plain_runtime) == case.bits
        assert tied.ledger.stored_bytes <= case.model.ledger.stored_bytes
        free = tieops.untie(tied)
        assert bits_of(free, case.feeds, plain_runtime) == case.bits
        assert not [tie for tie in free.ties if len(tie.slots) > 1]
        again = tieops.tie(free)
        assert bits_of(again, case.feeds, plain_runtime) == case.bits
        assert again.ledger.stored_bytes == tied.ledger.stored_bytes


def test_outputs_that_stay(case, plain_runtime):
    names = [*case.bits]
    choice = random.Random(len(names))
    for keep in ([names[0]], [names[-1]], choice.sample(names, len(names) // 2 + 1)):
        small = tieops.remove_disconnected_outputs(case.model, keep=keep, unused_inputs=True)
        found = bits_of(small, case.feeds, plain_runtime)
        assert found == {name: case.bits[name] for name in names if name in keep}
        assert all(value.uses() for value in small.ir.graph.initializers.values()) or any(
            value.is_graph_output() for value in small.ir.graph.initializers.values()
        )


def test_written_and_read_again(case, plain_runtime, tmp_path):
    tied = tieops.tie(case.model)
    written = tieops.to_onnx(tied, tmp_path / "m.onnx", tie_form="portable")
    onnx.checker.check_model(str(written.path), full_check=True)
    again = tieops.from_onnx(written.path)
    assert bits_of(again, case.feeds, plain_runtime) == case.bits
    assert again.ledger == tied.ledger


def test_a_new_head_leaves_what_does_not_come_from_it(case, plain_runtime):
    for layer in case.model.layers:
        if layer.kind not in ("Linear", "Conv"):
            continue
        try:
            small = tieops.replace_head(case.model, layer.name, out_features=7, lr_factor=2)
        except PreconditionError:
            continue
        found = bits_of(small, case.feeds, plain_runtime)
        assert found.keys() == case.bits.keys()
        changed = downstream(small)
        assert changed
        for name in found.keys() - changed:
            assert found[name] == case.bits[name], name


def downstream(model: TiedModel) -> set[str]:
    """Return the names of all values that come from a new layer."""
    pending = [
        output
        for slot in model.slots
        if slot.parameter.lr_factor == 2
        for output in slot.node.outputs
    ]
    seen: set[str] = set()
    while pending:
        value = pending.pop()
        if value.name not in seen:
            seen.add(str(value.name))
            pending += [output for node, _ in value.uses() for output in node.outputs]
    return seen
