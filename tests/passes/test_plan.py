"""Plan, then apply: a plan is data and changes nothing, and a verb traces a graph once."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import onnx_ir
import pytest

import tieops
import tieops.passes
from tests.support.graphs import made
from tests.support.model_facts import serialized
from tieops.analysis.trace import trace
from tieops.errors import TieopsError
from tieops.passes import (
    ExtractPass,
    FreezeInputsPass,
    LowerTiedReadsPass,
    RemoveDeadBranchesPass,
    RemoveDisconnectedOutputsPass,
    RemoveLayersPass,
    RenamePass,
    ReplaceHeadPass,
    SurgeryPass,
    TiePass,
    UntiePass,
)

PLAIN = """g (int64[n] x) => (float[n,50] y, float[8,50] weights) {
    h = Gather(emb, x)  t = Transpose<perm = [1, 0]>(emb)  y = MatMul(h, t)
    weights = Identity(t) }"""
STORED_TWICE = "g (int64[n] x) => (float[n,50] y) { h = Gather(emb, x)  y = MatMul(h, head) }"
CALLED = ["outer (a, v) => (o) { b = f.lin(a, v)  o = MatMul(b, v) }",
          "lin (a, v) => (o) { o = MatMul(a, v) }"]  # fmt: skip


def plain() -> tieops.TiedModel:
    return made(PLAIN, emb=(50, 8))


def called() -> tieops.TiedModel:
    text = "g (float[2,8] x) => (float[2,8] y) { h = MatMul(x, w)  y = f.outer(h, w) }"
    return made(text, CALLED, w=(8, 8))


def stored_twice() -> tieops.TiedModel:
    rows = plain().parameters[0].numpy()
    return made(STORED_TWICE, emb=rows, head=rows.T.copy())


def in_a_row() -> tieops.TiedModel:
    text = "g (float[2,8] x) => (float[2,8] y) { h = MatMul(x, w)  i = Neg(h)  y = Softmax(i) }"
    return made(text, w=(8, 8))


PASSES: dict[str, tuple[SurgeryPass[Any], Callable[[], tieops.TiedModel]]] = {
    "untie": (UntiePass(), plain),
    "untie one": (UntiePass(targets=("MatMul_y",)), plain),
    "untie nothing": (UntiePass(accidental=True), plain),
    "untie calls": (UntiePass(), called),
    "tie": (TiePass(), stored_twice),
    "tie declared": (TiePass(targets=("Gather_h", "MatMul_y")), stored_twice),
    "replace head": (ReplaceHeadPass(out_features=3), plain),
    "replace head of a call": (ReplaceHeadPass(out_features=3), called),
    "remove outputs": (RemoveDisconnectedOutputsPass(), plain),
    "remove branches": (RemoveDeadBranchesPass(), plain),
    "lower": (LowerTiedReadsPass(), plain),
    "extract": (ExtractPass(inputs=("h",)), plain),
    "extract at a call": (ExtractPass(inputs=("lin/MatMul_o",)), called),
    "remove layers": (RemoveLayersPass(layers=("Neg_i", "Softmax_y")), in_a_row),
    "remove a layer of a call": (RemoveLayersPass(layers=("lin/MatMul_o",)), called),
    "rename": (RenamePass(names=(("Gather_h", "tokens"), ("weights", "w"))), plain),
    "freeze": (FreezeInputsPass(inputs=(("x", np.zeros((2, 8), np.float32)),)), called),
}
TRACES = {
    "untie calls": 2,
    "replace head of a call": 2,
    "extract at a call": 2,
    "remove a layer of a call": 2,
    "remove outputs": 0,
    "remove branches": 0,
    "freeze": 0,
}
"""How often a graph is traced, where it is not once: calls that are inlined give another graph."""


def traces(work: Callable[[], object]) -> int:
    """Return how often a graph is traced while something is done."""
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call" and frame.f_code is trace.__code__

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("name", PASSES)
def test_a_graph_is_traced_once_a_verb(name: str) -> None:
    surgery, build = PASSES[name]
    want = TRACES.get(name, 1)
    model = build()
    assert traces(lambda: tieops.Pipeline([surgery])(model)) == want
    model = build()
    assert traces(lambda: surgery(model.ir)) == want


def test_verbs_trace_once_and_what_they_return_only_when_it_is_looked_at() -> None:
    verbs: list[Callable[[tieops.TiedModel], tieops.TiedModel]] = [
        lambda model: tieops.untie(model, "MatMul_y"),
        lambda model: tieops.replace_head(model, out_features=3),
        lambda model: tieops.tie(model),
    ]
    for verb in verbs:
        model, found = plain(), list[tieops.TiedModel]()
        assert traces(lambda: found.append(verb(model))) == 1  # noqa: B023 - called at once
        assert traces(lambda: found[0].slots) <= 1  # noqa: B023
        assert traces(lambda: found[0].ties) == 0  # noqa: B023


def test_a_pass_that_changed_nothing_hands_its_trace_on() -> None:
    pipeline = tieops.Pipeline([TiePass(), LowerTiedReadsPass(), UntiePass()])
    model = made(STORED_TWICE, emb=(50, 8), head=(8, 50))
    assert traces(lambda: str(pipeline(model))) == 2  # of the copy, and of what the report compares


def test_slices_that_are_back_are_traced_once() -> None:
    text = """g (float[2,8] x) => (float[2,4] y, float[2,4] z) {
        s = Constant<value_ints = [0]>()  e = Constant<value_ints = [4]>()
        d = Constant<value_ints = [1]>()  c = Slice(w, s, e, d)
        y = MatMul(x, c)  z = MatMul(x, c) }"""
    free = tieops.untie(made(text, w=(8, 8)))
    assert traces(lambda: tieops.tie(free)) == 1


@pytest.mark.parametrize("name", PASSES)
def test_a_plan_is_data_and_changes_nothing(name: str) -> None:
    surgery, build = PASSES[name]
    model = build()
    before = serialized(model.ir)
    plan = surgery.plan(model)
    assert dataclasses.is_dataclass(plan)
    assert serialized(model.ir) == before
    rewrite = surgery.apply(model.ir, plan)
    report = tieops.Pipeline([surgery])(build())
    assert report.results[0][1].changes == rewrite.changes
    assert serialized(report.model.ir) == serialized(model.ir)


@pytest.mark.parametrize(
    ("surgery", "build"),
    [
        (UntiePass(targets=("Gather_h", "nobody")), plain),
        (UntiePass(names={"emb": "nobody"}), plain),
        (TiePass(targets=("Gather_h",)), plain),
        (TiePass(targets=("emb", "MatMul_y"), keep="nobody"), stored_twice),
        (ReplaceHeadPass(head="nobody", out_features=3), called),
        (ReplaceHeadPass(out_features=0), plain),
        (ReplaceHeadPass(out_features=3, name="Gather_h"), plain),
        (RemoveDisconnectedOutputsPass(outputs=("nobody",)), plain),
    ],
)
def test_what_is_refused_is_refused_by_the_plan(
    surgery: SurgeryPass[Any], build: Callable[[], tieops.TiedModel]
) -> None:
    model = build()
    before = serialized(model.ir)
    errors: list[str] = []
    works: list[Callable[[], object]] = [
        lambda: surgery.plan(model),
        lambda: surgery(model.ir),
        lambda: tieops.Pipeline([surgery])(model),
    ]
    for work in works:
        with pytest.raises(TieopsError) as caught:
            work()
        errors.append(str(caught.value))
    assert len(set(errors)) == 1
    assert serialized(model.ir) == before


def test_every_pass_can_be_imported_from_passes() -> None:
    found = {
        value.__name__
        for _, name, _ in pkgutil.iter_modules(tieops.passes.__path__)
        for value in vars(importlib.import_module(f"tieops.passes.{name}")).values()
        if isinstance(value, type) and issubclass(value, onnx_ir.passes.PassBase)
        if value.__module__.startswith("tieops.")
    }
    assert found == {name for name in tieops.passes.__all__ if name.endswith("Pass")}
    for name in tieops.passes.__all__:
        assert getattr(tieops.passes, name) is not None


def test_what_users_compare_and_catch_can_be_imported_from_ir() -> None:
    ir = importlib.import_module("tieops.ir")
    model = plain()
    assert isinstance(model.slots[0], ir.Slot)
    assert isinstance(model.parameters[0], ir.Parameter)
    assert isinstance(model.ties[0], ir.Tie)
    assert model.ties[0].parameter.evidence is ir.Evidence.STORAGE
    assert sorted(ir.__all__) == list(ir.__all__)
    for name in ir.__all__:
        assert name in dir(ir)
        assert getattr(ir, name) is not None
