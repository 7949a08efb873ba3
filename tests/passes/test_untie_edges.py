"""Untie at its edges: functions, joined parts, names, what is left behind, and the way back."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import pytest

import tieops
from tests.support.checked_passes import all_freed, and_back, freed
from tests.support.golden_graphs import load
from tests.support.graphs import CONSTANT, IDS, made, rows
from tests.support.model_facts import facts, homes, outputs, serialized, unread
from tieops.ir.metadata.keys import TORCH_KIND, TORCH_PERSISTENT

X = rows(2, 8)

# -- node names -----------------------------------------------------------------------------------


def test_dequantized_weight_keeps_its_scale():
    quantized = np.random.default_rng(0).integers(-99, 99, (12, 8)).astype(np.int8)
    model = made(
        "g (int64[4] ids) => (float[4,12] y) { d = DequantizeLinear(emb, scale, zero)"
        " h = Gather(d, ids)  t = Transpose(d)  y = MatMul(h, t) }",
        emb=quantized,
        scale=np.array(0.125, np.float32),
        zero=np.array(3, np.int8),
    )
    free = freed(model, {"ids": IDS})
    assert not [tie for tie in free.ties if tie.parameter.name == "emb"]
    stored = [
        each
        for each in free.parameters
        if each.dtype == onnx_ir.DataType.INT8 and each.elements > 1
    ]
    assert sum(each.nbytes for each in stored) == 2 * quantized.nbytes


def test_a_view_s_node_keeps_its_name_where_nobody_else_reads_it():
    """A scale is a slot too, of a layer that is called after the node."""
    model = made(
        """g (int64[4] ids, float[2,8] x) => (float[4,8] e, float[2,8] y) <float s = {0.5}> {
           d = DequantizeLinear(w, s)  e = Gather(d, ids)  t = Transpose(w)
           k = DequantizeLinear(t, s)  y = MatMul(x, k) }""",
        w=np.arange(64, dtype=np.int8).reshape(8, 8),
    )
    free = freed(model, {"ids": IDS, "x": X})
    assert [slot.name for slot in free.slots] == [slot.name for slot in model.slots]
    assert facts(tieops.tie(free, include_small=True)) == facts(model)


def test_copies_of_two_unnamed_nodes_get_names_of_their_own():
    model = made(
        "g (float[2,8] x) => (float[2,8] y, float[2,8] z) { h = MatMul(x, w)"
        " a = Transpose(w)  b = Identity(a)  y = MatMul(h, b)  z = MatMul(h, w) }",
        w=(8, 8),
    )
    freed(model, {"x": X}, "MatMul_y", "MatMul_z", together=True)


# -- together -------------------------------------------------------------------------------------


def test_together_through_function_inputs():
    model = made(
        "g (float[2,8] x) => (float[2,8] y){ h = f.lin(x, w)  i = f.lin(h, w)  y = f.lin(i, w) }",
        ["lin (a, v) => (o) { o = MatMul(a, v) }"],
        w=(8, 8),
    )
    names = [slot.name for slot in model.slots]
    free = freed(model, {"x": X}, *names[1:], together=True)
    first, second, third = [node.inputs[1].name for node in free.ir.graph]
    assert first == "w"
    assert second == third != "w"


def test_together_through_a_function_input_and_beside_it():
    """The new tensor of the main graph was read inside of the function: an invalid model."""
    model = made(
        "g (float[2,8] x) => (float[2,8] y)"
        "{ t = Transpose(w)  h = f.lin(x, t)  i = MatMul(h, t)  y = MatMul(i, w) }",
        ["lin (a, v) => (o) { u = Transpose(v)  o = MatMul(a, u) }"],
        w=(8, 8),
    )
    names = [slot.name for slot in model.slots]
    freed(model, {"x": X}, *names[1:], together=True)


def test_some_of_the_readers_of_a_constant_in_a_function_leave():
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { h = f.lin(x)  i = f.lin(h)  y = f.lin(i) }",
        ["lin (a) => (o) { " + CONSTANT + "o = MatMul(a, w) }"],
    )
    first, *others = [slot.name for slot in model.slots]
    free = freed(model, {"x": X}, others[0])
    assert [[slot.name for slot in tie.slots] for tie in free.ties] == [[first, others[1]]]
    freed(model, {"x": X}, *others)


def test_together_of_joined_slots():
    model = made(
        "g (float[2,8] x) => (float[2,8] y, float[2,8] z, float[2,4] v)"
        "{ v = MatMul(x, p)  c = Concat<axis = 1>(p, q)  y = MatMul(x, c)  z = MatMul(x, c) }",
        p=(8, 4),
        q=(8, 4),
    )
    free = freed(model, {"x": X}, "MatMul_y", "MatMul_z", together=True)
    read = {slot.name: {each.parameter.name for each in slot.reads} for slot in free.slots}
    assert read["MatMul_y.weight"] == read["MatMul_z.weight"]
    assert "p" not in read["MatMul_y.weight"]


# -- functions ------------------------------------------------------------------------------------


LINEAR = "lin (a) => (o) { " + CONSTANT + "o = MatMul(a, w) }"
TWO_PRODUCTS = "lin (a) => (o) { " + CONSTANT + "b = MatMul(a, w)  o = MatMul(b, w) }"


@pytest.mark.parametrize(
    ("calls", "functions"),
    [
        ("h = f.lin(x)  y = f.lin(h)", [TWO_PRODUCTS]),
        ("y = f.lin(x)", [TWO_PRODUCTS]),
        (
            "y = f.outer(x)",
            [LINEAR, "outer (a) => (o) { b = f.lin(a)  c = f.lin(b)  o = f.lin(c) }"],
        ),
        (
            "h = f.outer(x)  y = f.outer(h)",
            [LINEAR, "outer (a) => (o) { b = f.lin(a)  o = f.lin(b) }"],
        ),
    ],
    ids=["read and called twice", "read twice", "called three times", "nested calls"],
)
def test_constant_of_a_function(calls, functions):
    model = made(f"g (float[2,8] x) => (float[2,8] y) {{ {calls} }}", functions)
    and_back(model, {"x": X})


def test_initializer_of_a_branch_inside_a_function():
    values = CONSTANT[CONSTANT.index("float[8,8]") : CONSTANT.index(">")]
    model = made(
        "g (bool c, float[2,8] x) => (float[2,8] y) { h = f.lin(x, c)  y = f.lin(h, c) }",
        [
            "lin (a, c) => (o) { o = If<then_branch = t () => (float[2,8] p)"
            f" <{values.replace('{', 'w = {')}> {{ p = MatMul(a, w) }},"
            " else_branch = e () => (float[2,8] q) { q = Identity(a) }>(c) }"
        ],
    )
    and_back(model, {"x": X, "c": np.array(True)})


def test_function_that_returns_a_view_of_a_weight():
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { t = f.turn(w)  u = f.turn(w)"
        " h = MatMul(x, t)  y = MatMul(h, u) }",
        ["turn (v) => (o) { o = Transpose(v) }"],
        w=(8, 8),
    )
    and_back(model, {"x": X})


def test_function_that_returns_a_cast_of_a_weight():
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { t = f.turn(w)  u = f.turn(w)"
        " h = MatMul(x, t)  y = MatMul(h, u) }",
        ["turn (v) => (o) { c = Cast<to = 1>(v)  o = Transpose(c) }"],
        w=rows(8, 8).astype(np.float16),
    )
    all_freed(model, {"x": X})


# -- what is left behind --------------------------------------------------------------------------


def test_joined_slot_of_two_ties_gets_one_tensor():
    """Each tie stored the joined value anew; the first of the two had no reader."""
    model = made(
        "g (float[2,8] x) => (float[2,8] y, float[2,8] z)"
        "{ c = Concat<axis = 1>(p, q)  y = MatMul(x, c)  z = MatMul(x, c) }",
        p=(8, 4),
        q=(8, 4),
    )
    all_freed(model, {"x": X})


@pytest.mark.parametrize("case", ["h_lstm_gates", "h_overlapping_slices"])
def test_operands_of_views_that_go_go_too(case: str):
    model = tieops.from_onnx(load(case, "before"))
    assert not unread(tieops.untie(model))


def test_scale_and_zero_point_do_not_become_a_tie():
    model = tieops.from_onnx(load("c_dequantize_feeds_many", "before"))
    free = tieops.untie(model)
    assert not free.ties
    assert serialized(tieops.untie(free).ir) == serialized(free.ir)


def test_the_tensor_that_stays_is_no_larger_than_what_is_read_of_it():
    model = made(
        "g (float[2,8] x) => (float[2,4] y, float[2,4] z) { a = Slice(w, s0, e0, ax)"
        " b = Slice(w, s1, e1, ax)  y = MatMul(x, a)  z = MatMul(x, b) }",
        w=(8, 8),
        s0=np.array([0]),
        e0=np.array([4]),
        s1=np.array([2]),
        e1=np.array([6]),
        ax=np.array([1]),
    )
    all_freed(model, {"x": X})


# -- tie(untie(m)) == m ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "view", ["a = Reshape(w, sizes)", "a = Reshape(w, sizes)  b = Transpose(a)  c = Identity(b)"]
)
def test_reshaped_readers_are_tied_again(view: str):
    last = view.rsplit(" = ", 1)[0].rsplit(" ", 1)[-1]
    model = made(
        f"g (float[2,8] x) => (float[2,8] y) {{ {view}  h = MatMul(x, {last})"
        f"  y = MatMul(h, {last}) }}",
        w=(64,),
        sizes=np.array([8, 8]),
    )
    and_back(model, {"x": X})


def test_joined_readers_are_tied_again():
    model = made(
        "g (float[2,8] x) => (float[2,4] v, float[2,8] y)"
        "{ v = MatMul(x, p)  c = Concat<axis = 1>(p, q)  y = MatMul(x, c) }",
        p=(8, 4),
        q=(8, 4),
    )
    and_back(model, {"x": X})


def test_constant_node_is_kept_under_its_name():
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { " + CONSTANT + "t = Transpose(w)"
        " h = MatMul(x, t)  y = MatMul(h, w) }"
    )
    and_back(model, {"x": X})


def test_made_up_name_is_the_one_that_stays():
    """The slot's name is real and the tensor's is not: tie kept the wrong one of the two."""
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { h = MatMul(x, val_0)  y = MatMul(h, val_0) }",
        val_0=(8, 8),
    )
    and_back(model, {"x": X})


def test_layers_keep_their_names():
    """Two layers that leave together are called after the new tensor: MatMul_z is MatMul_y@1."""
    model = made(
        "g (float[2,8] x) => (float[2,8] y, float[2,8] z)"
        "{ h = MatMul(x, w)  y = MatMul(h, w)  z = MatMul(h, w) }",
        w=(8, 8),
    )
    free = freed(model, {"x": X}, "MatMul_y", "MatMul_z", together=True)
    assert [slot.name for slot in free.slots] == [slot.name for slot in model.slots]


def test_function_layers_keep_their_names():
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { h = f.lin(x, w)  y = f.lin(h, w) }",
        ["lin (a, v) => (o) { o = MatMul(a, v) }"],
        w=(8, 8),
    )
    free = freed(model, {"x": X})
    assert [slot.name for slot in free.slots] == [slot.name for slot in model.slots]


def test_the_one_that_leaves_takes_its_name_along():
    """emb.weight leaves under its old name, and what stays is called fc.weight."""
    import torch

    from fixtures.torch_models import TiedLanguageModel

    torch.manual_seed(0)
    module = TiedLanguageModel(50, 8).eval()
    model: Any = tieops.from_torch(module, (torch.zeros(1, 3, dtype=torch.long),))
    free = tieops.untie(model, "emb")
    assert homes(free)["emb.weight"] == "emb.weight"
    assert homes(free)["fc.weight"] == "fc.weight"
    assert facts(tieops.tie(free)) == facts(model)


def test_a_reshape_that_changes_nothing_before_a_transpose():
    model = made(
        "g (float[2,8] x) => (float[2,8] y) { r = Reshape(w, sizes)  t = Transpose(r)"
        " h = MatMul(x, w)  y = MatMul(h, t) }",
        w=(8, 8),
        sizes=np.array([8, 8]),
    )
    all_freed(model, {"x": X})


def test_a_buffer_that_leaves_is_still_a_buffer():
    """GPT-Neo has one mask for each layer: equal, no float, and a parameter by torch's word."""
    model = made(
        """g (bool[1, 70] x) => (bool[64, 70] y, bool[64, 70] z) {
             y = And(x, first_mask)
             z = And(x, second_mask)
        }""",
        **{name: rows(64, 70) > 0 for name in ("first_mask", "second_mask")},
    )
    for value in model.ir.graph.initializers.values():
        value.metadata_props.update({TORCH_KIND: "BUFFER", TORCH_PERSISTENT: "False"})
    tied = tieops.tie(model)
    (left,) = tied.parameters
    free = tieops.untie(tied)
    assert [each.name for each in free.parameters] == ["first_mask", "And_z.b"]
    kinds = [each.value.metadata_props[TORCH_PERSISTENT] for each in free.parameters]
    assert kinds == ["False", "False"]
    (again,) = tieops.tie(free).parameters
    assert again.names == left.names
    assert [*tieops.to_torch(free).parameters()] == []


@pytest.mark.parametrize("include_small", [False, True])
def test_small_ones_that_were_one_are_one_again_beside_equal_strangers(include_small):
    """Found by chains of onnx's node cases."""
    small = rows(3, 4)
    model = made(
        """g (float[3, 4] x) => (float[3, 4] y) {
             a = Add(x, first)  b = Mul(a, first)
             c = Add(b, second)  d = Mul(c, second)
             y = Sub(d, third)
        }""",
        **dict.fromkeys(("first", "second", "third"), small),
    )
    again = tieops.tie(tieops.untie(model), include_small=include_small)
    assert facts(tieops.tie(model, include_small=include_small)) == facts(again)
    assert len(again.parameters) == (1 if include_small else 3)
    feeds = {"x": rows(3, 4, seed=2)}
    assert outputs(again, feeds)["y"].tobytes() == outputs(model, feeds)["y"].tobytes()


@pytest.mark.parametrize("joined", ["turned, extra", "extra, turned"])
def test_a_head_that_joins_the_shared_tensor_to_one_of_its_own(joined):
    """MobileBERT: the embedding transposed, and more rows, are one matrix of the head."""
    model = made(
        f"""g (int64[4] ids, float[4, 12] x) => (float[4, 8] h, float[4, 20] y) {{
             h = Gather(table, ids)
             turned = Transpose<perm = [1, 0]>(table)
             both = Concat<axis = 0>({joined})
             y = MatMul(x, both)
        }}""",
        table=(20, 8),
        extra=(4, 20),
    )
    free = tieops.untie(model)
    assert not free.ties
    assert sorted(each.shape for each in free.parameters) == [(4, 20), (20, 8), (20, 8)]
    feeds = {"ids": IDS, "x": rows(4, 12)}
    for name, array in outputs(model, feeds).items():
        assert outputs(free, feeds)[name].tobytes() == array.tobytes()
    assert facts(tieops.tie(free)) == facts(model)


def test_the_layout_comes_back_where_the_transposed_one_leaves_under_the_name_of_all():
    """XLM-RoBERTa: the table is stored under the head's name, and the head reads it transposed."""
    import torch

    class HeadFirst(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a_head = torch.nn.Linear(8, 50, bias=False)
            self.table = torch.nn.Embedding(50, 8)
            self.table.weight = self.a_head.weight

        def forward(self, x):
            return self.a_head(self.table(x))

    model: Any = tieops.from_torch(HeadFirst().eval(), (torch.zeros(1, 3, dtype=torch.long),))
    assert model.parameters[0].name == "a_head.weight"
    again = tieops.tie(tieops.untie(model))
    assert [str(slot) for slot in again.slots] == [str(slot) for slot in model.slots]
    assert {*again.ties[0].names} == {*model.ties[0].names}
    assert again.ledger == model.ledger


@pytest.mark.parametrize("pairs", [1, 2, 3])
@pytest.mark.parametrize("readers", [2, 3])
def test_layers_that_read_two_shared_tensors_at_once_leave_all_of_their_ties(pairs, readers):
    """As the biases of two recurrent layers do, in each branch of an If."""
    nodes, weights = [], {}
    for pair in range(pairs):
        weights |= {f"a{pair}": (4, 8), f"b{pair}": (4, 8)}
        for reader in range(readers):
            name = f"{pair}{reader}"
            nodes.append(
                f"j{name} = Concat<axis = 0>(a{pair}, b{pair})  m{name} = MatMul(x, j{name})"
            )
    total = ", ".join(f"m{pair}{reader}" for pair in range(pairs) for reader in range(readers))
    text = f"g (float[2,8] x) => (float[2,8] y) {{ {'  '.join(nodes)}  y = Sum({total}) }}"
    model = made(text, **weights)
    assert len(model.ties) == 2 * pairs
    free = tieops.untie(model)
    assert not free.ties
    x = {"x": rows(2, 8)}
    assert outputs(free, x)["y"].tobytes() == outputs(model, x)["y"].tobytes()
