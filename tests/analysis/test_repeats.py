"""Repeated blocks: which layers are told once, in the table and in the picture alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import tieops
from fixtures.torch_models import build
from tieops.analysis.repeats import Repeat, find_repeats
from tieops.model import TiedModel
from tieops.rendering.picture import picture_of


def chain(names: Sequence[str], between: str = "") -> TiedModel:
    """Return products that follow each other, each with its weight, called as told.

    Args:
        names: What the layers are called.
        between: An operator behind each.
    """
    rng = np.random.default_rng(0)
    lines, at = [], "x"
    for i in range(len(names)):
        lines.append(f"m{i} = MatMul({at}, w{i})")
        at = f"m{i}"
        if between:
            lines.append(f"a{i} = {between}(m{i})")
            at = f"a{i}"
    text = f"g (float[n, 4] x) => (float[n, 4] {at}) {{ {' '.join(lines)} }}"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {text}')
    for i in range(len(names)):
        weight = rng.standard_normal((4, 4), np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weight, f"w{i}"))
    ir = tieops.from_onnx(proto).ir
    products = [node for node in ir.graph if node.op_type == "MatMul"]
    for node, name in zip(products, names, strict=True):
        assert node.inputs[1] is not None
        node.inputs[1].name = f"{name}.weight"
    return TiedModel(ir)


def found(model: TiedModel) -> list[tuple[str, int]]:
    return [(each.title, len(each.blocks)) for each in find_repeats(model.layers)]


def test_blocks_are_modules_where_one_of_them_is_different():
    """As in T5, whose first block alone has a table of relative positions."""
    blocks = [[f"block.{i}.q", f"block.{i}.k", f"block.{i}.o"] for i in range(5)]
    blocks[0].insert(1, "block.0.bias")
    model = chain(["first", *(name for block in blocks for name in block), "last"])
    assert found(model) == [("block.1 … 4", 4)]


def test_operators_belong_to_the_block_that_they_follow():
    model = chain(["a", *(f"h.{i}.{part}" for i in range(3) for part in "qko"), "b"], "Relu")
    (repeat,) = find_repeats(model.layers)
    assert [len(block) for block in repeat.blocks] == [6, 6, 6]
    assert model.layers[repeat.starts[0]].name == "h.0.q"
    assert model.layers[repeat.stop].name == "b"


def test_three_layers_alike_are_a_repetition_and_two_are_none():
    assert found(chain(["in", "h.0", "h.1", "h.2", "out"])) == [("h.0 … 2", 3)]
    assert found(chain(["in", "h.0", "h.1", "out"])) == []


def test_a_round_that_is_not_whole_is_left_out():
    model = chain([f"h.{i}.{part}" for i in range(4) for part in "ab"][:-1])
    (repeat,) = find_repeats(model.layers)
    assert (repeat.starts, repeat.stop) == ((0, 2, 4), 6)


def test_repetitions_follow_each_other():
    names = [f"{side}.{i}.{part}" for side in ("left", "right") for i in range(3) for part in "ab"]
    assert found(chain(names)) == [("left.0 … 2", 3), ("right.0 … 2", 3)]


def test_a_layer_that_shares_its_weight_is_unlike_one_that_does_not():
    model = chain([f"h.{i}" for i in range(6)])
    nodes = list(model.ir.graph)
    nodes[1].replace_input_with(1, nodes[0].inputs[1])
    assert found(TiedModel(model.ir)) == [("h.2 … 5", 4)]


def test_nothing_repeats_in_what_has_no_layers():
    assert find_repeats([]) == ()


def test_a_long_sequence_without_repetition_is_searched():
    """Thue and Morse: no word over three letters that is made so holds a square."""
    word = [0]
    for _ in range(7):
        word = [each for letter in word for each in ((0, 1, 2), (0, 2), (1,))[letter]]
    model = chain([f"{'abc'[letter]}.{i}" for i, letter in enumerate(word)])
    assert len(word) > 100
    assert find_repeats(model.layers) == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "bert", "bart", "albert", "t5_deep", "llama"])
def test_the_table_and_the_picture_fold_the_same_blocks(name):
    case = build(name, 96, 32)
    model = tieops.from_torch(case.module, kwargs=case.inputs, dynamic_shapes=case.dynamic_shapes)
    repeats = model.analysis.repeats
    picture = picture_of(model)
    drawn = [group for group in picture.groups if group.form == "repeat" and group.group < 0]
    assert [(group.title, group.times) for group in drawn] == [
        (each.title, len(each.blocks)) for each in repeats
    ]
    assert [inside(picture, group) for group in drawn] == [names(model, each) for each in repeats]


def names(model: TiedModel, repeat: Repeat) -> set[str]:
    return {model.layers[i].name for block in repeat.blocks for i in block}


def inside(picture, group) -> set[str]:
    below = {picture.groups.index(group)}
    for number, each in enumerate(picture.groups):
        if each.group in below:
            below.add(number)
    return {box.name for box in picture.boxes if box.group in below}
