"""Models in memory outlive the files that they were read from."""

from __future__ import annotations

import gc

import numpy as np
import onnx
import pytest

import tieops
from tests.exporters.test_onnx import files, tied_head, weight_of
from tieops.ir.storage import living


@pytest.mark.parametrize("external_data", [True, False])
def test_another_model_of_the_same_file_is_whole_after_a_save_over_it(external_data, tmp_path):
    path = tmp_path / "m.onnx"
    first = tied_head()
    weight = weight_of(first).copy()
    tieops.to_onnx(first, path, external_data=True)
    one, other, third = (tieops.from_onnx(path) for _ in range(3))
    derived = tieops.untie(other)
    tieops.to_onnx(one, path, external_data=external_data)
    tieops.to_onnx(tied_head(), path, external_data=external_data)
    assert "m.onnx.data" not in files(tmp_path)
    for model in (one, other, derived, third):
        np.testing.assert_array_equal(weight_of(model), weight)
    again = tieops.to_onnx(third, tmp_path / "again.onnx", external_data=True)
    np.testing.assert_array_equal(weight_of(tieops.from_onnx(again)), weight)
    assert tieops.verify(derived, against=first, rtol=1e-4)


def test_what_is_one_range_of_a_file_that_went_is_one_range_still(tmp_path):
    path = tieops.to_onnx(tied_head(), tmp_path / "m.onnx", external_data=True).path
    proto = onnx.load(path, load_external_data=False)
    twin = proto.graph.initializer.add()
    twin.CopyFrom(next(each for each in proto.graph.initializer if each.name == "w"))
    twin.name = "twin"
    proto.graph.node.append(onnx.helper.make_node("Identity", ["twin"], ["copy"]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("copy", 1, [200, 16]))
    path.write_bytes(proto.SerializeToString())
    model = tieops.from_onnx(path)
    stored = model.ledger.stored_bytes
    tieops.to_onnx(tied_head(), path, external_data=True)
    assert tieops.TiedModel(model.clone()).ledger.stored_bytes == stored
    written = tieops.to_onnx(model, path, external_data=True)
    assert written.stored_bytes == stored


def test_a_model_that_nobody_holds_is_forgotten():
    gc.collect()
    before = len(living._models)
    model = tied_head()
    assert len(living._models) > before
    del model
    gc.collect()
    assert len(living._models) <= before
