"""Detection at its edges: hostile metadata, slices that nobody writes, costs that explode."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir
import pytest

from tests.support.counting import assert_linear
from tieops.model import TiedModel

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'


def parsed(text: str) -> TiedModel:
    return TiedModel(onnx_ir.from_onnx_text(HEAD + text))


def test_concats_of_a_tensor_with_itself_do_not_multiply() -> None:
    def model(count: int) -> TiedModel:
        nodes = "\n".join(f"w{i + 1} = Concat <axis = 0> (w{i}, w{i})" for i in range(count))
        return parsed(
            f"g (float s) => (float[{2 << count}] y) <float[2] w0 = {{1, 2}}> "
            f"{{ {nodes}\n y = Mul(s, w{count}) }}"
        )

    assert len(model(7).slots) == 1
    assert_linear(lambda count: partial(getattr, model(count), "slots"), 5)


def test_a_backward_slice_from_before_the_start_reads_the_first_element() -> None:
    # ONNX clamps the start of a backward slice to 0; Python's slice.indices gives -1 and nothing.
    model = parsed(
        "g (float s) => (float[1] y) <float[3] w = {1, 2, 3}, int64[1] a = {-9}, "
        "int64[1] b = {-10}, int64[1] c = {0}, int64[1] d = {-1}>"
        "{ v = Slice(w, a, b, c, d)\n y = Mul(s, v) }"
    )
    (slot,) = model.slots
    assert slot.view.shape == (1,)
    assert slot.view.apply(np.array([1.0, 2.0, 3.0])).tolist() == [1.0]


def test_an_empty_backward_slice_applies_as_empty() -> None:
    from tieops.ir.view import Slice, View

    view = View((3,)).then(Slice(((-1, -1, -1),)))
    assert view.apply(np.arange(3)).shape == view.shape


def test_every_other_element_is_no_tie_with_those_between() -> None:
    model = parsed(
        "g (float s) => (float[4] y) <float[8] w = {1,2,3,4,5,6,7,8}, int64[1] a = {0}, "
        "int64[1] b = {1}, int64[1] c = {8}, int64[1] ax = {0}, int64[1] two = {2}>"
        "{ u = Slice(w, a, c, ax, two)\n v = Slice(w, b, c, ax, two)\n"
        "h = Mul(s, u)\n i = Mul(s, v)\n y = Add(h, i) }"
    )
    assert len(model.ties) == 0


def test_packed_weights_reshaped_before_they_are_split_are_no_tie() -> None:
    # BERT-like packed qkv: [in, 3 * out] -> [in, 3, out], then one part each.
    model = parsed(
        "g (float[2,2] x) => (float[2,2] y) <float[2,6] w = {1,2,3,4,5,6,7,8,9,10,11,12}, "
        "int64[3] to = {2, 3, 2}, int64[1] one = {1}>"
        "{ r = Reshape(w, to)\n q, k, v = Split <axis = 1, num_outputs = 3> (r)\n"
        "q2 = Squeeze(q, one)\n k2 = Squeeze(k, one)\n h = MatMul(x, q2)\n y = MatMul(h, k2) }"
    )
    assert len(model.ties) == 0


def test_a_slice_of_a_concat_reads_the_parts_in_it_alone() -> None:
    model = parsed(
        "g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1,2,3,4}, float[2,2] v = {5,6,7,8}, "
        "int64[1] a = {0}, int64[1] b = {2}>"
        "{ c = Concat <axis = 0> (w, v)\n u = Slice(c, a, b)\n h = MatMul(x, u)\n"
        "y = MatMul(h, v) }"
    )
    assert len(model.ties) == 0


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("tieops.packed", '{"parts": 5}'),
        ("tieops.packed", '{"parts": null}'),
        ("tieops.names", "[" * 200_000),
        ("tieops.names", "1" * 5000),
        ("tieops.packed", "[" * 200_000),
        ("tieops.lr_factor", "nan"),
        ("tieops.lr_factor", "-1"),
        ("tieops.lr_factor", "inf"),
    ],
)
def test_metadata_that_is_not_ours_is_ignored(key: str, text: str) -> None:
    model = parsed(
        "g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}>"
        "{ h = MatMul(x, w)\n y = MatMul(h, w) }"
    ).ir
    model.graph.initializers["w"].metadata_props[key] = text
    (tie,) = TiedModel(model).ties
    assert tie.names == ("w",)
    assert tie.parameter.lr_factor == 1.0
