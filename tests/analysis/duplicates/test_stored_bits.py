"""The bits of stored tensors: those of a data file are mapped once, and not loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from tieops.analysis.duplicates.bit_equality import bit_equal
from tieops.analysis.duplicates.by_content import find_duplicates
from tieops.analysis.duplicates.stored_bits import StoredBits
from tieops.ir.parameter import Parameter

DTYPES = ["FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "COMPLEX128", "INT64", "BOOL", "FLOAT8E5M2",
          "INT4", "UINT4", "UINT2", "FLOAT4E2M1"]  # fmt: skip


def external(
    folder: Path, dtype: onnx_ir.DataType, offset: int, shape: tuple[int, ...], name: str = "w"
) -> onnx_ir.ExternalTensor:
    length = -(-int(np.prod(shape)) * dtype.bitwidth // 8)
    return onnx_ir.ExternalTensor(
        "data.bin", offset, length, dtype, shape=onnx_ir.Shape(shape), name=name,
        base_dir=str(folder),
    )  # fmt: skip


@pytest.mark.parametrize("name", DTYPES)
def test_a_tensor_in_a_file_has_the_bits_of_its_twin_in_memory(tmp_path: Path, name: str) -> None:
    dtype = onnx_ir.DataType[name]
    shape = (16, 10)
    size = 160 * dtype.bitwidth // 8
    raw = np.random.default_rng(0).integers(0, 2, size, np.uint8).tobytes()
    (tmp_path / "data.bin").write_bytes(b"\x07" + raw)
    there = external(tmp_path, dtype, 1, shape)
    here = onnx_ir.Tensor(there.numpy().copy(), dtype=dtype, name="here")
    fresh = external(tmp_path, dtype, 1, shape)
    stored = StoredBits()
    assert bit_equal(stored.of(fresh), stored.of(here))
    assert fresh.raw is None  # onnx_ir has neither mapped nor unpacked it
    changed = bytearray(raw)
    changed[-1] ^= 1
    (tmp_path / "data.bin").write_bytes(b"\x07" + changed)
    assert not bit_equal(StoredBits().of(fresh), stored.of(here))


@pytest.mark.parametrize("name", ["FLOAT", "INT4", "UINT2"])
def test_transposed_copies_in_files_are_found(tmp_path: Path, name: str) -> None:
    dtype = onnx_ir.DataType[name]
    array = np.random.default_rng(0).integers(0, 2, (12, 20)).astype(dtype.numpy())
    parts = [onnx_ir.Tensor(each, dtype=dtype).tobytes() for each in (array, array.T.copy())]
    (tmp_path / "data.bin").write_bytes(b"".join(parts))
    tensors = [
        external(tmp_path, dtype, 0, (12, 20), "a"),
        external(tmp_path, dtype, len(parts[0]), (20, 12), "b"),
    ]
    (found,) = find_duplicates(
        Parameter(onnx_ir.Value(name=each.name, const_value=each)) for each in tensors
    )
    assert found.perms == ((0, 1), (1, 0))
    assert found.held_back == ""


def test_a_file_that_is_gone_or_too_short_is_told_as_onnx_ir_tells_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        StoredBits().of(external(tmp_path, onnx_ir.DataType.FLOAT, 0, (4,)))
    (tmp_path / "data.bin").write_bytes(b"1234")
    with pytest.raises(ValueError, match="buffer"):
        StoredBits().of(external(tmp_path, onnx_ir.DataType.FLOAT, 0, (4,)))


def test_reading_whole_is_for_files_that_are_mapped(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(bytes(8192))
    tensor = external(tmp_path, onnx_ir.DataType.FLOAT, 4100, (4,))
    stored = StoredBits()
    with stored.read_whole(tensor, onnx_ir.tensor(np.zeros(3, np.float32))):
        assert not np.asarray(stored.of(tensor)).any()
    with stored.read_whole(tensor):
        assert not np.asarray(stored.of(tensor)).any()
