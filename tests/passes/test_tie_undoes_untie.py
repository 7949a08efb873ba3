"""Tie undoes untie, and untie together keeps who leaves tied: on random graphs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tieops
from tests.support.checked_passes import valid
from tests.support.drawn_graphs import Drawn, bits_of, feeds_of, graphs
from tests.support.model_facts import facts
from tests.support.plain_runtime import PlainRuntime
from tieops.model import TiedModel
from tieops.passes.base import run
from tieops.passes.tie import TiePass


def only_permuted(model: TiedModel) -> bool:
    return all(slot.view.permutation is not None for tie in model.ties for slot in tie.slots)


@given(graphs(views_first=True))
def test_tie_undoes_untie(plain_runtime: PlainRuntime, drawn: Drawn) -> None:
    model = tieops.tie(drawn.model(), include_small=True)
    if not only_permuted(model):
        return
    again = valid(tieops.tie(tieops.untie(model)))
    assert facts(again) == facts(model)
    feeds = feeds_of(drawn.proto)
    assert bits_of(plain_runtime.run(again.ir, feeds)) == bits_of(
        plain_runtime.run(model.ir, feeds)
    )


@given(graphs(views_first=True))
def test_tie_undoes_untie_through_any_view(drawn: Drawn) -> None:
    """Reshape and Slice too, unless parts are all that anyone read, and not all that there was."""
    model = tieops.tie(drawn.model(), include_small=True)
    again, result = run(TiePass(), tieops.untie(model))
    if not any("is gone" in str(skip) for skip in result.skips):
        assert facts(again) == facts(model)


@given(graphs(views_first=True), st.data())
def test_untie_together_keeps_who_leaves_tied(
    plain_runtime: PlainRuntime, drawn: Drawn, data: st.DataObject
) -> None:
    model = drawn.model()
    shared = [tie for tie in model.ties if len(tie.slots) > 2]
    if not shared:
        return
    tie = data.draw(st.sampled_from(shared))
    leaving = data.draw(
        st.lists(st.sampled_from(tie.slots), min_size=2, max_size=len(tie.slots) - 1, unique=True)
    )
    free = valid(tieops.untie(model, *leaving, together=True))
    at = {(slot.node.outputs[0].name, slot.index) for slot in leaving}
    homes = {s.parameter for s in free.slots if (s.node.outputs[0].name, s.index) in at}
    assert len(homes) == 1
    others = {s.parameter for s in free.slots if (s.node.outputs[0].name, s.index) not in at}
    assert not homes & others
    feeds = feeds_of(drawn.proto)
    assert bits_of(plain_runtime.run(free.ir, feeds)) == bits_of(plain_runtime.run(model.ir, feeds))


@pytest.mark.parametrize("read", ["MatMul(e, v)", 'Einsum<equation="nk,kv->nv">(e, v)'])
@pytest.mark.parametrize("second", ["w", "fc"])
def test_untie_gives_names_back_that_no_module_tells(read: str, second: str) -> None:
    """A plain graph says nothing of modules: ``tie`` knows who read which tensor."""
    text = (
        '<ir_version: 10, opset_import: ["": 20]> g (int64[n] x) => (float[n,9] y)'
        f"{{ e = Gather(a, x) y = {read.replace('v)', f'{second})')} }}"
    )
    proto = onnx.parser.parse_model(text)
    values = np.random.default_rng(0).standard_normal((9, 9)).astype(np.float32)
    for name, array in (("a", values), (second, values.T.copy())):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    tied = tieops.tie(tieops.from_onnx(proto))
    assert len(tied.ties) == 1
    apart = tieops.untie(tied)
    assert not apart.ties
    reads = {slot.node.op_type: slot.parameter.names for slot in apart.slots}
    assert reads == {"Gather": ("a",), read.partition("(")[0].partition("<")[0]: (second,)}
