"""Embedded weights: slices of the mapped file, and otherwise what protobuf makes of the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import tieops
from tieops.errors import TieopsError
from tieops.ir.walk import stored_values
from tieops.untrusted import embedded, onnx_file
from tieops.untrusted.wire import varint

DTYPES = ["FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "COMPLEX128", "INT64", "BOOL", "FLOAT8E5M2",
          "INT4", "UINT2"]  # fmt: skip


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "MIN_BYTES", 32)
    monkeypatch.setattr(onnx_file, "MAPPED_FROM", 1)


def tensor(name: str, dtype: str = "FLOAT", shape: tuple[int, ...] = (16, 16)) -> TensorProto:
    size = -(-int(np.prod(shape)) * onnx_ir.DataType[dtype].bitwidth // 8)
    raw = np.random.default_rng(len(name)).integers(0, 2, size, np.uint8).tobytes()
    return TensorProto(name=name, dims=shape, data_type=onnx_ir.DataType[dtype], raw_data=raw)


def model(*tensors: TensorProto) -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", [each.name], [f"{each.name}_y"]) for each in tensors]
    outputs = [
        helper.make_tensor_value_info(f"{each.name}_y", each.data_type, each.dims)
        for each in tensors
    ]
    graph = helper.make_graph(nodes, "g", [], outputs, list(tensors))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=13)


def nested(place: str, tensor: TensorProto) -> onnx.ModelProto:
    """Return a model that has a tensor somewhere else than among its initializers."""
    opset = helper.make_opsetid("", 24)
    y = helper.make_tensor_value_info("y", tensor.data_type, tensor.dims)
    constant = helper.make_node("Constant", [], ["y"], name="c", value=tensor)
    nodes, inputs, functions = [constant], [], []
    if place == "branch":
        inner = helper.make_graph([], "inner", [], [y], [tensor])
        inner.output[0].name = tensor.name
        inputs = [helper.make_tensor_value_info("flag", TensorProto.BOOL, [])]
        nodes = [helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=inner)]
    if place == "function":
        functions = [helper.make_function("own", "F", [], ["y"], [constant], [opset])]
        nodes = [helper.make_node("F", [], ["y"], domain="own")]
    if place == "default":
        body = helper.make_node("Constant", [], ["y"])
        body.attribute.add(name="value", ref_attr_name="weight", type=onnx.AttributeProto.TENSOR)
        default = helper.make_attribute("weight", tensor)
        functions = [helper.make_function("own", "F", [], ["y"], [body], [opset], [], [default])]
        nodes = [helper.make_node("F", [], ["y"], domain="own")]
    graph = helper.make_graph(nodes, "g", inputs, [y])
    opsets = [opset, helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=13, functions=functions)


PLACES = ["constant", "branch", "function"]


def stored(model: tieops.TiedModel) -> list[tuple[Any, ...]]:
    return [
        (value.name, value.dtype, tuple(tensor.shape.numpy()), tensor.tobytes())
        for value in stored_values(model.ir)
        if (tensor := value.const_value) is not None
    ]


def slices(model: tieops.TiedModel) -> int:
    kinds = (onnx_ir.Tensor, onnx_ir.PackedTensor)
    return sum(isinstance(value.const_value, kinds) for value in stored_values(model.ir))


def outcome(source: Path | bytes) -> object:
    """Return what a model holds, or the kind of error it is refused with."""
    try:
        read = tieops.from_onnx(source, base_dir=".")
        return stored(read), [(node.op_type, node.name) for node in read.ir.graph]
    except TieopsError as error:
        return type(error)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_has_the_bytes_that_protobuf_finds(tmp_path: Path, dtype: str) -> None:
    proto = model(tensor("w", dtype), tensor("odd", dtype, (13, 11)))
    onnx.save(proto, path := tmp_path / "m.onnx")
    read = tieops.from_onnx(path)
    assert slices(read) == 2
    assert stored(read) == stored(tieops.from_onnx(proto))
    written = tieops.to_onnx(read, tmp_path / "again.onnx").path
    assert stored(tieops.from_onnx(written)) == stored(read)


@pytest.mark.parametrize("dtype", ["FLOAT", "INT4"])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_not_an_initializer_is_a_slice_too(tmp_path: Path, place: str, dtype: str) -> None:
    proto = nested(place, tensor("w", dtype))
    onnx.save(proto, path := tmp_path / "m.onnx")
    read = tieops.from_onnx(path)
    assert slices(read) == (2 if place == "branch" else 1)
    assert stored(read) == stored(tieops.from_onnx(proto))
    written = tieops.to_onnx(read, tmp_path / "again.onnx").path
    assert stored(tieops.from_onnx(written)) == stored(read)


def test_the_default_of_a_function_stays_in(tmp_path: Path) -> None:
    proto = nested("default", tensor("w"))
    onnx.save(proto, path := tmp_path / "m.onnx")
    defaults = [
        tieops.from_onnx(source).ir.functions["own", "F", ""].attributes["weight"].as_tensor()
        for source in (path, proto)
    ]
    assert defaults[0].tobytes() == defaults[1].tobytes()


def test_names_documentation_and_metadata_stay(tmp_path: Path) -> None:
    proto = model(tensor("w"))
    proto.graph.initializer[0].doc_string = "a weight"
    proto.graph.initializer[0].metadata_props.add(key="tieops.names", value='["w", "v"]')
    onnx.save(proto, path := tmp_path / "m.onnx")
    read = tieops.from_onnx(path)
    assert read.ir.graph.initializers["w"].const_value.doc_string == "a weight"
    assert read.ir.graph.initializers["w"].metadata_props["tieops.names"] == '["w", "v"]'
    assert slices(read) == 1


def test_what_was_read_stays_when_the_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(tensor("w"), tensor("v")), path)
    read = tieops.from_onnx(path)
    before = stored(read)
    tieops.to_onnx(tieops.tie(read), path)
    assert stored(read) == before


def message(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


ODD = {
    "two graphs, which are merged": lambda proto: (
        proto.SerializeToString() + message(7, model(tensor("more")).graph.SerializeToString())
    ),
    "raw data twice, of which the last counts": lambda proto: (
        message(
            7,
            message(5, tensor("w").SerializeToString() + message(9, bytes(16 * 16 * 4)))
            + proto.graph.SerializeToString(),
        )
        + proto.SerializeToString()[: -len(message(7, proto.graph.SerializeToString()))]
    ),
    "a group": lambda proto: proto.SerializeToString() + b"\xa3\x06\xa4\x06",
    "a field that nobody knows": lambda proto: proto.SerializeToString() + message(900, b"x" * 99),
    "cut off": lambda proto: proto.SerializeToString()[:-40],
    "bytes behind": lambda proto: proto.SerializeToString() + b"\x3a",
    "other bytes than the shape says": lambda proto: model(
        TensorProto(name="w", dims=[9, 9], data_type=1, raw_data=bytes(1024))
    ).SerializeToString(),
    "values in two fields": lambda proto: model(
        TensorProto(name="w", dims=[16, 16], data_type=1, raw_data=bytes(1024), float_data=[1.0])
    ).SerializeToString(),
    "a dtype that nobody knows": lambda proto: model(
        TensorProto(name="w", dims=[16, 16], data_type=99, raw_data=bytes(1024))
    ).SerializeToString(),
    "a negative shape": lambda proto: model(
        TensorProto(name="w", dims=[-16, -16], data_type=1, raw_data=bytes(1024))
    ).SerializeToString(),
    "duplicate": lambda proto: model(tensor("w"), tensor("w")).SerializeToString(),
    "external data and inline data": lambda proto: model(
        TensorProto(name="w", dims=[16, 16], data_type=1, raw_data=bytes(1024), data_location=1)
    ).SerializeToString(),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_files_are_read_or_refused_as_protobuf_and_the_checks_do(
    tmp_path: Path, case: str
) -> None:
    data = ODD[case](model(tensor("w"), tensor("v")))
    (path := tmp_path / "m.onnx").write_bytes(data)
    assert outcome(path) == outcome(data)


ODD_TENSORS = {
    "other bytes than the shape says": {"dims": [9, 9]},
    "values in two fields": {"float_data": [1.0]},
    "a dtype that nobody knows": {"data_type": 99},
    "no dtype": {"data_type": 0},
    "strings": {"data_type": TensorProto.STRING},
    "a negative shape": {"dims": [-16, -16]},
    "a shape that takes hours to multiply": {"dims": [2**62] * 300_000},
    "a segment": {"segment": TensorProto.Segment(begin=1, end=2)},
    "external data and inline data": {"data_location": TensorProto.EXTERNAL},
    "a boolean that is two": {"data_type": TensorProto.BOOL, "dims": [1024]},
}


@pytest.mark.parametrize("place", ["initializer", *PLACES])
@pytest.mark.parametrize("case", ODD_TENSORS)
@pytest.mark.slow
def test_odd_tensors_are_refused_as_those_in_memory_are(
    tmp_path: Path, case: str, place: str
) -> None:
    given: dict[str, Any] = {"dims": [16, 16], "data_type": TensorProto.FLOAT}
    odd = TensorProto(name="w", raw_data=bytes([2]) * 1024, **(given | ODD_TENSORS[case]))
    proto = model(odd) if place == "initializer" else nested(place, odd)
    (path := tmp_path / "m.onnx").write_bytes(data := proto.SerializeToString())
    with pytest.raises(TieopsError) as in_memory:
        tieops.from_onnx(data, base_dir=tmp_path)
    with pytest.raises(type(in_memory.value)) as mapped:
        tieops.from_onnx(path)
    assert mapped.value.what == in_memory.value.what


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_files_are_read_or_refused_as_protobuf_and_the_checks_do(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(model(tensor("w", shape=(4, 4)), tensor("v", "INT4")).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        match data.draw(st.sampled_from(["change", "insert", "delete", "cut"])):
            case "change":
                whole[at] = data.draw(st.integers(0, 255))
            case "insert":
                whole.insert(at, data.draw(st.integers(0, 255)))
            case "delete":
                del whole[at]
            case _:
                del whole[max(at, 1) :]
        if len(whole) < 2:
            break
    path = tmp_path_factory.mktemp("damaged") / "m.onnx"
    path.write_bytes(whole)
    assert outcome(path) == outcome(bytes(whole))


@pytest.mark.parametrize("place", ["initializer", *PLACES])
@pytest.mark.slow
def test_a_large_file_is_not_copied_into_memory(tmp_path: Path, place: str) -> None:
    path = tmp_path / "large.onnx"
    large = TensorProto(name="w", dims=[64 << 20], data_type=2, raw_data=bytes(64 << 20))
    onnx.save(model(large) if place == "initializer" else nested(place, large), path)
    program = """
import json, sys, tieops
from tests.support.memory import growth
tieops.from_onnx
print(json.dumps(growth(lambda: tieops.from_onnx(sys.argv[1]).duplicates)))
"""
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) < 20_000_000
