"""Files that are no models, or more than one (G of the reference)."""

from __future__ import annotations

import gzip
import os
import pickle
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from onnx import helper

import tieops
from tests.hostile.case import case
from tests.hostile.models import message, model, save, small


def _file(folder: Path, content: bytes, name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@case("m.onnx is empty")
def g01_empty(folder: Path) -> Path:
    return _file(folder, b"")


@case("Git LFS pointer", "git lfs pull")
def g02_lfs(folder: Path) -> Path:
    return _file(folder, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


@case("HTML page")
def g03_html(folder: Path) -> Path:
    return _file(folder, b"<!DOCTYPE html><html></html>")


@case("m.onnx")
def g04_truncated(folder: Path) -> Path:
    data = small().SerializeToString()
    return _file(folder, data[: len(data) // 2])


@case("no ONNX model")
def g06_random(folder: Path) -> Path:
    return _file(folder, random.Random(0).randbytes(4096))


@case("zip")
def g07_zip(folder: Path) -> Path:
    return _file(folder, b"PK\x03\x04" + bytes(100))


@case("gzip")
def g08_gzip(folder: Path) -> Path:
    return _file(folder, gzip.compress(small().SerializeToString()))


@case("pickle")
def g08_pickle(folder: Path) -> Path:
    return _file(folder, pickle.dumps({"w": 1}))


@case("is not a regular file")
def g09_fifo(folder: Path) -> Path:
    os.mkfifo(folder / "m.onnx")
    return folder / "m.onnx"


@case("directory")
def g10_directory(folder: Path) -> Path:
    (folder / "m.onnx").mkdir()
    return folder / "m.onnx"


@case(ok=True)
def g00_a_model(folder: Path) -> Path:
    return save(folder, small())


# Other kinds of files

for _name, _content, _words in (
    ("g02_lfs_alone", b"version https://git-lfs", "git lfs pull"),
    ("g03_html_lower", b"<html><body>404</body></html>", "HTML page"),
    ("g03_html_after_blanks", b"\r\n\r\n  <!doctype HTML>", "HTML page"),
    ("g03_html_bom", b"\xef\xbb\xbf<HTML>", "HTML page"),
    ("g03_xml", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "HTML page"),
    ("g03_json", b'{"error": "not found"}', "JSON"),
    ("g07_empty_zip", b"PK\5\6" + bytes(18), "zip"),
    ("g08_safetensors", (2).to_bytes(8, "little") + b"{}", "safetensors"),
    ("g08_bzip2", b"BZh91AY&SY", "bzip2"),
    ("g08_xz", b"\xfd7zXZ\0\0\4", "xz"),
    ("g08_zstd", b"\x28\xb5\x2f\xfd\0\0", "Zstandard"),
    ("g08_hdf5", b"\x89HDF\r\n\x1a\n", "HDF5"),
    ("g08_numpy", b"\x93NUMPY\1\0", "numpy"),
    ("g08_tflite", b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
    ("g08_gguf", b"GGUF\3\0\0\0", "GGUF"),
    ("g08_ort", b"\x1c\0\0\0ORTMxxxx", "ONNX Runtime's own format"),
    ("g08_text_form", b'<ir_version: 10, opset_import: ["" : 20]> g () => () {}', "parse_model"),
    ("g08_text", b"hello, this is no model\n", "no ONNX model"),
    ("g08_zeros", bytes(4096), "no ONNX model"),
    ("g08_ones", b"\xff" * 4096, "no ONNX model"),
    ("g08_one_byte", b"\x08", "no ONNX model"),
    ("g08_only_a_version", b"\x08\x0a", "no graph"),
):
    case(_words, name=_name)(lambda folder, content=_content: _file(folder, content))


@case("larger than one protobuf message")
def g08_3_gib(folder: Path) -> Path:
    with (folder / "m.onnx").open("wb") as file:
        file.truncate(3 << 30)
    return folder / "m.onnx"


@case("no ONNX model")
def g08_sparse_zeros(folder: Path) -> Path:
    with (folder / "m.onnx").open("wb") as file:
        file.truncate(100 << 20)
    return folder / "m.onnx"


@case("is not a regular file")
def g09_device(_: Path) -> str:
    return "/dev/zero"


@case("is not a regular file")
def g09_link_to_a_device(folder: Path) -> Path:
    (folder / "m.onnx").symlink_to("/dev/zero")
    return folder / "m.onnx"


@case("is empty")
def g09_memory_of_the_process(_: Path) -> str:
    return "/proc/self/mem"


@case("cannot open", "m.onnx")
def g11_link_to_itself(folder: Path) -> Path:
    (folder / "m.onnx").symlink_to("m.onnx")
    return folder / "m.onnx"


@case("cannot open", "null")
def g11_nul_in_the_path(_: Path) -> str:
    return "m\0.onnx"


@case("cannot open")
def g11_long_path(_: Path) -> str:
    return "m" * 100_000


@case("cannot open", "\\x1b[31m")
def g11_control_in_the_path(_: Path) -> str:
    return "\x1b[31mm.onnx"


@case("\\x1b[31m", "is empty")
def g11_control_in_a_name_that_is_there(folder: Path) -> Path:
    return _file(folder, b"", "\x1b[31mm.onnx")


@case("takes: a path")
def g11_no_source(_: Path) -> int:
    return 7


# More than one model, and what protobuf takes without a word


@case("the field ir_version of a ModelProto twice")
def g12_concat(folder: Path) -> Path:
    return _file(folder, small().SerializeToString() * 2)


@case("the field graph of a ModelProto twice")
def g13_merge_graph(folder: Path) -> Path:
    other = message(5, small().graph.initializer[0].SerializeToString())
    return _file(folder, small().SerializeToString() + message(7, other))


@case("the field data_type of a TensorProto twice")
def g13_two_data_types(folder: Path) -> Path:
    weight = small().graph.initializer[0].SerializeToString() + b"\x10\x07"
    return _file(folder, _with_weight(weight))


@case("the field raw_data of a TensorProto twice")
def g13_two_raw_data(folder: Path) -> Path:
    weight = small().graph.initializer[0].SerializeToString() + message(9, bytes(48))
    return _file(folder, _with_weight(weight))


@case("the field dim_param of a Dimension twice")
def g13_size_and_name(folder: Path) -> Path:
    size = message(1, b"\x08\x02" + message(2, b"n"))
    kind = message(2, message(1, b"\x08\x01" + message(2, size)))
    return _file(folder, b"\x08\x0a" + message(7, message(11, message(1, b"x") + kind)))


@case("does not know", "field: 999", "of a: ModelProto")
def g14_unknown_field(folder: Path) -> Path:
    return _file(folder, small().SerializeToString() + message(999, b"hidden"))


@case("does not know", "of a: TensorProto")
def g14_unknown_in_a_tensor(folder: Path) -> Path:
    weight = small().graph.initializer[0].SerializeToString() + message(999, b"hidden")
    return _file(folder, _with_weight(weight))


@case("does not know")
def g14_unknown_in_memory(_: Path) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(small().SerializeToString() + message(999, b"hidden"))


@case("m.onnx", "field")
def g14_group(folder: Path) -> Path:
    """A group, which protobuf skips."""
    return _file(folder, small().SerializeToString() + b"\xbb\x3e\xbc\x3e")


@case("m.onnx")
def g15_number_without_end(folder: Path) -> Path:
    return _file(folder, small().SerializeToString() + b"\x28" + b"\xff" * 20)


@case("m.onnx")
def g15_length_without_end(folder: Path) -> Path:
    return _file(folder, small().SerializeToString() + b"\x12" + b"\xff" * 9 + b"\1")


@case(ok=True)
def g16_numbers_packed_and_not(folder: Path) -> Path:
    """Both ways to write a list of numbers are right."""
    weight = message(8, b"w") + b"\x10\x01" + b"\x08\x03" + message(1, b"\4")
    weight += message(9, bytes(48))
    return _file(folder, _with_weight(weight))


def _with_weight(weight: bytes) -> bytes:
    proto = small()
    del proto.graph.initializer[:]
    graph = proto.graph.SerializeToString() + message(5, weight)
    proto.ClearField("graph")
    return proto.SerializeToString() + message(7, graph)


# All at once: no outcome but a model or an error


def _read_all(files: Iterable[bytes]) -> str:
    """Read many files from memory, and one by one whatever is left of them."""
    outcomes = {"read": 0, "refused": 0}
    for data in files:
        try:
            str(tieops.from_onnx(data))
        except tieops.TieopsError:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
    return f"{outcomes['read']} read, {outcomes['refused']} refused"


def all_refused(text: str) -> None:
    """A piece of a model may be one: it lacks its opset import then, so none is."""
    assert text.startswith("0 read"), text


def _flipped(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            yield bytes(changed)


@case(ok=True, holds=all_refused, read=_read_all)
def g04_truncated_anywhere(_: Path) -> list[bytes]:
    """Cut at every byte. What is cut between two fields at the top lacks a field that must be."""
    data = small().SerializeToString()
    return [data[:end] for end in range(len(data))]


@case(ok=True, read=_read_all, clock_s=60)
def g17_every_bit_flipped(_: Path) -> list[bytes]:
    return list(_flipped(small().SerializeToString()))


@case(ok=True, read=_read_all, clock_s=60)
def g17_every_bit_of_another(_: Path) -> list[bytes]:
    text = "(float[4] x) => (float[2] y) { h = Relu(x)  y = Slice(h, a, b) }"
    proto = model(text)
    for name in "ab":
        proto.graph.initializer.append(helper.make_tensor(name, 7, [1], [ord(name) - 96]))
    return list(_flipped(proto.SerializeToString()))
