"""The graph kit: what a copy owns, and that no other file edits what a graph stores."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_ir
import pytest

import tieops
from tieops.ir.edit import (
    NameAuthority,
    add_initializer,
    copy_model,
    keep_as_output,
    own_tensors,
    rename_initializer,
    replace_value,
    snapshot,
)
from tieops.ir.storage.byte_ranges import stored_bytes

ROOT = Path(tieops.__file__).parent
BY_HAND = re.compile(
    r"\.initializers\.(?:add|pop|clear|update|setdefault)\(|\.initializers\[[^\]]*\] *="
    r"|del [\w.]+\.initializers|\.register_initializer\(|\.clone\(\)"
)
TENSORS_OF_TORCH = re.compile(r"(?:detach\(\)|buffer|tensor|function)\.clone\(\)")


def graph() -> onnx_ir.Model:
    return onnx_ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 20]>
    g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { h = Add(x, w) y = Neg(h) }""")


def test_only_the_kit_stores_removes_and_copies() -> None:
    found: list[str] = []
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("ir/edit/"):
            continue
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if BY_HAND.search(TENSORS_OF_TORCH.sub("", line)) and ">>>" not in line:
                found.append(f"{name}:{number}: {line.strip()}")
    # Before it is looked at a caller's graph is cloned; `snapshot` makes the clone independent.
    allowed = ("importers/onnx.py", "model = source.clone()")
    left = [line for line in found if not all(part in line for part in allowed)]
    # These call a method of TiedModel, which asks the kit.
    of_tied_model = re.compile(r"model(\(model\))?\.clone\(\)|TiedModel\(\w+\)\.clone\(\)")
    assert [line for line in left if not of_tied_model.search(line)] == []


def test_one_tensor_of_two_values_stays_one_in_a_copy() -> None:
    model = graph()
    value = add_initializer(model, "v", np.ones(2, np.float32))
    value.const_value = model.graph.initializers["w"].const_value
    twin = copy_model(model)
    w, v = (twin.graph.initializers[name].const_value for name in "wv")
    assert w is v
    assert w is not value.const_value
    assert stored_bytes(twin) == stored_bytes(model) == 8


@pytest.mark.parametrize("is_view", [False, True])
def test_a_snapshot_copies_what_can_be_written_and_nothing_else(is_view: bool) -> None:
    data = np.arange(4, dtype=np.float32)
    data.flags.writeable = is_view
    shown = data[:2]
    shown.flags.writeable = False
    model = graph()
    model.graph.initializers["w"].const_value = onnx_ir.Tensor(shown, name="w")
    snapshot(model)
    kept = model.graph.initializers["w"].const_value
    assert kept is not None
    assert np.shares_memory(kept.numpy(), data) is not is_view
    assert kept.numpy().tolist() == [0, 1]


def test_a_renamed_value_of_an_owned_graph_leaves_the_lender_alone() -> None:
    model = graph()
    lender = model.graph.initializers["w"].const_value
    assert lender is not None
    own_tensors(model)
    rename_initializer(model.graph.initializers["w"], "other", NameAuthority(model))
    assert (lender.name, [*model.graph.initializers]) == ("w", ["other"])
    (stored,) = onnx_ir.to_proto(model).graph.initializer
    assert (stored.name, stored.raw_data) == ("other", np.array([1, 2], np.float32).tobytes())


def test_a_value_takes_the_place_and_the_name_of_another() -> None:
    model = graph()
    (old,) = model.graph.outputs
    node = onnx_ir.node("Abs", [model.graph.node(0).outputs[0]])
    model.graph.append(node)
    replace_value(old, node.outputs[0])
    assert [output.name for output in model.graph.outputs] == ["y"]
    assert model.graph.outputs[0].producer() is node
    assert (old.name, node.outputs[0].shape) == (None, old.shape)


def test_an_output_is_kept_through_an_identity() -> None:
    model = graph()
    (old,) = model.graph.outputs
    keep_as_output(old, model.graph.node(0).outputs[0], NameAuthority(model))
    (output,) = model.graph.outputs
    producer = output.producer()
    assert producer is not None
    assert (producer.op_type, output.name, old.name) == ("Identity", "y", "y_stored")
