"""The walk over embedded weights: the same through all windows, in bounded memory and steps."""

from __future__ import annotations

import tracemalloc

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tieops.errors import UnsupportedModelError, UntrustedFileError
from tieops.untrusted.embedded import Lifted, lift
from tieops.untrusted.limits import Limits
from tieops.untrusted.wire import FIXED32, FIXED64, LENGTH, VARINT, varint


class Memory:
    """A file in memory that is seen through windows of some sizes, one after the other."""

    def __init__(self, data: bytes, *steps: int) -> None:
        self.name, self.size = "m.onnx", len(data)
        self._data = data
        self._steps = list(steps)
        self.windows: list[range] = []

    def window(self, start: int, stop: int) -> memoryview:
        step = self._steps.pop(0) if self._steps else self.size
        end = min(max(stop, start + step), self.size)
        self.windows.append(range(start, end))
        return memoryview(self._data)[start:end]


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | LENGTH) + varint(len(value)) + value


def tensor(name: str, size: int) -> TensorProto:
    return TensorProto(name=name, dims=[size], data_type=TensorProto.UINT8, raw_data=bytes(size))


def model() -> onnx.ModelProto:
    """Return weights at every place, with lists of numbers and texts between them."""
    inner = helper.make_graph([], "inner", [], [], [tensor("deep", 300), tensor("few", 3)])
    node = helper.make_node("Loop", ["a"], ["b"], body=inner, ints=range(40), floats=[0.5] * 20)
    constant = helper.make_node("Constant", [], ["c"], value=tensor("c", 100), doc_string="d" * 90)
    lists = helper.make_node("Own", [], ["o"], domain="own", some=[tensor("s", 50)] * 3)
    initializers = [tensor(f"w{size}", size) for size in (0, 20, 31, 32, 500)]
    graph = helper.make_graph([node, constant, lists], "g", [], [], initializers)
    body = helper.make_function("own", "F", [], ["c"], [constant], [helper.make_opsetid("", 20)])
    return helper.make_model(graph, functions=[body], doc_string="text" * 20)


def referring(lifted: Lifted) -> bytes:
    return lifted.referring("here")


def test_data_is_found_at_every_place_and_the_rest_stays() -> None:
    found: list[Lifted] = []

    def note(lifted: Lifted) -> bytes:
        found.append(lifted)
        return lifted.referring("here")

    data = model().SerializeToString()
    rest = onnx.ModelProto.FromString(lift(Memory(data), 32, note, Limits()))
    assert [each.tensor.name for each in found] == [
        "deep", "c", "s", "s", "s", "w32", "w500", "c"
    ]  # fmt: skip
    for each in found:
        ((start, stop),) = each.ranges
        assert data[start:stop] == bytes(each.tensor.dims[0])
    assert [len(each.raw_data) for each in rest.graph.initializer] == [0, 20, 31, 0, 0]
    assert rest.doc_string == model().doc_string


def test_what_is_left_as_it_is_comes_back_byte_for_byte() -> None:
    data = model().SerializeToString()
    assert lift(Memory(data), 32, lambda lifted: None, Limits()) == data
    assert lift(Memory(data, 1, 7), 32, lambda lifted: None, Limits()) == data


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 200), max_size=400))
def test_windows_of_any_size_give_the_same(steps: list[int]) -> None:
    data = model().SerializeToString()
    source = Memory(data, *steps)
    assert lift(source, 32, referring, Limits()) == lift(Memory(data), 32, referring, Limits())
    ends = [window.stop for window in source.windows]
    assert all(end <= next_.start for end, next_ in zip(ends, source.windows[1:], strict=False))


@pytest.mark.parametrize("wire", [VARINT, FIXED32, FIXED64])
def test_numbers_under_the_key_of_data_are_no_data(wire: int) -> None:
    size = {VARINT: 1, FIXED32: 4, FIXED64: 8}[wire]
    numbers = (varint(9 << 3 | wire) + bytes(size)) * 200
    made = field(7, field(5, tensor("w", 4).SerializeToString() + numbers))
    for source in (Memory(made), Memory(made, *[30] * 100)):
        assert lift(source, 32, referring, Limits()) == made


def test_no_window_begins_in_what_is_stepped_over() -> None:
    data = model().SerializeToString()
    source = Memory(data, *[1] * len(data))
    lift(source, 32, referring, Limits())
    read = sum(map(len, source.windows))
    assert read < len(data) - 500 + 20 * 12


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_is_found_or_does_no_harm(data: st.DataObject) -> None:
    whole = bytearray(model().SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    results: set[bytes | str] = set()
    for steps in ([], data.draw(st.lists(st.integers(1, 50), max_size=60))):
        try:
            results.add(lift(Memory(bytes(whole), *steps), 32, referring, Limits()))
        except UntrustedFileError as error:
            results.add(str(error))
    assert len(results) == 1


def test_a_field_of_two_bytes_costs_two() -> None:
    data = field(7, b"\x0a\x00" * 200_000)
    tracemalloc.start()
    try:
        assert lift(Memory(data), 32, referring, Limits()) == data
        assert tracemalloc.get_traced_memory()[1] < 3 * len(data)
    finally:
        tracemalloc.stop()


def test_fields_are_limited_and_a_list_of_numbers_is_one() -> None:
    nodes = field(7, b"\x0a\x00" * 200)
    with pytest.raises(UnsupportedModelError, match="protobuf fields: more than the limit"):
        lift(Memory(nodes), 32, referring, Limits(fields=100))
    attribute = helper.make_attribute("ints", range(2000)).SerializeToString()
    listed = field(7, field(1, field(5, attribute)))
    assert lift(Memory(listed), 32, referring, Limits(fields=100)) == listed


@pytest.mark.parametrize(
    ("change", "ambiguous"),
    [
        ({}, False),
        ({"data_location": TensorProto.DEFAULT}, False),
        ({"data_location": TensorProto.EXTERNAL}, True),
        ({"int32_data": [1]}, True),
        ({"string_data": [b"x"]}, True),
        ({"raw_data": b"x"}, True),
        ({"external_data": [onnx.StringStringEntryProto(key="location", value="x")]}, True),
    ],
)
def test_values_in_another_place_are_noticed(change: dict[str, object], ambiguous: bool) -> None:
    given = TensorProto(name="w", **change)  # type: ignore[arg-type]
    assert Lifted(given, ((0, 9),)).is_ambiguous is ambiguous


def test_data_that_is_there_twice_is_noticed() -> None:
    assert Lifted(TensorProto(name="w"), ((0, 9), (20, 29))).is_ambiguous


def test_a_tensor_that_protobuf_cannot_read_is_damage() -> None:
    sizes_cut_off = field(1, b"\x80")
    data = field(7, field(5, sizes_cut_off + field(9, bytes(100))))
    with pytest.raises(UntrustedFileError, match=r"no ONNX model in m\.onnx, or a damaged one"):
        lift(Memory(data), 32, referring, Limits())
