"""Mapped tensors: one mapping while it is in use, none of a file that changed."""

from __future__ import annotations

import gc
import os
import warnings
import weakref
from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from tieops.runtime.memory.mapped_weights import can_be_mapped, map_tensor
from tieops.system import memory

ARRAY = np.arange(3 * 4096, dtype=np.float32).reshape(3, 4096)


def stored(
    path: Path, offset: int = 64, dtype: onnx_ir.DataType = onnx_ir.DataType.FLOAT
) -> onnx_ir.ExternalTensor:
    return onnx_ir.ExternalTensor(
        path.name,
        offset,
        ARRAY.nbytes,
        dtype,
        shape=onnx_ir.Shape((3, ARRAY.nbytes // 3 // dtype.numpy().itemsize)),
        name="w",
        base_dir=str(path.parent),
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "m.data"
    path.write_bytes(bytes(64) + ARRAY.tobytes() * 2)
    return path


def test_the_same_bytes_are_mapped_once_while_they_are_in_use(data: Path) -> None:
    first = map_tensor(stored(data), "packed")
    np.testing.assert_array_equal(first.array, ARRAY)
    assert not first.array.flags.writeable
    assert map_tensor(stored(data), "packed") is first
    link = data.with_name("link")
    link.symlink_to(data)
    assert map_tensor(stored(link), "packed") is first
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None
    np.testing.assert_array_equal(map_tensor(stored(data), "packed").array, ARRAY)


def test_other_bytes_and_other_uses_are_mapped_apart(data: Path) -> None:
    first = map_tensor(stored(data), "packed")
    assert map_tensor(stored(data), "mapped") is not first
    assert map_tensor(stored(data, 64 + ARRAY.nbytes), "packed") is not first
    integers = map_tensor(stored(data, dtype=onnx_ir.DataType.INT8), "packed")
    assert integers.array.dtype == np.int8


@pytest.mark.parametrize("how", ["replaced", "written over", "written over, time kept"])
def test_a_file_that_changed_is_mapped_anew(how: str, data: Path) -> None:
    first = map_tensor(stored(data), "packed")
    changed = bytes(64) + (ARRAY + 1).tobytes() * 2
    status = data.stat()
    if how == "replaced":
        other = data.with_name("other")
        other.write_bytes(changed)
        os.replace(other, data)
    else:
        data.write_bytes(changed)
    if how == "written over, time kept":
        os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns))
    np.testing.assert_array_equal(map_tensor(stored(data), "packed").array, ARRAY + 1)
    if how == "replaced":
        np.testing.assert_array_equal(first.array, ARRAY)


def test_pages_that_were_given_back_are_read_again(data: Path) -> None:
    mapped = map_tensor(stored(data), "packed")
    mapped.give_back()
    np.testing.assert_array_equal(mapped.array, ARRAY)


def test_what_can_be_mapped(data: Path) -> None:
    kinds = onnx_ir.DataType
    assert can_be_mapped(stored(data), "cpu")
    assert not can_be_mapped(stored(data, 66), "cpu")  # not on a multiple of its width
    assert not can_be_mapped(stored(data, dtype=kinds.FLOAT16), "cpu")
    assert can_be_mapped(stored(data, dtype=kinds.FLOAT16), "cuda")
    assert can_be_mapped(stored(data, dtype=kinds.BFLOAT16), "cuda")
    assert not can_be_mapped(onnx_ir.tensor(ARRAY), "cpu")


def test_a_fork_reads_its_own_memory() -> None:
    assert memory.resident_file_bytes()
    kept = memory._statm()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads; the child starts none
        child = os.fork()
    if child == 0:
        own = os.pread(memory._statm(), 256, 0)
        with open("/proc/self/statm", "rb") as file:
            same_sizes = own.split()[0] == file.read().split()[0]
        os._exit(0 if same_sizes and memory._statm() == kept else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert memory._statm() == kept
