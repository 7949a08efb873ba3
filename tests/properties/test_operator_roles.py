"""What operator references call weights are learnables, in ONNX and in ONNX Runtime."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir
import onnxruntime.capi.onnxruntime_pybind11_state as runtime
import pytest
from onnx import defs

import tieops
from tieops.ir.operators.roles import learnable_role

WEIGHT = re.compile(
    r"(?i)weights?\b|_weight|(?<!attention_)bias|gamma|(?<!_)beta\b|slope|embedding|norm_scale"
    r"|experts|absmax|^[wrbp]$|scale_"
)
NO_WEIGHTS = {
    "NegativeLogLikelihoodLoss.weight": "the weight of each class in a loss",
    "SoftmaxCrossEntropyLoss.weights": "the weight of each class in a loss",
    "LinearAttention.beta": "computed from data",
    "com.microsoft.LinearAttention.beta": "computed from data",
    "com.microsoft.GatedDeltaNet.beta": "computed from data",
    "com.microsoft.BiasSoftmax.bias": "a mask",
    "com.microsoft.QMoE.router_weights": "computed from data",
    "com.microsoft.PackedSparseAttentionIndexer.head_weights": "computed from data",
    "com.microsoft.SparseAttentionIndexer.head_weights": "computed from data",
    "com.microsoft.LinearAttentionGate.b": "computed from data",
    "com.microsoft.TorchEmbedding.scale_grad_by_freq": "an option",
}
"""Inputs with such a name that nothing trains, each with the reason."""
ELEMENTWISE = [
    "Add",
    "And",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Mod",
    "Mul",
    "Or",
    "Sub",
    "SwiGLU",
    "Xor",
    "com.microsoft.CDist",
    "com.microsoft.ComplexMul",
    "com.microsoft.ComplexMulConj",
    "com.microsoft.MulInteger",
    "com.microsoft.QLinearAdd",
    "com.microsoft.QLinearMul",
]
"""Operators with two operands of one kind, the second of which is called B."""
SCALES_OF_DATA = re.compile(r"scale_(?!B$|\w*weight$|bias$)")
TRAINED = ("weight", "bias", "recurrent_weight", "peephole", "skip_bias")


def schemas() -> dict[str, list[str]]:
    """Return the input names of every operator, over all versions."""
    found: dict[str, list[str]] = {}
    for each in defs.get_all_schemas():
        if not each.domain:
            found[each.name] = [one.name for one in each.inputs]
    for each in runtime.get_all_operator_schema():
        if each.domain == "com.microsoft":
            found[f"com.microsoft.{each.name}"] = [one.name for one in each.inputs]
    return found


SCHEMAS = schemas()
PREFIX = "com.microsoft."


def node_of(operator: str, inputs: list[onnx_ir.Value | None]) -> onnx_ir.Node:
    domain = "com.microsoft" if operator.startswith(PREFIX) else ""
    return onnx_ir.Node(domain, operator.removeprefix(PREFIX), inputs)


def roles(operator: str) -> list[str]:
    names = SCHEMAS[operator]
    node = node_of(operator, [onnx_ir.Value(name=f"v{i}") for i in range(len(names))])
    return [learnable_role(node, index) or "" for index in range(len(names))]


@pytest.mark.parametrize("operator", sorted(SCHEMAS.keys() - set(ELEMENTWISE)))
def test_an_input_that_is_called_a_weight_has_a_role(operator: str) -> None:
    known = (*TRAINED, "weight_scale", "scale", "zero_point", "running_mean", "running_var")
    for name, role in zip(SCHEMAS[operator], roles(operator), strict=True):
        is_called_one = WEIGHT.search(name) and not SCALES_OF_DATA.match(name)
        if is_called_one and f"{operator}.{name}" not in NO_WEIGHTS:
            assert role in known, f"{operator} reads {name} as {role}"


LAYERS = sorted(
    name
    for name in SCHEMAS
    if set(roles(name)) & set(TRAINED) and not re.search("DequantizeLinear", name)
)


@pytest.mark.parametrize("operator", LAYERS)
def test_what_is_stored_in_a_role_of_a_weight_is_learnable(operator: str) -> None:
    """Two nodes that read the same weights are tied in each of them; their data never is."""
    rng, found = np.random.default_rng(0), roles(operator)
    # The first operand of a product may be a weight, where the second is data.
    is_product = found[:2] == ["weight", "weight"] and operator.rpartition(".")[2] != "Conv"
    data = [
        onnx_ir.Value(name=f"x{i}", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT))
        for i in range(len(found))
    ]
    stored: dict[int, onnx_ir.Value] = {}
    for index, role in enumerate(found):
        if role in TRAINED and not (index == 0 and (is_product or "Conv" in operator)):
            array = onnx_ir.tensor(rng.standard_normal((4, 4)).astype(np.float32), name=f"w{index}")
            stored[index] = onnx_ir.Value(
                name=f"w{index}",
                const_value=array,
                type=onnx_ir.TensorType(array.dtype),
                shape=onnx_ir.Shape([4, 4]),
            )
    nodes = [
        node_of(operator, [stored.get(i, data[i]) for i in range(len(found))]) for _ in range(2)
    ]
    for place, node in enumerate(nodes):
        node.outputs[0].name = f"y{place}"
    inputs = [each for i, each in enumerate(data) if i not in stored]
    graph = onnx_ir.Graph(
        inputs,
        [n.outputs[0] for n in nodes],
        nodes=nodes,
        initializers=list(stored.values()),
        opset_imports={"": 27, "com.microsoft": 1},
    )
    model = tieops.TiedModel(onnx_ir.Model(graph, ir_version=10))
    assert {each.name for each in model.parameters} == {f"w{index}" for index in stored}
    assert {tie.parameter.name for tie in model.ties} == {f"w{index}" for index in stored}
