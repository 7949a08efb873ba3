"""Layers: what they are called, which nodes they have, and what counts as a parameter."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir
import pytest

from tests.support.counting import assert_linear
from tieops.ir.evidence import Evidence
from tieops.model import TiedModel

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'
W4 = "{1, 2, 3, 4}"


def parsed(body: str, stored: str, inputs: str = "float[2,2] x") -> TiedModel:
    return TiedModel(
        onnx_ir.from_onnx_text(f"{HEAD}g ({inputs}) => (float[2,2] y) <{stored}> {{ {body} }}")
    )


def scope(node: onnx_ir.Node, fqn: str, cls: str, op: str) -> None:
    node.metadata_props["pkg.torch.onnx.name_scopes"] = str(["", fqn, op])
    node.metadata_props["pkg.torch.onnx.class_hierarchy"] = str(["Net", cls, f"aten.{op}"])


def names(model: TiedModel) -> list[str]:
    return [layer.name for layer in model.layers]


def test_layers_of_one_name_are_counted() -> None:
    model = parsed(
        "[fc] h = MatMul(x, w)\n[fc] i = MatMul(h, w)\n[fc] y = Relu(i)", f"float[2,2] w = {W4}"
    )
    assert names(model) == ["fc", "fc@1", "fc@2"]
    assert [slot.name for slot in model.slots] == ["fc.weight", "fc@1.weight"]


def test_a_counted_name_that_is_taken_is_passed_over() -> None:
    model = parsed(
        "[fc] h = MatMul(x, w)\n[other] i = MatMul(h, w)\n[fc] y = MatMul(i, w)",
        f"float[2,2] w = {W4}",
    )
    model.ir.graph[1].name = "fc@1"
    assert names(TiedModel(model.ir)) == ["fc", "fc@1", "fc@2"]


def test_names_are_the_same_in_a_clone_and_after_a_round_trip() -> None:
    model = parsed(
        "h = MatMul(x, w)\ni = Add(h, b)\nj = MatMul(i, w)\nk = Relu(j)\ny = MatMul(k, w)",
        f"float[2,2] w = {W4}, float[2] b = {{1, 2}}",
    )
    again = onnx_ir.from_proto(onnx_ir.to_proto(model.ir))
    for other in (TiedModel(model.clone()), TiedModel(again)):
        assert names(other) == names(model)
        assert [slot.name for slot in other.slots] == [slot.name for slot in model.slots]
    assert len(set(names(model))) == len(model.layers)


def test_a_bias_added_after_a_matmul_belongs_to_its_layer() -> None:
    model = parsed("h = MatMul(x, w)\ny = Add(b, h)", f"float[2,2] w = {W4}, float[2] b = {{1, 2}}")
    (layer,) = model.layers
    assert [slot.role for slot in layer.slots] == ["weight", "bias"]
    assert [node.op_type for node in layer.nodes] == ["MatMul", "Add"]


@pytest.mark.parametrize(
    "body",
    [
        "h = MatMul(x, w)\ni = Relu(h)\nj = Add(h, b)\ny = Add(i, j)",
        "h = MatMul(x, w)\ny = Add(h, w)",
        "h = MatMul(x, w)\ny = Mul(h, b)",
    ],
)
def test_other_operands_are_layers_of_their_own(body: str) -> None:
    model = parsed(body, f"float[2,2] w = {W4}, float[2] b = {{1, 2}}")
    assert all(slot.role != "bias" for slot in model.slots)


def test_a_module_that_is_called_twice_is_two_layers_with_its_own_roles() -> None:
    model = parsed(
        "h = MatMul(x, t)\ni = Mul(h, g)\nj = MatMul(i, t)\ny = Mul(j, g)",
        f"float[2,2] t = {W4}, float[2] g = {{1, 2}}",
    ).ir
    for value, name in (("t", "fc.weight"), ("g", "fc.gain")):
        model.graph.initializers[value].name = name
    for node in model.graph:
        scope(node, "fc", "torch.nn.Linear", "linear")
    first, second = TiedModel(model).layers
    assert [first.name, second.name] == ["fc", "fc@1"]
    assert [slot.role for slot in first.slots] == ["weight", "gain"]
    assert len(TiedModel(model).ties) == 2


def test_a_layer_is_called_after_its_parameters_where_no_module_is_known() -> None:
    model = parsed("y = MatMul(x, w)", f"float[2,2] w = {W4}").ir
    model.graph.initializers["w"].name = "encoder.fc.weight"
    assert names(TiedModel(model)) == ["encoder.fc"]


def test_operands_are_no_parameters() -> None:
    model = parsed(
        "h = Reshape(x, to)\ni = Mul(h, two)\nj = Gather(i, order)\ny = Where(mask, j, x)",
        "int64[2] to = {2, 2}, float two = {2}, int64[2] order = {1, 0}, bool[2] mask = {1, 0}",
    )
    assert len(model.parameters) == 0
    assert len(model.slots) == 0


def test_integer_tables_from_64_elements_on_are_parameters() -> None:
    for size, count in ((63, 0), (64, 1)):
        numbers = ", ".join("1" * size)
        model = parsed(
            "i = Gather(table, ids)\nj = Cast <to = 1> (i)\ny = Mul(x, j)",
            f"int64[{size}] table = {{{numbers}}}",
            "float[2,2] x, int64[2] ids",
        )
        # A Gather's table is a weight by its role, but integers this wide are often operands.
        assert len(model.parameters) == count


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("tieops.names", "{not json"),
        ("tieops.names", '{"a": 1}'),
        ("tieops.names", '[1, null, [], ""]'),
        ("tieops.names", "7"),
        ("tieops.evidence", "hearsay"),
        ("tieops.lr_factor", "fast"),
        ("tieops.packed", "[]"),
        ("tieops.packed", '{"parts": [1, 2]}'),
        ("pkg.torch.export.graph_signature.InputSpec.kind", "NEWS"),
    ],
)
def test_metadata_that_is_not_ours_is_ignored(key: str, text: str) -> None:
    model = parsed("h = MatMul(x, w)\ny = MatMul(h, w)", f"float[2,2] w = {W4}").ir
    model.graph.initializers["w"].metadata_props[key] = text
    (tie,) = TiedModel(model).ties
    assert tie.names == ("w",)
    assert tie.evidence is Evidence.STORAGE
    assert tie.parameter.lr_factor == 1.0


@pytest.mark.parametrize("text", ["[", "__import__('os')", "[1, 2]", "{}", "[" * 5000, "['', 'x']"])
def test_scopes_that_cannot_be_read_are_ignored(text: str) -> None:
    model = parsed("h = MatMul(x, w)\ny = MatMul(h, w)", f"float[2,2] w = {W4}").ir
    for node in model.graph:
        node.metadata_props["pkg.torch.onnx.name_scopes"] = text
        node.metadata_props["pkg.torch.onnx.class_hierarchy"] = text
    assert len(TiedModel(model).ties) == 1
    assert len(set(names(TiedModel(model)))) == 2


def modules(count: int) -> TiedModel:
    tensor = onnx_ir.tensor(np.ones((2, 2), "f4"))
    x = onnx_ir.Value(name="x")
    weights, nodes = [], []
    for i in range(count):
        weights.append(onnx_ir.Value(name=f"m{i}.weight", const_value=tensor))
        nodes.append(onnx_ir.node("MatMul", [x, weights[-1]], name=f"n{i}"))
        nodes[-1].outputs[0].name = f"o{i}"
        scope(nodes[-1], f"m{i}", "torch.nn.Linear", "linear")
    graph = onnx_ir.Graph(
        [x], nodes[-1].outputs, nodes=nodes, initializers=weights, opset_imports={"": 20}
    )
    return TiedModel(onnx_ir.Model(graph, ir_version=10))


@pytest.mark.slow
def test_many_modules_are_linear_work() -> None:
    assert names(modules(10_000)) == [f"m{i}" for i in range(10_000)]
    assert_linear(lambda count: partial(names, modules(count)), 1000)
