"""Outputs removed from models of others with Ifs, Loops and Scans: ONNX's own cases, silero-vad."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.case.test_case import TestCase as Case
from onnx.reference import ReferenceEvaluator

import tieops
from tests.support.model_facts import outputs, serialized, unread_anywhere
from tests.support.onnx_models import inputs, model_path
from tieops.ir.walk import all_nodes

OPSET_8 = "test_scan_sum"


@functools.cache
def cases() -> tuple[Case, ...]:
    """Return ONNX's own cases for all operators; making them takes seconds."""
    with np.errstate(all="ignore"):
        return tuple(case for case in collect_testcases(None) if case.model is not None)


def smaller(model: tieops.TiedModel, keep: str) -> tieops.TiedModel:
    small = tieops.remove_disconnected_outputs(model, keep=[keep])
    onnx.checker.check_model(onnx_ir.to_proto(small.ir), full_check=True)
    again = tieops.remove_disconnected_outputs(small, keep=[keep])
    assert serialized(again.ir) == serialized(small.ir)
    return small


def ran(model: tieops.TiedModel, feeds: Mapping[str, Any], name: str, case: str) -> list[bytes]:
    """Run a model by ONNX's own evaluator, since some cases are newer than the runtime."""
    if case == OPSET_8:  # too old for the evaluator
        return [outputs(model, feeds)[name].tobytes()]
    (found,) = ReferenceEvaluator(onnx_ir.to_proto(model.ir)).run([name], dict(feeds))
    return [np.asarray(a).tobytes() for a in (found if isinstance(found, list) else [found])]


@pytest.mark.parametrize(
    ("operator", "count"), [("If", 7), ("Loop", 10), ("Scan", 4), ("SequenceMap", 2)]
)
def test_the_output_that_stays_is_what_it_was(operator: str, count: int) -> None:
    chosen = [c for c in cases() if operator in {node.op_type for node in c.model.graph.node}]
    assert len(chosen) >= count
    for case in chosen:
        model = tieops.from_onnx(case.model)
        for output in case.model.graph.output:
            small = smaller(model, output.name)
            if case.name != OPSET_8:
                assert list(unread_anywhere(small)) == [], case.name
            for given, _ in case.data_sets or ():
                feeds = dict(zip((v.name for v in case.model.graph.input), given, strict=True))
                want = ran(model, feeds, output.name, case.name)
                used = {value.name for value in small.ir.graph.inputs}
                feeds = {name: fed for name, fed in feeds.items() if name in used}
                assert ran(small, feeds, output.name, case.name) == want, case.name


@pytest.mark.parametrize("keep", ["output", "stateN"])
def test_silero_vad_keeps_either_output(keep: str, pytestconfig: pytest.Config) -> None:
    """Its 25 Ifs nest, and branches compute both outputs: the rest of one goes with the other."""
    model = tieops.from_onnx(model_path("silero-vad", pytestconfig))
    small = smaller(model, keep)
    assert list(unread_anywhere(small)) == []
    assert len([*all_nodes(small.ir)]) < len([*all_nodes(model.ir)])
    for feeds in inputs("silero-vad") or []:
        want, got = outputs(model, feeds), outputs(small, feeds)
        assert got[keep].tobytes() == want[keep].tobytes()
        assert [*got] == [keep]


def test_silero_vad_has_no_disconnected_output(pytestconfig: pytest.Config) -> None:
    model = tieops.from_onnx(model_path("silero-vad", pytestconfig))
    small = tieops.remove_disconnected_outputs(model)
    assert [value.name for value in small.ir.graph.outputs] == ["output", "stateN"]
    for feeds in inputs("silero-vad") or []:
        want, got = outputs(model, feeds), outputs(small, feeds)
        assert {name: array.tobytes() for name, array in got.items()} == {
            name: array.tobytes() for name, array in want.items()
        }
