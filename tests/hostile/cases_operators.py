"""Operators whose operands lie, or that ask too much when they run: what reading says (H)."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from tests.hostile.case import case
from tests.hostile.models import model, save, tensor


def _read(name: str, text: str, *words: str, opsets: str = '"" : 20', ok: bool = False) -> None:
    case(*words, name=name, ok=ok)(lambda folder: save(folder, model(text, "", opsets)))


# Reading runs nothing: these are read, and refused or stopped where they are run.
_read("h01_infinite_loop", """(float[4] x) => (float[4] y) {
    n = Constant<value = int64 {9223372036854775807}>()  t = Constant<value = bool {1}>()
    y = Loop(n, t, x) <body = b (int64 i, bool c, float[4] v) => (bool d, float[4] w) {
        d = Identity(c)  w = Neg(v) }> }""", ok=True)  # fmt: skip
_read(
    "h02_constant_bomb",
    """(float[1] x) => (float[a, b, c] y) {
    s = Constant<value = int64[3] {100000, 100000, 100}>()  y = ConstantOfShape(s) }""",
    ok=True,
)
_read("h03_range_bomb", """(int64 s) => (int64[n] y) { l = Constant<value = int64 {1000000000000}>()
    d = Constant<value = int64 {1}>()  y = Range(s, l, d) }""", ok=True)  # fmt: skip
_read("h04_expand_bomb", """(float[1] x) => (float[a, b] y) {
    s = Constant<value = int64[2] {65536, 65536}>()  y = Expand(x, s) }""", ok=True)  # fmt: skip
_read("h07_random_op", "() => (float[2] y) { y = RandomNormal<shape = [2]>() }", ok=True)
_read("h08_gemm", """(double[2,1] a, double b, double[2] c) => (double[m, n] y) {
    y = Gemm<alpha: float = 1, beta: float = -693.752, broadcast: int = -436, transB: int = 823>
    (a, b, c) }""", "Gemm cannot read b", opsets='"" : 6')  # fmt: skip
_read(
    "h08_conv",
    """(float[7,6,1,5] a, float b, float[7] c) => (float[m] y) {
    y = Conv<auto_pad = "NOTSET", group = 1>(a, b, c) }""",
    "Conv cannot read b",
    opsets='"" : 11',
)
_read("h08_conv_strides", """(float[1,1,4,4] a, float[1,1,2,2] b) => (float[m] y) {
    y = Conv<strides = [0, 1]>(a, b) }""", "strides")  # fmt: skip
_read("h08_conv_pads", """(float[1,1,4,4] a, float[1,1,2,2] b) => (float[m] y) {
    y = Conv<pads = [0, 0]>(a, b) }""", "pads")  # fmt: skip
_read("h08_conv_group", """(float[1,1,4,4] a, float[1,1,2,2] b) => (float[m] y) {
    y = Conv<group = 0>(a, b) }""", "group: 0")  # fmt: skip
_read(
    "h09_reshape_huge",
    """(float[4] x) => (float[a, b] y) {
    s = Constant<value = int64[2] {4611686018427387904, 4}>()  y = Reshape(x, s) }""",
)
_read("h09_slice_extremes", """(float[4] x) => (float[a] y) <float[4] w = {1, 2, 3, 4}> {
    s = Constant<value = int64[1] {-9223372036854775808}>()
    e = Constant<value = int64[1] {9223372036854775807}>()
    h = Slice(w, s, e, s, s)  y = Add(x, h) }""")  # fmt: skip
_read(
    "h09_slice_step_zero",
    """(float[4] x) => (float[a] y) <float[4] w = {1, 2, 3, 4}> {
    z = Constant<value = int64[1] {0}>()  h = Slice(w, z, z, z, z)  y = Add(x, h) }""",
)
_read("h09_slice_lengths", """(float[4] x) => (float[a] y) <float[4] w = {1, 2, 3, 4}> {
    z = Constant<value = int64[1] {0}>()  o = Constant<value = int64[2] {1, 1}>()
    h = Slice(w, z, o, o, z)  y = Add(x, h) }""")  # fmt: skip
_read(
    "h09_reshape_weight",
    """(float[4] x) => (float[a] y) <float[4] w = {1, 2, 3, 4}> {
    s = Constant<value = int64[3] {-1, -1, 0}>()  h = Reshape(w, s)  y = Add(x, h) }""",
)
_read("h09_reshape_by_floats", """(float[4] x) => (float[a] y) <float[4] w = {1, 2, 3, 4}> {
    h = Reshape(w, x)  y = Add(x, h) }""")  # fmt: skip
_read(
    "h09_squeeze_weight",
    """(float[4] x) => (float[a] y) <float[4] w = {1, 2, 3, 4}> {
    s = Constant<value = int64[2] {0, 17}>()  h = Squeeze(w, s)  y = Add(x, h) }""",
)
_read("h09_unsqueeze_weight", """(float[4] x) => (float[a] y) <float[4] w = {1, 2, 3, 4}> {
    s = Constant<value = int64[2] {9223372036854775807, -5}>()  h = Unsqueeze(w, s)
    y = Add(x, h) }""")  # fmt: skip
_read("h09_transpose_weight", """(float[4] x) => (float[a] y) <float[2, 2] w = {1, 2, 3, 4}> {
    h = Transpose<perm = [0, 0]>(w)  y = MatMul(x, h) }""")  # fmt: skip
_read("h09_transpose_short", """(float[4] x) => (float[a] y) <float[2, 2] w = {1, 2, 3, 4}> {
    h = Transpose<perm = [0]>(w)  y = MatMul(x, h) }""")  # fmt: skip
_read("h09_gather_scalar", """(int64 x) => (float y) <float w = {1}> { y = Gather(w, x) }""")
_read("h09_gather_axis", """(int64 x) => (float[a] y) <float[2, 2] w = {1, 2, 3, 4}> {
    y = Gather<axis = 7>(w, x) }""")  # fmt: skip
_read("h09_concat_axis", """(float[2, 2] x) => (float[a, b] y) <float[2, 2] w = {1, 2, 3, 4}> {
    h = Concat<axis = -9>(w, w)  y = MatMul(x, h) }""")  # fmt: skip
_read("h09_split_weight", """(float[2] x) => (float[a] y) <float[2, 2] w = {1, 2, 3, 4}> {
    s = Constant<value = int64[2] {-1, 99}>()  h, k = Split<axis = 5>(w, s)
    y = MatMul(x, h) }""")  # fmt: skip
_read("h09_matmul_scalars", "(float x) => (float y) <float w = {1}> { y = MatMul(x, w) }")
_read("h09_lstm_of_vectors", """(float[2] x) => (float[a] y) <float[2] w = {1, 2}> {
    y = LSTM<hidden_size = -5>(x, w, w) }""")  # fmt: skip
_read("h09_gru_huge", """(float[1, 1, 2] x) => (float[a, b, c, d] y) <float[1, 3, 2] w =
    {1, 2, 3, 4, 5, 6}, float[1, 3, 1] r = {1, 2, 3}> {
    y = GRU<hidden_size = 4611686018427387904>(x, w, r) }""")  # fmt: skip
_read(
    "h09_dequantize",
    """(float[2] x) => (float[a] y) <int8[2, 2] w = {1, 2, 3, 4}, float[7] s =
    {1, 2, 3, 4, 5, 6, 7}> { h = DequantizeLinear<axis = 40>(w, s)  y = MatMul(x, h) }""",
)
_read("h09_cast_to_nothing", """(float[2] x) => (float[a] y) <float[2, 2] w = {1, 2, 3, 4}> {
    h = Cast<to = 99>(w)  y = MatMul(x, h) }""")  # fmt: skip
_read("h09_embedding_of_rank_one", "(int64[n] x) => (float[n] y) <float[3] w = {1, 2, 3}> {"
      "y = Gather(w, x) }", ok=True)  # fmt: skip


def _blocks(folder: Path, stored: int, **numbers: int) -> Path:
    text = "(float[1, 64] x) => (float[1, 4] y) { y = com.microsoft.MatMulNBits(x, b, s) }"
    proto = model(text, "", '"" : 20, "com.microsoft" : 1')
    given = {"K": 64, "N": 4, "bits": 4, "block_size": 32, **numbers}
    proto.graph.node[0].attribute.extend(
        helper.make_attribute(name, value) for name, value in given.items()
    )
    packed = tensor("b", (4, 2, stored), raw_data=bytes(8 * stored))
    packed.data_type = TensorProto.UINT8
    proto.graph.initializer.extend([packed, tensor("s", (8,), float_data=[1.0] * 8)])
    return save(folder, proto)


case(name="h05_matmulnbits", ok=True)(lambda folder: _blocks(folder, 16))
case("MatMulNBits cannot read b", name="h05_matmulnbits_lie")(
    lambda folder: _blocks(folder, 16, N=4096, K=65536)
)
case("MatMulNBits cannot read b", name="h05_short")(lambda folder: _blocks(folder, 15))
case("MatMulNBits cannot read b", name="h05_block_zero")(
    lambda folder: _blocks(folder, 16, block_size=0)
)


@case("no opset is imported for the domain com.evil")
def h06_custom_op_not_imported(_: Path) -> onnx.ModelProto:
    return model("(float[4] x) => (float[4] y) { y = com.evil.Op(x) }")
