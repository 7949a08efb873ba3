"""The picture as data: boxes, edges, what is shared, what is folded."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import tieops
from fixtures.torch_models import build
from tieops.rendering.flow import Leaf, flow_of, leaves_of
from tieops.rendering.folding import fold
from tieops.rendering.picture import Picture, picture_of


def load(text: str, **tensors: np.ndarray) -> tieops.TiedModel:
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 20]> ' + text)
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in tensors.items())
    return tieops.from_onnx(proto)


def square(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((4, 4)).astype(np.float32)


def architecture(name: str) -> tieops.TiedModel:
    case = build(name, 96, 32)
    return tieops.from_torch(case.module, kwargs=case.inputs, dynamic_shapes=case.dynamic_shapes)


def named(picture: Picture) -> set[tuple[str, str]]:
    return {(picture.boxes[e.start].name, picture.boxes[e.end].name) for e in picture.edges}


@pytest.fixture(scope="module")
def tied() -> tieops.TiedModel:
    return load(
        """g (int64[n] x) => (float[n, 4] y, float[4, 4] handed) <float[n, 4] r>
        { h = Gather(w, x)  r = Relu(h)  t = Transpose <perm = [1, 0]> (w)
          m = MatMul(r, t)  y = Add(m, b)  handed = Transpose <perm = [1, 0]> (w) }""",
        w=square(0),
        b=square(1)[0],
    )


def test_layers_inputs_and_outputs_are_boxes_with_edges_between_them(tied):
    picture = picture_of(tied, "title")
    assert [box.form for box in picture.boxes] == [
        "input",
        "layer",
        "layer",
        "layer",
        *["output"] * 2,
    ]
    assert named(picture) == {
        ("x", "Gather_h"), ("Gather_h", "Relu_r"), ("Relu_r", "MatMul_m"), ("MatMul_m", "y"),
    }  # fmt: skip
    linear = next(box for box in picture.boxes if box.name == "MatMul_m")
    assert [(row.role, row.what, row.view) for row in linear.rows] == [
        ("weight", "f32[4,4]", "transpose"),
        ("bias", "f32[4]", ""),
    ]
    assert linear.takes == ("f32[n,4]",)
    assert linear.gives == ("f32[n,4]",)


def test_a_shared_parameter_names_its_readers_views_and_the_outputs_that_are_it(tied):
    picture = picture_of(tied)
    weight, bias = sorted(picture.parameters, key=lambda each: -each.nbytes)
    uses = {(picture.boxes[use.box].name, use.role, use.view) for use in weight.uses}
    assert uses == {
        ("Gather_h", "weight", ""),
        ("MatMul_m", "weight", "transpose"),
        ("handed", "output", "transpose"),
    }
    assert (weight.mark, weight.tied, weight.saved) == (0, True, 64)
    assert (bias.mark, bias.tied, bias.saved) == (-1, False, 0)


def test_a_small_model_is_not_folded(tied):
    assert picture_of(tied).groups == ()


def test_branches_are_groups_and_what_they_capture_is_an_edge():
    model = load(
        """g (float[4] x, bool c) => (float[4] y)
        { h = Relu(x)
          y = If (c) <
            then_branch = a () => (float[4] p) { p = MatMul(h, w) },
            else_branch = b () => (float[4] q) { k = Neg(h) q = MatMul(k, w) }> }""",
        w=square(0),
    )
    picture = picture_of(model)
    forms = [(group.form, group.title.partition(" ")[0]) for group in picture.groups]
    assert forms == [("bodies", "If_y"), ("body", "then_branch"), ("body", "else_branch")]
    assert {("Relu_h", "MatMul_p"), ("Relu_h", "Neg_k"), ("Neg_k", "MatMul_q")} <= named(picture)
    assert {("MatMul_p", "If_y"), ("MatMul_q", "If_y"), ("c", "If_y"), ("If_y", "y")} <= named(
        picture
    )
    (shared,) = picture.parameters
    assert len(shared.uses) == 2


def test_each_call_of_a_function_is_a_group():
    model = tieops.from_onnx(
        onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20, "f": 1]>
        g (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
        { h = f.twice(x, w)  y = f.twice(h, w) }
        <domain: "f", opset_import: ["": 20]>
        twice (a, b) => (d) { c = MatMul(a, b) d = Relu(c) }""")
    )
    picture = picture_of(model)
    assert [group.form for group in picture.groups] == ["call", "call"]
    assert len([box for box in picture.boxes if box.rows]) == 2
    names = [box.name for box in picture.boxes]
    path = [names[edge.start] for edge in picture.edges] + [names[picture.edges[-1].end]]
    assert (path[0], path[-1]) == ("x", "y")
    assert len(picture.edges) == 5  # x, MatMul, Relu, MatMul, Relu, y


def titles(model: tieops.TiedModel, form: str) -> list[str]:
    return [group.title for group in picture_of(model).groups if group.form == form]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "repeats", "times"),
    [
        ("gpt2_deep", ["transformer.h.0 … 11"], [12]),
        ("t5_deep", ["encoder.block.1 … 5", "decoder.block.1 … 5"], [5, 5]),
        ("albert", ["albert.encoder.albert_layer_groups.0.albert_layers.0"], [12]),
        ("bert", ["bert.encoder.layer.0 … 1"], [2]),
    ],
)
def test_repeated_blocks_of_real_models_fold_into_one(name, repeats, times):
    picture = picture_of(architecture(name))
    found = [group for group in picture.groups if group.form == "repeat"]
    assert [group.title for group in found] == repeats
    assert [group.times for group in found] == times
    top = [group for group in picture.groups if group.group < 0]
    assert len(top) + sum(box.group < 0 for box in picture.boxes) <= 24


@pytest.mark.slow
def test_the_calls_of_one_layer_say_that_they_read_the_same():
    picture = picture_of(architecture("albert"))
    (repeat,) = [group for group in picture.groups if group.form == "repeat"]
    assert any("every one reads the same 16 parameters" in note for note in repeat.notes)


def test_blocks_without_names_are_found_by_what_they_read():
    lines, tensors, at = [], {}, "x"
    for i in range(6):
        for j, op in enumerate(("Relu", "Tanh", "Sigmoid")):
            lines.append(f"m{i}{j} = MatMul({at}, w{i}{j})  a{i}{j} = {op}(m{i}{j})")
            tensors[f"w{i}{j}"] = square(10 * i + j)[:, :4] if j else square(10 * i + j)
            at = f"a{i}{j}"
    tensors |= {f"w{i}1": np.repeat(square(i), 2, 1) for i in range(6)}
    tensors |= {f"w{i}2": np.repeat(square(i + 50), 2, 0) for i in range(6)}
    model = load(f"g (float[2, 4] x) => (float[2, 4] {at}) {{ {' '.join(lines)} }}", **tensors)
    (repeat,) = [group for group in picture_of(model).groups if group.form == "repeat"]
    assert repeat.times == 6
    assert repeat.title == "repeated block"


@pytest.mark.slow
def test_folding_keeps_every_layer_and_the_order():
    model = architecture("bert")
    flow = flow_of(model)
    folded = leaves_of(fold(flow.items))
    assert folded == leaves_of(flow.items)
    drawn = [leaf.name for leaf in folded if leaf.form == "layer"]
    assert sorted(drawn) == sorted(layer.name for layer in model.layers)

    # A group is a stretch of an order in which nobody reads what comes later, so that groups do
    # not read each other in a circle. A module that is written out as arithmetic is one layer, and
    # what it calls in between may read it and be read by it.
    places = {leaf: i for i, leaf in enumerate(folded)}
    backward = {end.kind for start, end in flow.edges if places[start] > places[end]}
    assert backward <= {"BertEmbeddings"}


@pytest.mark.slow
def test_no_group_unfolds_into_a_crowd():
    class Long(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(
                torch.nn.Linear(4 + i % 7, 4 + (i + 1) % 7) for i in range(200)
            )

        def forward(self, x):
            for i, layer in enumerate(self.layers):
                x = torch.relu(layer(x)) if i % 3 else torch.tanh(layer(x))
            return x

    picture = picture_of(tieops.from_torch(Long().eval(), (torch.zeros(1, 4),)))
    sizes: dict[int, int] = {}
    for parent in [box.group for box in picture.boxes] + [group.group for group in picture.groups]:
        sizes[parent] = sizes.get(parent, 0) + 1
    assert max(sizes.values()) <= 41
    assert sizes[-1] <= 40


@pytest.mark.slow
def test_groups_come_before_what_is_in_them_and_everything_is_plain_data(tied):
    picture = picture_of(architecture("bert"))
    assert all(group.group < i for i, group in enumerate(picture.groups))
    assert json.loads(json.dumps(picture.as_data()))["boxes"][0]["form"] == "input"


@pytest.mark.slow
def test_a_leaf_knows_its_module():
    flow = flow_of(architecture("bert"))
    leaf = next(
        each for each in leaves_of(flow.items) if each.name.endswith("layer.1.output.dense")
    )
    assert isinstance(leaf, Leaf)
    assert leaf.module == ("bert", "encoder", "layer", "1", "output", "dense")
