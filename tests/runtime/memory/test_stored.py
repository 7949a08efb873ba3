"""Who reads the weights of a data file, told from the message alone: as the IR tells it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tieops.errors import UntrustedFileError
from tieops.runtime.memory.stored_weights import StoredWeight, stored_weights
from tieops.untrusted.external_data import DataFolder
from tieops.untrusted.limits import Limits

HEAD = '<ir_version: 10, opset_import: ["": 20, "f": 1]>'
W = np.arange(20, dtype=np.float32).reshape(5, 4)


def stored(text: str, folder: Path, dtype: str = "float32") -> dict[str, StoredWeight]:
    """Return the weights of a graph whose ``w`` lies in a data file."""
    proto = onnx.parser.parse_model(f"{HEAD} {text}")
    array = W.astype(dtype)
    (folder / "data").write_bytes(array.tobytes())
    tensor = onnx.numpy_helper.from_array(array, "w")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="data")
    proto.graph.initializer.append(tensor)
    return stored_weights(proto, DataFolder(folder, None, Limits()))


@pytest.mark.parametrize(
    ("body", "readers", "transposed"),
    [
        ("y = Gather(w, i)", 1, False),
        ("e = Gather(w, i)  t = Transpose(w)  y = MatMul(e, t)", 2, True),
        ("t = Transpose(w)  a = MatMul(x, t)  y = MatMul(a, w)", 2, True),
        ("v = Identity(w)  e = Gather(v, i)  y = Gemm<transB = 1>(e, v)", 2, False),
        ("t = Transpose(w)  a = Neg(t)  y = Abs(t)", 2, True),
        ("e = Gather(w, i)  y = f.twice(e, w)", 3, True),
    ],
)
def test_readers_are_counted_through_views(
    body: str, readers: int, transposed: bool, tmp_path: Path
) -> None:
    text = f"""g (float[n, 4] x, int64[n] i) => (float[] y) {{ {body} }}
    <domain: "f", opset_import: ["": 20]> twice (a, b) => (c)
    {{ t = Transpose(b)  m = MatMul(a, t)  n = MatMul(m, b)  c = Neg(n) }}"""
    weight = stored(text, tmp_path)["w"]
    assert (weight.readers, weight.is_transposed) == (readers, transposed)
    assert weight.tensor.nbytes == W.nbytes
    np.testing.assert_array_equal(weight.tensor.numpy(), W)


def test_branches_read_it_too(tmp_path: Path) -> None:
    weight = stored(
        """g (float[n, 4] x, bool c) => (float[] y) {
          y = If (c) <then_branch = p () => (float[] a) { t = Transpose(w)  a = MatMul(x, t) },
                      else_branch = q () => (float[] b) { b = Gemm<transB = 1>(x, w) }> }""",
        tmp_path,
    )["w"]
    assert (weight.readers, weight.is_transposed) == (2, True)


def test_a_weight_that_may_be_fed_is_not_among_them(tmp_path: Path) -> None:
    assert not stored("g (float[5, 4] w) => (float[5, 4] y) { y = Neg(w) }", tmp_path)


def test_integers_and_scales_are_quantized(tmp_path: Path) -> None:
    text = "g (int64[n] i) => (int8[] y) { y = Gather(w, i) }"
    assert stored(text, tmp_path, "int8")["w"].is_quantized
    text = "g (int8[5, 4] q) => (float[] y) { y = DequantizeLinear(q, w) }"
    assert stored(text, tmp_path)["w"].is_quantized


def test_data_that_is_too_short_is_refused(tmp_path: Path) -> None:
    text = "g (int64[n] i) => (float[] y) { y = Gather(w, i) }"
    stored(text, tmp_path)
    (tmp_path / "data").write_bytes(b"short")
    proto = onnx.parser.parse_model(f"{HEAD} {text}")
    tensor = proto.graph.initializer.add(name="w", data_type=1, dims=W.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="data")
    with pytest.raises(UntrustedFileError, match="past the end"):
        stored_weights(proto, DataFolder(tmp_path, None, Limits()))
