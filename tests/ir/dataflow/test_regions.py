"""Region interfaces: what a Scan of opset 8 is taken for, and that nobody else knows loops."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
from onnx import TensorProto, helper, numpy_helper

import tieops
from tieops.ir.dataflow.liveness import live_nodes
from tieops.ir.dataflow.regions import RegionInterface
from tieops.verification.index_bounds import table_sizes

ROOT = Path(tieops.__file__).parent
# The names of the operators are in the home of operators; how values go through them is not.
HOMES = (
    "ir/dataflow/",
    "ir/operators/predicates.py",
    "exporters/torch/ops/control.py",
    "importers/torch/rnn.py",  # writes one
)


def scan_8() -> onnx.ModelProto:
    """A Scan of opset 8: it may be given lengths of sequences, and has an axis for the batch."""

    def floats(name: str, *sizes: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)

    nodes = [
        helper.make_node("Gather", ["w", "id"], ["row"]),
        helper.make_node("Add", ["state", "row"], ["next"]),
        helper.make_node("Identity", ["next"], ["each"]),
    ]
    given = [floats("state", 2), helper.make_tensor_value_info("id", TensorProto.INT64, [])]
    body = helper.make_graph(nodes, "body", given, [floats("next", 2), floats("each", 2)])
    scan = helper.make_node("Scan", ["", "first", "ids"], ["last", "all"], body=body)
    scan.attribute.append(helper.make_attribute("num_scan_inputs", 1))
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [3, 4])
    table = numpy_helper.from_array(np.arange(10, dtype=np.float32).reshape(5, 2), "w")
    outputs = [floats("last", 3, 2), floats("all", 3, 4, 2)]
    graph = helper.make_graph([scan], "g", [floats("first", 3, 2), ids], outputs, [table])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 8)], ir_version=4)


def test_of_a_scan_of_opset_8_everything_may_become_everything() -> None:
    model = onnx_ir.from_proto(scan_8())
    (scan,) = model.graph
    interface = RegionInterface.of(scan, model.functions)
    assert interface.arguments is None
    ((sources, targets),) = interface.passed_on()
    assert {value.name for value in sources} == {"first", "ids", "next", "each"}
    assert {value.name for value in targets} == {"state", "id", "last", "all"}
    assert table_sizes(model) == {"first": (5,), "ids": (5,)}
    assert [node.op_type for node in live_nodes(model)] == ["Scan", "Gather", "Add", "Identity"]


def test_verify_and_the_verbs_take_a_scan_of_opset_8() -> None:
    model = tieops.from_onnx(scan_8())
    for verb in (tieops.tie, tieops.untie, tieops.remove_disconnected_outputs):
        assert "equal bitwise" in str(tieops.verify(verb(model), against=scan_8()))
    assert "Scan" in str(model)


def test_the_trip_count_of_a_loop_is_not_its_iteration_number() -> None:
    model = onnx_ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 20]>
    g (int64 n, bool c, float[2] s) => (float[2] y) {
      y = Loop (n, c, s) <body = b (int64 i, bool go, float[2] v) => (bool again, float[2] t) {
        again = Identity(go)
        t = Neg(v) }> }""")
    interface = RegionInterface.of(model.graph.node(0), model.functions)
    passed = [({s.name for s in some}, {t.name for t in others})
              for some, others in interface.passed_on()]  # fmt: skip
    assert passed == [({"c", "again"}, {"go"}), ({"s", "t"}, {"v", "y"})]


def test_nobody_else_knows_how_values_go_through_control_flow() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted(ROOT.rglob("*.py"))
        if not path.relative_to(ROOT).as_posix().startswith(HOMES)
        for line in path.read_text("utf-8").splitlines()
        if re.search(r"[\"'](?:If|Loop|Scan)[\"']", line)
    ]
    assert found == []
