"""Made inputs: symbols bound by name, tables indexed from end to end."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import pytest

from tieops.errors import PreconditionError, UnsupportedModelError
from tieops.verification import make_inputs, plan
from tieops.verification.index_bounds import table_sizes

HEAD = '<ir_version: 10, opset_import: ["": 20, "local": 1, "com.microsoft": 1]> '


def graph(text: str) -> onnx_ir.Model:
    return onnx_ir.from_onnx_text(HEAD + text)


def tabled(body: str, inputs: str = "int64[n] x", more: str = "") -> onnx_ir.Model:
    """A graph with a table w of 7 rows and 3 columns."""
    zeros = ", ".join(["0"] * 21)
    return graph(f"f ({inputs}) => (float[?] y) <float[7, 3] w = {{{zeros}}}> {{ {body} }} {more}")


@pytest.mark.parametrize(
    "body",
    [
        "y = Gather(w, x)",
        "t = Transpose<perm = [1, 0]>(w) y = Gather<axis = 1>(t, x)",
        "t = Transpose(w) y = Gather<axis = -1>(t, x)",
        "t = Identity(w) u = Cast<to = 10>(t) y = Gather(u, x)",
        "a = Constant<value_ints = [0]>() t = Unsqueeze(w, a) u = Squeeze(t, a) y = Gather(u, x)",
        "c = Cast<to = 6>(x) y = Gather(w, c)",
        "s = Constant<value_ints = [1, -1]>() r = Reshape(x, s) y = Gather(w, r)",
        "a = Constant<value_ints = [0]>() r = Unsqueeze(x, a) q = Transpose(r) y = Gather(w, q)",
        "a = Constant<value_ints = [0]>() b = Constant<value_ints = [1]>() "
        "r = Slice(x, a, b) y = Gather(w, r)",
        "r = Concat<axis = 0>(x, x) y = Gather(w, r)",
        "s = Constant<value_ints = [2, 1]>() r = Expand(x, s) y = Gather(w, r)",
        "z = Constant<value_int = 0>() r = Clip(x, z) y = Gather(w, r)",
        "z = Constant<value_int = 0>() c = Less(x, z) r = Where(c, z, x) y = Gather(w, r)",
        "a = Constant<value_ints = [1]>() r = Unsqueeze(x, a) y = GatherND(w, r)",
        "a = Constant<value_ints = [1]>() r = Unsqueeze(x, a) y = GatherElements(w, r)",
        "d = Constant<value_int = 7>() v = Constant<value_floats = [0.0, 1.0]>() "
        "y = OneHot(x, d, v)",
        "big = Gather(w, x) c = Constant<value = int64[9] {0,0,0,0,0,0,0,0,0}>() "
        "small = Gather(c, x) y = Identity(big)",
    ],
)
def test_a_table_bounds_what_indexes_it(body):
    model = tabled(body)
    assert min(table_sizes(model)["x"]) == 7


@pytest.mark.parametrize(
    "body",
    [
        "k = Constant<value_int = 2>() r = Mul(x, k) y = Gather(w, r)",  # changed on the way
        "c = Cast<to = 1>(x) y = Identity(c)",
        "y = Gather(x, x)",  # of unknown size
    ],
)
def test_what_indexes_nothing_of_known_size_is_not_bound(body):
    sizes = table_sizes(tabled(body))["x"]
    assert not [size for size in sizes if isinstance(size, int)]


def test_bounds_are_seen_from_inside_branches_and_loops():
    branch = """y = If(c) <then_branch = t () => (float[?] a) { a = Gather(w, x) },
        else_branch = e () => (float[?] b) { i = Identity(x) b = Gather(w, i) }>"""
    assert table_sizes(tabled(branch, "bool c, int64[n] x"))["x"] == (7,)
    out_of_branch = """r = If(c) <then_branch = t () => (int64[n] a) { a = Identity(x) },
        else_branch = e () => (int64[n] b) { b = Neg(x) }> y = Gather(w, r)"""
    assert table_sizes(tabled(out_of_branch, "bool c, int64[n] x"))["x"] == (7,)
    loop = """m, y = Loop(n, c, x) <body = b (int64 i, bool go, int64[k] v)
        => (bool go2, int64[k] v2, float[?] g) { go2 = Identity(go) v2 = Identity(v)
        g = Gather(w, v) }>"""
    assert table_sizes(tabled(loop, "int64 n, bool c, int64[k] x"))["x"] == (7,)
    after_loop = """m = Loop(n, c, x) <body = b (int64 i, bool go, int64[k] v)
        => (bool go2, int64[k] v2) { go2 = Identity(go) v2 = Identity(v) }> y = Gather(w, m)"""
    sizes = table_sizes(tabled(after_loop, "int64 n, bool c, int64[k] x"))
    assert sizes == {"n": (), "c": (), "x": (7,)}
    scan = """y = Scan <num_scan_inputs = 1, body = b (int64 v) => (float[?] g)
        { g = Gather(w, v) }> (x)"""
    assert table_sizes(tabled(scan))["x"] == (7,)


FUNCTIONS = """
<domain: "local", opset_import: ["": 20]> embed <axis> (table, ids) => (out)
    { moved = local.move(ids) out = Gather<axis: int = @axis>(table, moved) }
<domain: "local", opset_import: ["": 20]> move (a) => (b) { b = Identity(a) }"""


def test_function_calls_are_kept_apart():
    model = graph(
        "f (int64[n] x, int64[n] p) => (float[?] y, float[?] z)"
        "<float[2, 3] w = {0, 1, 2, 3, 4, 5}, float[4, 1] v = {0, 0, 0, 0}>"
        "{ y = local.embed<axis = 1>(w, x) z = local.embed<axis = 0>(v, p) }" + FUNCTIONS
    )
    assert table_sizes(model) == {"x": (3,), "p": (4,)}


@pytest.mark.parametrize(
    ("call", "declared", "size"),
    [
        ("", "<axis: int = 1>", 3),  # the function's own default
        ("<axis = 0>", "<axis: int = 1>", 9),
        ("<axis = 1>", "<axis>", 3),
        ("", "<axis>", 9),  # the operator's default
    ],
)
def test_an_axis_is_what_the_call_or_the_function_binds(call, declared, size):
    zeros = ", ".join("0" * 27)
    model = graph(
        f"""g (int64[n] ids) => (float[?] y) <float[9, 3] t = {{{zeros}}}>
        {{ y = local.outer {call} (t, ids) }}
        <domain: "local", opset_import: ["": 20, "local": 1]>
        outer {declared} (t, ids) => (y) {{ y = local.look <axis: int = @axis> (t, ids) }}
        <domain: "local", opset_import: ["": 20]>
        look <axis> (t, ids) => (y) {{ y = Gather <axis: int = @axis> (t, ids) }}"""
    )
    assert table_sizes(model) == {"ids": (size,)}


def test_contrib_embedding_layers_bound_their_ids():
    model = graph(
        "f (int64[b, s] ids, int64[b, s] types) => (float[?] y, int32[?] m)"
        "<float[5, 1] w = {0, 0, 0, 0, 0}, float[3, 1] p = {0, 0, 0}, float[2, 1] t = {0, 0}, "
        "float[1] g = {1}, float[1] b = {0}>"
        "{ y, m = com.microsoft.EmbedLayerNormalization(ids, types, w, p, t, g, b) }"
    )
    assert table_sizes(model) == {"ids": (5,), "types": (2,)}


def test_both_ends_and_every_row_occur():
    sets = list(plan(tabled("y = Gather(w, x)", "int64[b, s] x")))
    ids = np.concatenate([each.arrays["x"].ravel() for each in sets])
    assert set(ids.tolist()) == set(range(7))
    assert [each.tables for each in sets] == [{"x": 7}] * 3
    assert [each.sizes for each in sets] == [{"b": 1, "s": 1}, {"b": 2, "s": 3}, {"b": 5, "s": 6}]
    first_two = [each.arrays["x"] for each in sets[:2]]
    assert first_two[0].tolist() == [[6]]
    assert 0 in first_two[1]


def test_large_tables_are_swept_by_more_ids_not_longer_sequences():
    model = graph("f (int64[batch, seq] x) => (float[?] y) { y = Gather(w, x) }")
    table = onnx_ir.Value(name="w", const_value=onnx_ir.tensor(np.zeros((1000, 1), np.float32)))
    model.graph.register_initializer(table)
    model.graph.node(0).replace_input_with(0, table)
    sets = list(plan(model))
    ids = np.concatenate([each.arrays["x"].ravel() for each in sets])
    assert set(ids.tolist()) == set(range(1000))
    assert {each.sizes["seq"] for each in sets} == {1, 3, 6}
    assert max(each.arrays["x"].size for each in sets) <= 256
    fixed = list(plan(model, sizes={"batch": 2, "seq": 4}))
    assert {each.arrays["x"].shape for each in fixed} == {(2, 4)}
    ids = np.concatenate([each.arrays["x"].ravel() for each in fixed])
    assert {0, 999} <= set(ids.tolist())
    assert len(set(ids.tolist())) == ids.size


def test_one_symbol_has_one_size_and_others_differ():
    model = graph("f (float[n, m] x, float[m, n, 4] y, float[?] z) => (float[?] o) { o = Neg(x) }")
    for each in plan(model):
        n, m = each.arrays["x"].shape
        assert each.arrays["y"].shape == (m, n, 4)
        assert each.sizes == {"n": n, "m": m, "z[0]": len(each.arrays["z"])}
    assert (n, m) == (5, 6)
    assert make_inputs(model, sizes={"n": 9, "z[0]": 3})["x"].shape == (9, 2)


def test_sums_of_symbols_are_evaluated():
    model = graph("f (float[n] x, float[k] y, float[k] z) => (float[?] o) { o = Neg(x) }")
    model.graph.inputs[1].shape = onnx_ir.Shape(["n + m"])
    model.graph.inputs[2].shape = onnx_ir.Shape(["not an expression"])
    found = make_inputs(model, sizes={"n": 3, "m": 4})
    assert [each.shape for each in found.values()] == [(3,), (7,), (2,)]
    assert make_inputs(model, sizes={"n + m": 11})["y"].shape == (11,)


def test_a_table_that_an_input_sizes_bounds_by_that_size():
    model = graph("f (float[rows, 2] t, int64[k] x) => (float[?] y) { y = Gather(t, x) }")
    for each in plan(model):
        assert each.arrays["x"].max() < each.sizes["rows"]
        assert each.tables == {"x": each.sizes["rows"]}


def test_wrong_sizes_are_named():
    model = graph("f (float[n] x) => (float[n] o) { o = Neg(x) }")
    with pytest.raises(PreconditionError, match="no input has an axis batch") as caught:
        make_inputs(model, sizes={"batch": 2})
    assert "axes: n" in str(caught.value)
    with pytest.raises(PreconditionError, match="a size is negative"):
        make_inputs(model, sizes={"n": -1})
    assert make_inputs(model, sizes={"n": 0})["x"].shape == (0,)


def test_every_dtype_is_made():
    model = graph(
        "f (float16[n] a, bfloat16[n] b, float8e4m3fn[n] c, bool[n] d, string[n] e, int4[n] g,"
        " complex64[n] h, double i, uint8[n] j) => (float16[n] o) { o = Neg(a) }"
    )
    found = make_inputs(model, sizes={"n": 50})
    dtypes = [each.dtype for each in found.values()]
    assert dtypes[:4] == [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.bool_]
    assert dtypes[4:] == [object, ml_dtypes.int4, np.complex64, np.float64, np.uint8]
    assert all(isinstance(each, str) for each in found["e"])
    assert found["i"].shape == ()
    assert set(found["j"].tolist()) == {0, 1}
    assert 0.5 < found["a"].astype(float).std() < 1.5


def test_a_small_integer_type_bounds_its_ids():
    model = graph("f (uint8[n] x) => (float[?] y) { i = Cast<to = 7>(x) y = Gather(w, i) }")
    table = onnx_ir.Value(name="w", const_value=onnx_ir.tensor(np.zeros((1000, 1), np.float32)))
    model.graph.register_initializer(table)
    model.graph.node(1).replace_input_with(0, table)
    ids = np.concatenate([each.arrays["x"] for each in plan(model, sizes={"n": 300})])
    assert (ids.min(), ids.max()) == (0, 255)


def test_masks_are_mostly_ones_and_never_empty():
    model = graph("f (int64[b, s] attention_mask, bool[b, s] key_mask) => (int64[b, s] y) "
                  "{ y = Identity(attention_mask) }")  # fmt: skip
    for each in plan(model, sizes={"b": 4, "s": 8}):
        for mask in each.arrays.values():
            assert mask.any(axis=1).all()
            assert not mask.all()
            assert mask.mean() > 0.7


def test_the_seed_decides():
    model = graph("f (float[n] x, float[n] z) => (float[n] y) { y = Add(x, z) }")
    one, again, other = (make_inputs(model, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one["x"], again["x"])
    assert not np.array_equal(one["x"], other["x"])
    assert not np.array_equal(one["x"], one["z"])


def test_initializers_among_the_inputs_are_not_fed():
    model = graph("f (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> "
                  "{ y = Add(x, w) }")  # fmt: skip
    assert list(make_inputs(model)) == ["x"]


def test_sequences_and_unknown_ranks_are_refused_by_name():
    model = graph(
        "f (seq(float[n]) parts) => (float[?] y) { y = ConcatFromSequence<axis=0>(parts) }"
    )
    with pytest.raises(UnsupportedModelError, match="cannot make the input parts") as caught:
        make_inputs(model)
    assert "inputs={name: array" in str(caught.value)
    free = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)
    proto = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["x"], ["y"])], "g", [free], [free]
    )
    with pytest.raises(UnsupportedModelError, match="cannot make the input x"):
        make_inputs(onnx_ir.from_proto(onnx.helper.make_model(proto)))
