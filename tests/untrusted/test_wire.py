"""protobuf's numbers and lists of numbers: read back as they were written, and as protobuf does."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieops.untrusted.wire import VARINT, VARINT_BYTES, more_of, read_varint, varint


@given(number=st.integers(0, 2**64 - 1), before=st.binary(max_size=3), after=st.binary(max_size=3))
def test_a_number_is_read_as_it_was_written(number: int, before: bytes, after: bytes) -> None:
    written = varint(number)
    found = read_varint(before + written + after, len(before))
    assert found == (number, len(before) + len(written))
    assert len(written) <= VARINT_BYTES


@given(st.integers(0, 2**63 - 1))
def test_protobuf_reads_what_is_written(number: int) -> None:
    model = onnx.ModelProto.FromString(varint(1 << 3 | VARINT) + varint(number))
    assert model.ir_version == number


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 9])
def test_a_number_that_is_cut_off(data: bytes) -> None:
    with pytest.raises(IndexError):
        read_varint(data, 0)


def test_a_number_without_end() -> None:
    with pytest.raises(ValueError, match="more than 64 bits"):
        read_varint(b"\xff" * 11, 0)


@pytest.mark.parametrize(
    ("name", "values"),
    [("ints", [0, -1, 2**40, 127, 128]), ("floats", [0.5, float("nan"), 10.0])],
)
def test_a_list_is_matched_to_its_end(name: str, values: list[float]) -> None:
    attribute = onnx.AttributeProto()
    getattr(attribute, name).extend(values)
    data = attribute.SerializeToString()
    key, at = read_varint(data, 0)
    matched = more_of(key).match(data + varint(key ^ 8) + bytes(9))
    assert at == 1
    assert matched is not None
    assert matched.end() == len(data)
