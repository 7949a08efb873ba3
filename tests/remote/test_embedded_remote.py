"""Graphs of large files without their weights: what is stepped over, and damaged files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tieops.errors import UntrustedFileError
from tieops.remote.remote_files import read_graph
from tieops.untrusted.limits import Limits
from tieops.untrusted.wire import varint


class Memory:
    def __init__(self, data: bytes) -> None:
        self.data, self.size, self.name = data, len(data), "m.onnx"
        self.read_bytes = 0

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self.read_bytes += sum(stop - start for start, stop in ranges)
        return [self.data[start:stop] for start, stop in ranges]


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def graph_of(name: str, *nodes: onnx.NodeProto, **weights: np.ndarray) -> onnx.GraphProto:
    tensors = [numpy_helper.from_array(array, key) for key, array in weights.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), name, [], [output], tensors)


@pytest.fixture
def model() -> onnx.ModelProto:
    """Weights in an initializer, a Constant, a branch of an If and a function."""
    inner = graph_of("then", helper.make_node("Identity", ["deep"], ["y"]), deep=normal(1, 99, 99))
    constant = numpy_helper.from_array(normal(2, 80, 80), "c")
    nodes = [
        helper.make_node("Constant", [], ["c"], value=constant),
        helper.make_node("If", ["flag"], ["z"], then_branch=inner, else_branch=inner),
        helper.make_node("Identity", ["w"], ["y"]),
    ]
    graph = graph_of("g", *nodes, w=normal(3, 500, 500), small=normal(4, 3), flag=np.array(True))
    opset = helper.make_opsetid("", 20)
    body = [helper.make_node("Constant", [], ["out"], value=constant)]
    function = helper.make_function("own", "F", [], ["out"], body, [opset])
    return helper.make_model(graph, opset_imports=[opset], functions=[function])


def tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    found = list(proto.graph.initializer)
    for node in [*proto.graph.node, *proto.functions[0].node]:
        for attribute in node.attribute:
            found += [attribute.t] if attribute.HasField("t") else []
            found += attribute.g.initializer
    return found


def test_large_tensors_are_stepped_over_wherever_they_are(model: onnx.ModelProto) -> None:
    source = Memory(model.SerializeToString())
    got = onnx.ModelProto.FromString(read_graph(source, "here", Limits()))
    large = 0
    for old, new in zip(tensors(model), tensors(got), strict=True):
        entries = {entry.key: entry.value for entry in new.external_data}
        if entries:
            large += 1
            assert entries["location"] == "here"
            start, length = int(entries["offset"]), int(entries["length"])
            new.raw_data = source.data[start : start + length]
            new.ClearField("external_data")
            new.ClearField("data_location")
        assert old.SerializeToString() == new.SerializeToString()
    assert large == 5
    assert got.SerializeToString() == model.SerializeToString()
    assert source.read_bytes < 0.1 * source.size


def test_a_small_model_comes_back_byte_for_byte() -> None:
    data = helper.make_model(graph_of("g", small=normal(0, 5))).SerializeToString()
    assert read_graph(Memory(data), "here", Limits()) == data


def test_a_file_that_was_cut_is_an_error(model: onnx.ModelProto) -> None:
    data = model.SerializeToString()
    for size in range(1, len(data), 4999):
        with pytest.raises(UntrustedFileError, match=r"no ONNX model in m.onnx, or a damaged one"):
            read_graph(Memory(data[:size]), "here", Limits())


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"\x0b" + bytes(20_000), "wire type 3"),
        (b"\x3a\xff\xff\xff\xff\x0f" + bytes(20_000), "a field of 4294967295 bytes"),
        (b"\xff" * 20_000, "no number at byte"),
        (b"\x02" + bytes(20_000), "a field of"),
    ],
    ids=["group", "past the end", "endless number", "field zero"],
)
def test_what_is_no_protobuf_says_where(data: bytes, found: str) -> None:
    with pytest.raises(UntrustedFileError, match=found):
        read_graph(Memory(data), "here", Limits())


def test_nesting_without_end_is_refused() -> None:
    data = bytes(20_000)
    for _ in range(70):  # a graph in an attribute of a node, seventy times
        for field in (6, 5, 1):
            data = bytes([field << 3 | 2]) + varint(len(data)) + data
    data = bytes([7 << 3 | 2]) + varint(len(data)) + data
    with pytest.raises(UntrustedFileError, match="nested more than 100 deep"):
        read_graph(Memory(data), "here", Limits())


@pytest.mark.parametrize("how", ["float_data", "external", "twice"])
def test_values_in_two_places_are_refused(how: str) -> None:
    tensor = numpy_helper.from_array(normal(0, 100, 100), "w\x1b")
    if how == "float_data":
        tensor.float_data.extend([1.0])
    elif how == "external":
        tensor.data_location = TensorProto.EXTERNAL
    data = tensor.SerializeToString()
    if how == "twice":
        data += bytes([9 << 3 | 2]) + varint(20_000) + bytes(20_000)
    graph = bytes([5 << 3 | 2]) + varint(len(data)) + data
    with pytest.raises(UntrustedFileError, match=r"w\\x1b has its values in two places"):
        read_graph(Memory(bytes([7 << 3 | 2]) + varint(len(graph)) + graph), "here", Limits())
