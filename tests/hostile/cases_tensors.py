"""Tensors that are not what they say (D of the reference)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

import tieops
from tests.hostile.case import case
from tests.hostile.models import WEIGHT, message, model, save, small, tensor

RAW = WEIGHT.tobytes()
OTHER = "w holds other data than its shape says"
TWO = "w has its values in two fields"
CANNOT = "w has values that its data type cannot hold"


def _weight(name: str, *words: str, ok: bool = False, **fields: Any) -> None:
    """Make a case of the fields of the weight."""
    dims = tuple(fields.pop("dims", (3, 4)))
    kind = fields.pop("data_type", TensorProto.FLOAT)

    def build(folder: Path) -> Path:
        made = tensor("w", dims, **fields)
        made.data_type = kind
        if kind == TensorProto.FLOAT:
            return save(folder, small(), made)
        proto = model("(float[n] x) => (float[n] y) { y = Neg(x)  z = Identity(w) }")
        proto.graph.initializer.append(made)
        return save(folder, proto)

    case(*words, name=name, ok=ok)(build)


_weight("d01_dims_bomb", OTHER, dims=(2**40, 4), raw_data=RAW)
_weight("d02_dims_wrap", "no valid shape", dims=(2**32, 2**32))
_weight("d02_dims_wrap_once", OTHER, dims=(2**31, 2**29))
_weight("d03_dims_wrap4", "no valid shape", dims=(4194305, 4194305, 211106198978564), raw_data=RAW)
_weight("d04_dims_negative", "no valid shape", dims=(-3, 4), raw_data=RAW)
_weight("d05_dims_negative2", "no valid shape", dims=(-3, -4), raw_data=RAW)
_weight("d05_dims_least", "no valid shape", dims=(-(2**63), 2), raw_data=RAW)
_weight("d05_dims_zero_and_huge", "no valid shape", dims=(0, 2**62, 2**62))
_weight("d05_dims_zero_and_negative", "no valid shape", dims=(0, -1))
_weight("d05_million_dims", "axes of w", dims=(1,) * 10**6, raw_data=RAW)
_weight("d05_many_huge_dims", "axes of w", dims=(2**62,) * 1000, raw_data=RAW)
_weight("d06_raw_short", OTHER, "bytes needed: 48", raw_data=RAW[:-4])
_weight("d06_raw_short_by_one", OTHER, raw_data=RAW[:-1])
_weight("d06_raw_empty", OTHER, raw_data=b"")
_weight("d07_raw_long", OTHER, raw_data=RAW + b"\0")
_weight("d08_both", TWO, raw_data=RAW, float_data=[0.0] * 12)
_weight("d08_both_fields", TWO, float_data=[0.0] * 12, int32_data=[0] * 12)
_weight("d08_strings_beside", TWO, float_data=[0.0] * 12, string_data=[b"x"])
_weight("d09_nodata", OTHER, "values stored: 0")
_weight("d10_float_data_short", OTHER, float_data=[1.0] * 11)
_weight("d10_float_data_long", OTHER, float_data=[1.0] * 13)
_weight("d11_dtype999", "unknown data type 999", data_type=999, raw_data=RAW)
_weight("d11_dtype_negative", "unknown data type -1", data_type=-1, raw_data=RAW)
_weight("d11_undefined", "no data type", data_type=0, raw_data=RAW)
_weight("d12_wrong_field", "another dtype's field", int64_data=[1] * 12)
_weight("d12_strings_as_raw", "w", data_type=TensorProto.STRING, raw_data=RAW)
_weight("d12_strings_too_few", OTHER, data_type=TensorProto.STRING, string_data=[b"x"] * 11)
_weight("d12_strings", ok=True, data_type=TensorProto.STRING, string_data=[b"\xff\x1b[31m"] * 12)
_weight("d13_bool_2", CANNOT, "0..2", data_type=TensorProto.BOOL, raw_data=b"\0\1\2" * 4)
_weight("d13_bool_2_in_field", CANNOT, data_type=TensorProto.BOOL, int32_data=[0, 1, 2] * 4)
_weight("d13_bool_negative", CANNOT, data_type=TensorProto.BOOL, int32_data=[0, 1, -1] * 4)
_weight("d13_bool", ok=True, data_type=TensorProto.BOOL, raw_data=b"\0\1\1" * 4)
_weight("d13_half_out_of_range", CANNOT, data_type=TensorProto.FLOAT16, int32_data=[65536] * 12)
_weight("d13_half", ok=True, data_type=TensorProto.FLOAT16, int32_data=[0, 15360, 65535] * 4)
_weight("d13_int8_out_of_range", CANNOT, data_type=TensorProto.INT8, int32_data=[128] * 12)
_weight("d13_int8", ok=True, data_type=TensorProto.INT8, int32_data=[-128, 0, 127] * 4)
_weight("d13_uint8_out_of_range", CANNOT, data_type=TensorProto.UINT8, int32_data=[256] * 12)
_weight("d13_uint8_negative", CANNOT, data_type=TensorProto.UINT8, int32_data=[-1] * 12)
_weight("d13_uint16_out_of_range", CANNOT, data_type=TensorProto.UINT16, int32_data=[65536] * 12)
_weight("d13_uint32_out_of_range", CANNOT, data_type=TensorProto.UINT32, uint64_data=[2**32] * 12)
_weight("d13_uint64", ok=True, data_type=TensorProto.UINT64, uint64_data=[2**64 - 1] * 12)
_weight("d13_complex_short", OTHER, data_type=TensorProto.COMPLEX64, float_data=[1.0] * 12)
_weight("d13_complex", ok=True, data_type=TensorProto.COMPLEX64, float_data=[1.0] * 24)
_weight("d14_int4_short", OTHER, "bytes needed: 3", data_type=TensorProto.INT4, dims=(5,),
        raw_data=b"\1\2")  # fmt: skip
_weight("d14_int4_odd", ok=True, data_type=TensorProto.INT4, dims=(5,), raw_data=b"\1\2\3")
_weight("d14_int4_long", OTHER, data_type=TensorProto.INT4, dims=(5,), raw_data=b"\1\2\3\4")
_weight("d14_int4_field_short", OTHER, data_type=TensorProto.INT4, dims=(5,), int32_data=[1, 2])
_weight("d14_int4_field", ok=True, data_type=TensorProto.INT4, dims=(5,), int32_data=[1, 2, 3])
_weight("d14_uint4_field_wide", CANNOT, data_type=TensorProto.UINT4, dims=(2,), int32_data=[256])
_weight("d14_int2_short", OTHER, data_type=TensorProto.INT2, dims=(5,), raw_data=b"\1")
_weight("d14_int2", ok=True, data_type=TensorProto.INT2, dims=(5,), raw_data=b"\1\2")
_weight("d14_float4", ok=True, data_type=TensorProto.FLOAT4E2M1, dims=(3,), raw_data=b"\1\2")
_weight("d14_float8", ok=True, data_type=TensorProto.FLOAT8E5M2, dims=(3,), raw_data=b"\1\2\3")
_weight("d16_scalar", OTHER, dims=(), raw_data=b"")
_weight("d16_no_elements_with_data", OTHER, dims=(0, 4), raw_data=RAW)


def _sparse(dims: list[int], indices: list[int], values: int = 1) -> onnx.SparseTensorProto:
    made = tensor("s", (values,), float_data=[1.0] * values)
    places = TensorProto(data_type=TensorProto.INT64, dims=[values], int64_data=indices)
    return helper.make_sparse_tensor(made, places, dims)


def _sparse_model(folder: Path, *sparse: Any) -> Path:
    proto = small()
    proto.graph.sparse_initializer.append(_sparse(*sparse))
    return save(folder, proto)


SPARSE = "sparse initializers, which tieops would lose"
case(SPARSE, name="d15_sparse_bomb")(lambda folder: _sparse_model(folder, [10**7, 10**6], [0]))
case(SPARSE, name="d17_sparse_negative")(lambda f: _sparse_model(f, [3, 4], [-1, -1], 2))
case(SPARSE, name="e05_dense_and_sparse")(lambda folder: _sparse_model(folder, [3, 4], [0]))

BITS = np.array([0x7FC00001, 0x7FC00002, 0x80000000, 0, 0x7F800000, 0xFF800000, 1, 0xFFFFFFFF,
                 0x7F800001, 2, 3, 4], np.uint32)  # fmt: skip


def holds_the_bits(read: tieops.TiedModel) -> None:
    assert read.parameters[0].tensor.tobytes() == BITS.tobytes()
    assert not read.duplicates


@case(ok=True, holds=holds_the_bits)
def d18_nan_payload(folder: Path) -> Path:
    proto = small()
    proto.graph.initializer[0].raw_data = BITS.tobytes()
    return save(folder, proto)


@case("w", "segment")
def d20_segment(folder: Path) -> Path:
    made = tensor(raw_data=RAW)
    made.segment.begin = 0
    made.segment.end = 12
    return save(folder, small(), made)


@case("duplicate metadata key")
def d21_two_keys(folder: Path) -> Path:
    made = tensor(raw_data=RAW)
    for value in ("a", "b"):
        made.metadata_props.add(key="k", value=value)
    return save(folder, small(), made)


@case(ok=True)
def d22_strange_metadata_of_ours(folder: Path) -> Path:
    """What stands under our own keys may be anything."""
    made = tensor(raw_data=RAW)
    for key in ("tieops.names", "tieops.evidence", "tieops.lr_factor", "tieops.view"):
        made.metadata_props.add(key=key, value="[" * 10_000 + "\x1b]0;x\x07")
    return save(folder, small(), made)


@case(OTHER, name="d06_in_memory")
def d06_in_memory(_: Path) -> onnx.ModelProto:
    proto = small()
    proto.graph.initializer[0].CopyFrom(tensor(raw_data=RAW[:-4]))
    return proto


@case("other data than its shape says")
def d06_of_onnx_ir(folder: Path) -> Any:
    """onnx_ir took it as it was: a model in memory is checked as well."""
    import onnx_ir

    return onnx_ir.load(save(folder, small(), tensor(raw_data=RAW[:-4])))


@case("other data than its shape says")
def d06_in_a_constant(folder: Path) -> Path:
    proto = model("(float[n, 3] x) => (float[n, 4] y) { y = MatMul(x, w) }")
    node = helper.make_node("Constant", [], ["w"])
    node.attribute.append(helper.make_attribute("value", tensor(raw_data=RAW[:-4])))
    proto.graph.node.insert(0, node)
    return save(folder, proto)


@case("numbers that are not in raw data", memory_mb=2048)
def d23_many_numbers(folder: Path) -> Path:
    """A byte of the file each, eight in memory."""
    path = folder / "m.onnx"
    path.write_bytes(b"\x08\x0a" + message(7, message(5, message(7, b"\1" * 120_000_000))))
    return path
