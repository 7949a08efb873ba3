"""Every case of fixtures/graphs: what is found, what tie makes of it, and its outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest

import tieops
from tests.support.golden_graphs import CASES, GRAPHS, load
from tests.support.model_facts import same_bits, serialized, ties_of
from tieops.model import TiedModel


def expected(case: str) -> dict[str, Any]:
    return json.loads((GRAPHS / case / "expect.json").read_text())


def one_each(ties: dict[str, list[str]]) -> dict[str, list[list[str]]]:
    return {name: [sorted(slots)] for name, slots in ties.items()}


def duplicates_of(model: TiedModel, *, held_back: bool) -> list[list[str]]:
    found: list[list[str]] = []
    for duplicate in model.duplicates:
        if bool(duplicate.held_back) is held_back:
            plain = tuple(range(len(duplicate.perms[0])))
            found.append(
                [
                    parameter.name + ("" if perm == plain else " transposed")
                    for parameter, perm in zip(duplicate.parameters, duplicate.perms, strict=True)
                ]
            )
    return sorted(found)


# -- structure: all that a graph says, without metadata and the names of its nodes ----------------


def tensor_facts(tensor: onnx_ir.TensorProtocol) -> Any:
    return str(tensor.dtype), tuple(tensor.shape.numpy()), tensor.tobytes()


def value_facts(value: onnx_ir.Value) -> Any:
    shape = None if value.shape is None else str(value.shape)
    return value.name, str(value.type), shape


def attribute_facts(attr: onnx_ir.Attr) -> Any:
    if attr.type == onnx_ir.AttributeType.GRAPH:
        return graph_facts(attr.as_graph())
    if attr.type == onnx_ir.AttributeType.TENSOR:
        return tensor_facts(attr.as_tensor())
    return str(attr.type), str(attr.value)


def node_facts(node: onnx_ir.Node) -> Any:
    return (
        node.op_identifier(),
        [value and value.name for value in node.inputs],
        [value.name for value in node.outputs],
        {name: attribute_facts(attr) for name, attr in sorted(node.attributes.items())},
    )


def graph_facts(graph: onnx_ir.Graph) -> Any:
    return {
        "inputs": [value_facts(value) for value in graph.inputs],
        "outputs": [value_facts(value) for value in graph.outputs],
        "initializers": {
            name: tensor_facts(value.const_value)
            for name, value in sorted(graph.initializers.items())
        },
        "nodes": [node_facts(node) for node in graph],
    }


def facts(model: onnx_ir.Model) -> Any:
    functions = {str(key): graph_facts(each.graph) for key, each in model.functions.items()}
    return {"main": graph_facts(model.graph), "functions": functions}


# -- the tests ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_ties_and_duplicates_are_found(case: str) -> None:
    model, want = TiedModel(load(case, "before")), expected(case)
    assert ties_of(model) == one_each(want["ties_before"])
    assert duplicates_of(model, held_back=False) == sorted(want["duplicates_before"])
    assert duplicates_of(model, held_back=True) == sorted(want["held_back"])


@pytest.mark.parametrize("case", CASES)
def test_tie_gives_the_graph_that_was_written_by_hand(case: str) -> None:
    tied, want = tieops.tie(TiedModel(load(case, "before"))), expected(case)
    assert facts(tied.ir) == facts(load(case, "after"))
    assert ties_of(tied) == one_each(want["ties_after"])
    assert duplicates_of(tied, held_back=False) == sorted(want["duplicates_after"])
    assert duplicates_of(tied, held_back=True) == sorted(want["held_back"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("which", ["before", "after"])
def test_cases_are_valid_models(case: str, which: str) -> None:
    onnx.checker.check_model(onnx_ir.to_proto(load(case, which)), full_check=True)


@pytest.mark.parametrize("case", CASES)
def test_tied_model_is_a_valid_model(case: str) -> None:
    tied = tieops.tie(TiedModel(load(case, "before")))
    onnx.checker.check_model(onnx_ir.to_proto(tied.ir), full_check=True)


@pytest.mark.parametrize("case", CASES)
def test_tie_twice_is_tie_once(case: str) -> None:
    once = tieops.tie(TiedModel(load(case, "before")))
    assert serialized(tieops.tie(once).ir) == serialized(once.ir)


@pytest.mark.parametrize("case", CASES)
def test_tie_leaves_its_argument_alone(case: str) -> None:
    model = TiedModel(load(case, "before"))
    original = serialized(model.ir)
    tieops.tie(model)
    assert serialized(model.ir) == original
    assert ties_of(model) == one_each(expected(case)["ties_before"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_tied_model_computes_the_same_bits(case: str, seed: int, plain_runtime: Any) -> None:
    model = TiedModel(load(case, "before"))
    feeds = plain_runtime.feeds(model.ir, seed)
    before = plain_runtime.run(model.ir, feeds)
    assert any(np.nan_to_num(output).any() for output in before), "the case computes only zeros"
    assert same_bits(plain_runtime.run(tieops.tie(model).ir, feeds), before)


def names_of_ties(model: TiedModel) -> list[tuple[tuple[str, ...], int]]:
    return sorted((tie.names, len(tie.slots)) for tie in model.ties)


@pytest.mark.parametrize("case", CASES)
def test_written_portable_it_is_the_same_model(
    case: str, tmp_path: Path, plain_runtime: Any
) -> None:
    tied = tieops.tie(TiedModel(load(case, "before")))
    again = tieops.from_onnx(tieops.to_onnx(tied, tmp_path / "m.onnx", tie_form="portable"))
    assert ties_of(again) == ties_of(tied)
    assert names_of_ties(again) == names_of_ties(tied)
    for seed in (0, 1):
        feeds = plain_runtime.feeds(tied.ir, seed)
        assert same_bits(plain_runtime.run(again.ir, feeds), plain_runtime.run(tied.ir, feeds))


@pytest.mark.parametrize("case", CASES)
def test_written_with_gemm_it_keeps_its_ties_and_numbers(
    case: str, tmp_path: Path, plain_runtime: Any
) -> None:
    tied = tieops.tie(TiedModel(load(case, "before")))
    path = tieops.to_onnx(tied, tmp_path / "m.onnx", tie_form="gemm").path
    onnx.checker.check_model(path, full_check=True)
    again = tieops.from_onnx(path)
    assert names_of_ties(again) == names_of_ties(tied)
    for seed in (0, 1):
        feeds = plain_runtime.feeds(tied.ir, seed)
        before, after = plain_runtime.run(tied.ir, feeds), plain_runtime.run(again.ir, feeds)
        for one, other in zip(before, after, strict=True):
            scale = np.abs(np.nan_to_num(one)).max()
            np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-6 * scale)
