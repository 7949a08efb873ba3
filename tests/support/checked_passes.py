"""Verbs of surgery, each with the checks that hold whatever it is applied to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest

import tieops
from tests.support.model_facts import (
    Arrays,
    dead,
    facts,
    outputs,
    same_bits,
    serialized,
    unread,
    unread_anywhere,
)
from tieops.passes.base import run
from tieops.passes.disconnected_outputs import RemoveDisconnectedOutputsPass


def freed(
    model: tieops.TiedModel, feeds: Arrays, *targets: Any, together: bool = False
) -> tieops.TiedModel:
    """Untie, and check all that always holds."""
    before = serialized(model.ir)
    free = tieops.untie(model, *targets, together=together)
    assert serialized(model.ir) == before, "the argument was changed"
    assert serialized(free.ir) != before, "nothing was untied"
    onnx.checker.check_model(onnx_ir.to_proto(free.ir), full_check=True)
    want, got = outputs(model, feeds), outputs(free, feeds)
    assert any(np.nan_to_num(each).any() for each in want.values())
    assert same_bits([*got.values()], [*want.values()])
    assert not unread(free)
    assert not dead(free)
    return free


def all_freed(model: tieops.TiedModel, feeds: Arrays) -> tieops.TiedModel:
    """Untie all, and check that all own what they read, exactly, and that tie brings it back."""
    free = freed(model, feeds)
    assert not free.ties
    operands = model.ledger.stored_bytes - sum(each.nbytes for each in model.parameters)
    assert free.ledger.stored_bytes <= operands + sum(s.logical_bytes for s in free.slots)
    assert sum(each.nbytes for each in free.parameters) == sum(
        slot.logical_bytes for slot in free.slots
    )
    assert serialized(tieops.untie(free).ir) == serialized(free.ir)
    return free


def and_back(model: tieops.TiedModel, feeds: Arrays) -> tieops.TiedModel:
    """The same, and tie the free model again."""
    free = all_freed(model, feeds)
    again = tieops.tie(free)
    assert facts(again) == facts(model)
    assert same_bits([*outputs(again, feeds).values()], [*outputs(model, feeds).values()])
    return free


def removed(
    model: tieops.TiedModel, feeds: dict[str, np.ndarray], **options: Any
) -> tieops.TiedModel:
    """Remove outputs, and check all that always holds."""
    before = serialized(model.ir)
    small = tieops.remove_disconnected_outputs(model, **options)
    assert serialized(model.ir) == before, "the argument was changed"
    onnx.checker.check_model(onnx_ir.to_proto(small.ir), full_check=True)
    want = outputs(model, feeds)
    inputs = {str(value.name) for value in small.ir.graph.inputs}
    got = outputs(small, {name: array for name, array in feeds.items() if name in inputs})
    assert got
    for name, array in got.items():
        assert array.tobytes() == want[name].tobytes(), name
    assert not unread(small)
    assert not dead(small)
    again = tieops.remove_disconnected_outputs(small, keep=[*got])
    assert serialized(again.ir) == serialized(small.ir)
    return small


def trimmed(
    model: tieops.TiedModel, feeds: Mapping[str, np.ndarray], **options: Any
) -> tieops.TiedModel:
    small = removed(model, dict(feeds), **options)
    assert list(unread_anywhere(small)) == []
    return small


def replaced(model: tieops.TiedModel, *args: Any, **options: Any) -> tieops.TiedModel:
    """Replace the head by one of 15, and check all that always holds."""
    before = serialized(model.ir)
    small = tieops.replace_head(model, *args, **{"out_features": 15} | options)
    assert serialized(model.ir) == before, "the argument was changed"
    onnx.checker.check_model(onnx_ir.to_proto(small.ir), full_check=True)
    assert not unread(small)
    assert not dead(small)
    return small


def as_declared(model: tieops.TiedModel, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a model, and compare its outputs with the sizes that it declares."""
    found = outputs(model, feeds)
    for value in model.ir.graph.outputs:
        array = found[str(value.name)]
        assert value.shape is not None
        assert len(value.shape) == array.ndim
        sizes = zip(value.shape.dims, array.shape, strict=True)
        assert all(not isinstance(size, int) or size == actual for size, actual in sizes)
    return found


def refused(model: tieops.TiedModel, *args: Any, **options: Any) -> str:
    before = serialized(model.ir)
    with pytest.raises(tieops.TieopsError) as caught:
        tieops.replace_head(model, *args, **{"out_features": 15} | options)
    assert serialized(model.ir) == before
    return str(caught.value)


def removal_report(model: tieops.TiedModel, **options: Any) -> list[str]:
    """Return what removing outputs says of its changes and skips."""
    _, result = run(RemoveDisconnectedOutputsPass(**options), model)
    return [str(each) for each in (*result.changes, *result.skips)]


def valid(model: tieops.TiedModel) -> tieops.TiedModel:
    """Return a model that ONNX's checker takes."""
    onnx.checker.check_model(onnx_ir.to_proto(model.ir), full_check=True)
    return model
