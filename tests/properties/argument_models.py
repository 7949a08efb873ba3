"""Models whose tensors lie in all the places that a proto, a file and a graph have for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
from onnx import TensorProto, helper, numpy_helper

GRAPHS = Path(__file__).parents[2] / "fixtures" / "graphs"
HEADER = '<ir_version: 10, opset_import: ["" : 20]>'
LOCAL = '<ir_version: 10, opset_import: ["" : 20, "local" : 1]>'

BRANCHES_OF_ONE_NAME = f"""{HEADER}
g (float[2, 2] x) => (float[2, 2] y) <bool yes = {{1}}, bool no = {{0}}> {{
  a = If (yes) <
    then_branch = t1 () => (float[2, 2] a1) <float[2, 2] w = {{1, 2, 3, 4}}>
      {{ a1 = MatMul(x, w) }},
    else_branch = e1 () => (float[2, 2] a2) {{ a2 = Identity(x) }}>
  y = If (no) <
    then_branch = t2 () => (float[2, 2] y1) {{ y1 = Identity(a) }},
    else_branch = e2 () => (float[2, 2] y2) <float[2, 2] w = {{5, 6, 7, 8}}>
      {{ y2 = MatMul(a, w) }}>
}}"""

CONSTANT_NODES = f"""{HEADER}
g (float[2, 2] x) => (float[2, 2] y) {{
  a = Constant <value = float[2, 2] {{1, 2, 3, 4}}> ()
  b = Constant <value = float[2, 2] {{1, 2, 3, 4}}> ()
  h = MatMul(x, a)
  y = MatMul(h, b)
}}"""

DEAD_PARTS = f"""{HEADER}
g (float[2, 2] x, float[2, 2] unused) => (float[2, 2] y, float[2, 2] z)
<float[2, 2] w = {{1, 2, 3, 4}}, float[2, 2] dead = {{1, 2, 3, 4}}> {{
  y = MatMul(x, w)
  z = Transpose(w)
  nobody = MatMul(x, dead)
}}"""

FUNCTION = f"""{LOCAL}
g (float[2, 2] x) => (float[2, 2] y)
<float[2, 2] w = {{1, 2, 3, 4}}> {{
  h = local.linear (x, w)
  y = local.linear (h, w)
}}
<domain: "local", opset_import: ["" : 20]>
linear (x, w) => (y) {{
  c = Constant <value = float[2, 2] {{4, 3, 2, 1}}> ()
  t = Transpose <perm = [1, 0]> (w)
  h = MatMul(x, t)
  y = Add(h, c)
}}"""


def typed_fields() -> onnx.ModelProto:
    """Tensors in ``float_data``, ``int32_data`` (float16) and ``int64_data``, and a string."""
    weight = helper.make_tensor("fc.weight", TensorProto.FLOAT, [3, 2], [1, 2, 3, 4, 5, 6])
    half = helper.make_tensor("half", TensorProto.FLOAT16, [3], [1, 2, 3])
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 2])
    words = helper.make_tensor("words", TensorProto.STRING, [2], [b"a", b"b"])  # pyright: ignore
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.weight"], ["h"], name="/fc/Gemm", transB=1),
        helper.make_node("Cast", ["half"], ["bias"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["h", "bias"], ["y"]),
        helper.make_node("Identity", ["words"], ["w"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    text = helper.make_tensor_value_info("w", TensorProto.STRING, [2])
    graph = helper.make_graph(nodes, "g", [given], [made, text], [weight, half, shape, words])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def packed() -> onnx.ModelProto:
    """Weights of 4 bits in ``raw_data``, read through a dequantization, with annotations."""
    rng = np.random.default_rng(0)
    values = rng.integers(-8, 8, (4, 4)).astype(ml_dtypes.int4)
    stored = [
        numpy_helper.from_array(values, "q"),
        numpy_helper.from_array(np.array(0.5, np.float32), "scale"),
        numpy_helper.from_array(rng.standard_normal((4, 4), dtype=np.float32), "w"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["d"]),
        helper.make_node("MatMul", ["x", "d"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph(nodes, "g", [given], [made], stored)
    note = graph.quantization_annotation.add(tensor_name="h")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def sequences() -> onnx.ModelProto:
    """A value that is a sequence, an attribute that is a type, notes on all that can have them."""
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [2, 2])
    weight = numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")
    weight.metadata_props.add(key="k", value="v")
    nodes = [
        helper.make_node("Optional", [], ["nothing"], type=kind),
        helper.make_node("OptionalHasElement", ["nothing"], ["has"]),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("SequenceConstruct", ["h", "w"], ["s"]),
        helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0),
    ]
    nodes[2].metadata_props.add(key="k", value="v")
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 2])
    has = helper.make_tensor_value_info("has", TensorProto.BOOL, [])
    graph = helper.make_graph(nodes, "g", [given], [made, has], [weight])
    graph.value_info.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))
    graph.metadata_props.add(key="k", value="v")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def embedding(rows: int = 50) -> onnx.ModelProto:
    """A tied embedding beside a copy of it, transposed, in ``raw_data``."""
    table = np.random.default_rng(0).standard_normal((rows, 8), dtype=np.float32)
    stored = [
        numpy_helper.from_array(table, "embed.weight"),
        numpy_helper.from_array(np.ascontiguousarray(table.T), "head"),
        numpy_helper.from_array(np.zeros(rows, np.float32), "one"),
        numpy_helper.from_array(np.zeros(rows, np.float32), "other"),
    ]
    nodes = [
        helper.make_node("Gather", ["embed.weight", "x"], ["h"], name="/embed/Gather"),
        helper.make_node("MatMul", ["h", "head"], ["l"], name="/head/MatMul"),
        helper.make_node("Add", ["l", "one"], ["m"]),
        helper.make_node("Add", ["m", "other"], ["y"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", rows])
    graph = helper.make_graph(nodes, "g", [given], [made], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _text(text: str) -> Callable[[], onnx.ModelProto]:
    return lambda: onnx.parser.parse_model(text)


def _golden(case: str) -> Callable[[], onnx.ModelProto]:
    text = (GRAPHS / case / "before.onnxtxt").read_text()
    return lambda: onnx_ir.to_proto(onnx_ir.from_onnx_text(text))


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "branches_of_one_name": _text(BRANCHES_OF_ONE_NAME),
    "constant_nodes": _text(CONSTANT_NODES),
    "dead_parts": _text(DEAD_PARTS),
    "function": _text(FUNCTION),
    "typed_fields": typed_fields,
    "packed": packed,
    "sequences": sequences,
    "embedding": embedding,
    **{folder.name: _golden(folder.name) for folder in sorted(GRAPHS.iterdir())},
}
