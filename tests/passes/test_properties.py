"""Surgery on whatever graph hypothesis draws: inverse, idempotent, exact, and never in place."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import tieops
from tests.support.checked_passes import valid
from tests.support.drawn_graphs import Drawn, bits_of, feeds_of, graphs
from tests.support.model_facts import serialized
from tests.support.plain_runtime import PlainRuntime
from tieops.ir.view import Slice
from tieops.model import TiedModel


def unread(model: TiedModel) -> set[str]:
    return {
        str(value.name)
        for value in model.ir.graph.initializers.values()
        if not value.uses() and not value.is_graph_output()
    }


def dead_views(model: TiedModel) -> list[str]:
    return [
        str(node.op_type)
        for node in model.ir.graph
        if not any(output.uses() or output.is_graph_output() for output in node.outputs)
    ]


def reads_whole(model: TiedModel) -> bool:
    """Tell whether every reader of a tie reads all of it; what is cut off has no twin to find."""
    return not any(
        isinstance(step, Slice)
        for tie in model.ties
        for slot in tie.slots
        for read in slot.reads
        for step in read.view.steps
    )


@given(graphs(views_first=True))
def test_untie_gives_all_slots_their_own_and_changes_no_bit(
    plain_runtime: PlainRuntime, drawn: Drawn
) -> None:
    model = drawn.model()
    before = serialized(model.ir)
    free = valid(tieops.untie(model))
    assert serialized(model.ir) == before
    assert not [tie for tie in free.ties if len(tie.slots) > 1]
    assert serialized(tieops.untie(free).ir) == serialized(free.ir)
    assert unread(free) <= unread(model)
    assert [str(slot.view.shape) for slot in free.slots] == [
        str(slot.view.shape) for slot in model.slots
    ]
    feeds = feeds_of(drawn.proto)
    assert bits_of(plain_runtime.run(free.ir, feeds)) == bits_of(plain_runtime.run(model.ir, feeds))


@given(graphs(views_first=False))
def test_untie_works_where_views_come_anywhere(plain_runtime: PlainRuntime, drawn: Drawn) -> None:
    model = drawn.model()
    free = valid(tieops.untie(model))
    feeds = feeds_of(drawn.proto)
    assert bits_of(plain_runtime.run(free.ir, feeds)) == bits_of(plain_runtime.run(model.ir, feeds))


@given(graphs(views_first=True))
def test_untied_stores_what_its_slots_read(drawn: Drawn) -> None:
    model = tieops.remove_disconnected_outputs(drawn.model())  # nothing in it reads in vain
    read = {slot.parameter.name for slot in model.slots}
    free = tieops.untie(model)
    if any(isinstance(step, Slice) for slot in free.slots for step in slot.view.steps):
        return  # a part that nobody shares is no tie, and its tensor stays whole
    others = sum(
        value.const_value.nbytes
        for value in free.ir.graph.initializers.values()
        if value.name not in read | {slot.parameter.name for slot in free.slots}
    )
    assert free.ledger.stored_bytes - others == sum(s.logical_bytes for s in free.slots)


@given(graphs(views_first=True), st.data())
def test_untie_of_one_slot_leaves_the_others_tied(
    plain_runtime: PlainRuntime, drawn: Drawn, data: st.DataObject
) -> None:
    model = drawn.model()
    shared = [tie for tie in model.ties if len(tie.slots) > 1]
    if not shared:
        return
    tie = data.draw(st.sampled_from(shared))
    slot = data.draw(st.sampled_from(tie.slots))
    free = valid(tieops.untie(model, slot))
    node = next(n for n in free.ir.graph if n.outputs[0].name == slot.node.outputs[0].name)
    (own,) = [s for s in free.slots if s.node is node and s.index == slot.index]
    assert not any(own in other.slots for other in free.ties if len(other.slots) > 1)
    # It stores what it reads and no more; reshapes stay nodes, by which tie finds it again.
    assert own.view.elements == own.parameter.elements
    wanted = slot.view.apply(slot.parameter.numpy())
    assert np.array_equal(own.view.apply(own.parameter.numpy()), wanted)
    others = len([s for s in tie.slots if s is not slot])
    same = [t for t in free.ties if t.parameter.name == tie.parameter.name]
    if others > 1 and reads_whole(model):
        assert max(len(t.slots) for t in same) == others
    feeds = feeds_of(drawn.proto)
    assert bits_of(plain_runtime.run(free.ir, feeds)) == bits_of(plain_runtime.run(model.ir, feeds))


@given(graphs(views_first=True), st.data())
def test_remove_outputs_keeps_the_others_to_the_last_bit(
    plain_runtime: PlainRuntime, drawn: Drawn, data: st.DataObject
) -> None:
    model = drawn.model()
    before = serialized(model.ir)
    names = [str(output.name) for output in model.ir.graph.outputs]
    if not names:
        return
    keep = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    small = valid(tieops.remove_disconnected_outputs(model, keep=keep))
    assert serialized(model.ir) == before
    left = [name for name in names if name in keep]
    assert [output.name for output in small.ir.graph.outputs] == left
    gone = [name for name in names if name not in keep]
    if gone:
        other = tieops.remove_disconnected_outputs(model, outputs=gone)
        assert serialized(other.ir) == serialized(small.ir)
    again = tieops.remove_disconnected_outputs(small, keep=keep)
    assert serialized(again.ir) == serialized(small.ir)
    assert not unread(small)
    assert not dead_views(small)
    feeds = feeds_of(drawn.proto)
    want = dict(zip(names, bits_of(plain_runtime.run(model.ir, feeds)), strict=True))
    assert bits_of(plain_runtime.run(small.ir, feeds)) == [want[name] for name in left]
