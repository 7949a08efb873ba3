"""Real ONNX models: in, out again, and the same to the last bit."""

from __future__ import annotations

import onnx
import onnx_ir
import pytest

import tieops
from tests.support.onnx_models import (
    LIGHT,
    MODELS,
    inputs,
    model_path,
)
from tieops.ir.walk import all_nodes, stored_values


def signature(model: onnx_ir.Model) -> list[tuple[str, str]]:
    stored = model.graph.initializers
    inputs = [value for value in model.graph.inputs if value.name not in stored]
    return [(str(v.name), f"{v.type}{v.shape}") for v in (*inputs, *model.graph.outputs)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_a_model_comes_through_bit_for_bit(name, pytestconfig, tmp_path):
    source = model_path(name, pytestconfig)
    model = tieops.from_onnx(source)
    portable = tieops.to_onnx(model, tmp_path / "portable.onnx", tie_form="portable")
    assert tieops.verify(
        portable, against=source, rtol=0, atol=0, optimize=False, inputs=inputs(name)
    )
    default = tieops.to_onnx(model, tmp_path / "default.onnx")
    assert tieops.verify(default, against=source, rtol=1e-4, inputs=inputs(name))

    again = tieops.from_onnx(portable)
    assert signature(again.ir) == signature(model.ir)
    assert len([*all_nodes(again.ir)]) == len([*all_nodes(model.ir)])
    assert [str(tie) for tie in again.ties] == [str(tie) for tie in model.ties]
    assert again.ledger == model.ledger
    assert portable.stored_bytes == model.ledger.stored_bytes
    before = [value.const_value.tobytes() for value in stored_values(model.ir)]
    assert [value.const_value.tobytes() for value in stored_values(again.ir)] == before


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_a_model_is_the_same_after_its_duplicates_are_tied(name, pytestconfig, tmp_path):
    source = model_path(name, pytestconfig)
    model = tieops.from_onnx(source)
    tied = tieops.tie(model)
    assert tied.ledger.stored_bytes <= model.ledger.stored_bytes
    assert not [each for each in tieops.tie(tied).duplicates if not each.held_back] or (
        tieops.tie(tied).ledger == tied.ledger
    )
    plain = {"session.disable_prepacking": "1"}
    written = tieops.to_onnx(tied, tmp_path / "tied.onnx", tie_form="portable")
    sides = [
        tieops.session(path, "cpu", options=plain, optimize=False)
        for path in (written.path, source)
    ]
    assert tieops.verify(sides[0], against=sides[1], rtol=0, atol=0, inputs=inputs(name))


def test_a_model_is_itself_in_memory_too(pytestconfig):
    source = model_path("silero-vad", pytestconfig)
    proto = onnx.load(source)
    by_path = tieops.from_onnx(source)
    for other in (source.read_bytes(), proto, by_path.ir):
        assert str(tieops.from_onnx(other)) == str(by_path)


def test_silero_vad_shares_its_weights_between_branches(pytestconfig):
    """25 Ifs and 341 Constants: weights live inside of branches, and some outside of them."""
    model = tieops.from_onnx(model_path("silero-vad", pytestconfig))
    constants = [n for n in _nodes(model) if n.op_type == "Constant"]
    assert len([n for n in _nodes(model) if n.op_type == "If"]) == 25
    assert len(constants) == 341
    assert {"Conv", "LSTM"} <= {layer.kind for layer in model.layers}


def _nodes(model: tieops.TiedModel) -> list[onnx_ir.Node]:
    return list(model.ir.graph.all_nodes())


@pytest.mark.parametrize("name", [f"light_{name}" for name in LIGHT])
def test_weights_that_ir_3_lists_as_inputs_stay_listed(name, pytestconfig, tmp_path):
    source = onnx.load(model_path(name, pytestconfig))
    written = tieops.to_onnx(tieops.tie(tieops.from_onnx(source)), tmp_path / "m.onnx")
    again = onnx.load(written)
    # Inputs that are fed keep their places; weights come after them.
    assert {value.name for value in again.graph.input} == {v.name for v in source.graph.input}
    assert {t.name for t in again.graph.initializer} == {t.name for t in source.graph.initializer}
    assert (again.ir_version, again.opset_import[0].version) == (3, 9)
