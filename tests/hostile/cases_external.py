"""External data that leads elsewhere, lies about its size, or is no file (A, B and C)."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import tieops
from tests.hostile.case import case
from tests.hostile.models import WEIGHT, external, model, node, save, small, tensor
from tieops.untrusted.limits import Limits


def holds_the_weight(read: tieops.TiedModel) -> None:
    np.testing.assert_array_equal(read.parameters[0].numpy(), WEIGHT)


def _entries(name: str, *words: str, ok: bool = False, **entries: str) -> None:
    """Make a case of the entries of the weight's external data."""

    def build(folder: Path) -> Path:
        return save(folder, small(), external(entries))

    case(*words, name=name, ok=ok)(build)


OUTSIDE = "w lies outside of the model's folder"
_entries("a00_plain", ok=True, location="w.bin")
_entries("a00_all_said", ok=True, location="w.bin", offset="0", length="48")
_entries("a00_zeros", ok=True, location="./w.bin", offset="000", length="048")
_entries("a00_checksum", ok=True, location="w.bin", checksum="da39a3ee")
_entries("a01_dotdot", OUTSIDE, location="../secret.bin")
_entries("a02_dotdot_nested", OUTSIDE, location="sub/../../secret.bin")
_entries("a02_dotdot_inside", "a location with", location="sub/../w.bin")
_entries("a02_dot_dotdot", "a location with", location="./sub/../w.bin")
_entries("a03_absolute", OUTSIDE, location="/etc/passwd")
_entries("a03_drive", OUTSIDE, location="C:/secret.bin")
_entries("a03_drive_relative", OUTSIDE, location="c:secret.bin")
_entries("a03_stream", OUTSIDE, location="w.bin:x")
_entries("a03_stream_of_the_model", OUTSIDE, location="model.onnx::$DATA")
_entries("a03_unc", "no valid external location", location="\\\\server\\share\\w.bin")
_entries("a02_dots_and_a_space", OUTSIDE, location=".. /secret.bin")
_entries("a02_dots_and_a_space_inside", "a location with", location="sub/.. /w.bin")
_entries("a03_double_slash", OUTSIDE, location="//etc/passwd")
_entries("a03_proc", OUTSIDE, location="/proc/self/mem")
_entries("a03_url", "w", location="file:///etc/passwd")
_entries("a03_home", "missing", location="~/secret.bin")
_entries("a13_empty_location", "no valid external location", location="")
_entries("a13_folder_itself", "w", location=".")
_entries("a13_slash", "no valid external location", location="/")
_entries("a13_blank", "missing", location=" ")
_entries("a14_no_entries", "w is external data without a location")
_entries("a16_nul", "no valid external location", location="w.bin\0../secret.bin")
_entries("a17_backslash", "no valid external location", location="..\\secret.bin")
_entries("a18_trailing_slash", "w", location="w.bin/")
_entries("a19_longname", "no valid external location", location="w" * 100_000)
_entries("a19_long_parts", "missing", location="/".join(["d"] * 2000))
_entries("a19_long_part", "missing", location="w" * 4000)
_entries("a21_control", "missing", "\\x1b[31m", location="\x1b[31mw.bin")
_entries("a21_bidi", "missing", "\\u202e", location="\u202enib.w")
_entries("a22_setattr", "unknown entry", location="w.bin", __class__="x", numpy="y")
_entries("a24_odd_case", "unknown entry", Location="w.bin")
_entries("a24_odd_case_offset", "unknown entry", location="w.bin", OFFSET="4")
_entries("a24_blank_key", "unknown entry", location="w.bin", **{"offset ": "4"})
_entries("c09_missing_file", "missing", location="none.bin")

for _number, _text in {
    "b01_neg_offset": "-4", "b02_minus_zero": "-0", "b03_plus": "+4",
    "b04_offset_overflow64": str(2**64 - 8), "b04_overflow63": str(2**63),
    "b05_offset_underscore": "1_6", "b06_fullwidth": "１６", "b06_arabic": "١٦",
    "b06_superscript": "²", "b07_offset_trailing": " 16 ", "b07_leading": " 1", "b07_hex": "0x10",
    "b07_letters": "16abc", "b07_float": "16.0", "b07_exponent": "1e1", "b07_newline": "16\n",
    "b07_nul": "16\0", "b08_offset_long": "9" * 100_000, "b08_zeros": "0" * 20, "b09_empty": "",
}.items():  # fmt: skip
    _entries(_number, "w has no valid external offset", location="w.bin", offset=_text)
    _entries(_number.replace("offset", "") + "_as_length", "w has no valid external length",
             location="w.bin", length=_text)  # fmt: skip

_entries("b10_length_eof", "w lies past the end", location="w.bin", offset="4", length="48")
_entries("b10_offset_at_end", "w lies past the end", location="w.bin", offset="48")
_entries("b10_offset_largest", "w lies past the end", location="w.bin", offset=str(2**63 - 1))
_entries("b11_length_short", "external length that does not match", location="w.bin", length="8")
_entries("b12_length_long", "external length that does not match", location="w.bin", length="64")
_entries("b12_length_zero", "external length that does not match", location="w.bin", length="0")


@case("w says its external location twice")
def a20_dup_location(folder: Path) -> Path:
    twice = [("location", "w.bin"), ("location", "../secret.bin")]
    return save(folder, small(), external(twice))


@case("w says its external offset twice")
def a20_dup_offset(folder: Path) -> Path:
    twice = [("location", "w.bin"), ("offset", "0"), ("offset", "0")]
    return save(folder, small(), external(twice))


@case("too many entries")
def a23_many_keys(folder: Path) -> Path:
    entries = [("location", "w.bin"), *((f"k{i}", "v") for i in range(300_000))]
    return save(folder, small(), external(entries))


# Links


def _linked(folder: Path, target: str | Path, location: str = "w.bin") -> Path:
    path = folder / location
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(target)
    return save(folder, small(), external({"location": location}))


@case(OUTSIDE)
def a04_symlink_file(folder: Path) -> Path:
    return _linked(folder, "../secret.bin")


@case(OUTSIDE)
def a04_symlink_chain(folder: Path) -> Path:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to(folder.parent / "secret.bin")
    return _linked(folder, "a")


@case(OUTSIDE)
def a05_symlink_dir(folder: Path) -> Path:
    (folder / "sub").symlink_to("..")
    return save(folder, small(), external({"location": "sub/secret.bin"}))


@case("missing")
def a05_symlink_loop(folder: Path) -> Path:
    (folder / "a").symlink_to("w.bin")
    return _linked(folder, "a")


@case("missing")
def a05_symlink_to_itself(folder: Path) -> Path:
    return _linked(folder, "w.bin")


@case("missing")
def a05_dangling(folder: Path) -> Path:
    return _linked(folder, "nothing.bin")


@case(ok=True, holds=holds_the_weight)
def a05_symlink_inside(folder: Path) -> Path:
    (folder / "data").mkdir()
    (folder / "data" / "blob").write_bytes(WEIGHT.tobytes())
    return _linked(folder, "data/blob")


def _hard(folder: Path) -> Path:
    path = save(folder, small(), external({"location": "w.bin"}))
    os.link(folder / "w.bin", folder.parent / "other.bin")
    return path


case("hard links", "Limits(hard_links=True)", name="a07_hardlink_benign_install")(_hard)
case(
    name="a07_hardlink_allowed",
    ok=True,
    holds=holds_the_weight,
    options={"limits": Limits(hard_links=True)},
)(_hard)


@case("hard links")
def a06_hardlink_to_secret(folder: Path) -> Path:
    os.link(folder.parent / "secret.bin", folder / "w.bin")
    return save(folder, small(), external({"location": "w.bin"}, tensor(dims=(2, 4))))


def _cache(folder: Path, data: str = "../../blobs/def") -> Path:
    """Write what the Hugging Face hub's cache looks like; return the link to the model."""
    snapshot, blobs = folder / "snapshots" / "rev", folder / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    path = save(blobs, small(), external({"location": "model.onnx_data"}))
    path.rename(blobs / "abc")
    (blobs / "w.bin").rename(blobs / "def")
    (snapshot / "model.onnx").symlink_to("../../blobs/abc")
    (snapshot / "model.onnx_data").symlink_to(data)
    return snapshot / "model.onnx"


@case(ok=True, holds=holds_the_weight)
def a08_hf_cache_layout(folder: Path) -> Path:
    return _cache(folder)


@case(ok=True, holds=holds_the_weight)
def a08_hf_cache_relative(folder: Path) -> Path:
    return _cache(folder).relative_to(folder)


@case(OUTSIDE)
def a08_hf_cache_escape(folder: Path) -> Path:
    (folder / "elsewhere.bin").write_bytes(WEIGHT.tobytes())
    return _cache(folder, "../../elsewhere.bin")


@case(OUTSIDE, options={"base_dir": "snapshots/rev"})
def a08_hf_cache_of_bytes(folder: Path) -> bytes:
    """Bytes have no place of their own: only the folder that is given counts."""
    return _cache(folder).read_bytes()


@case(OUTSIDE, options={"base_dir": "elsewhere"})
def a08_hf_cache_base_dir(folder: Path) -> Path:
    """With another folder for the data, that folder counts, and not the model's own."""
    path = _cache(folder)
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "model.onnx_data").symlink_to("../blobs/def")
    return path


# What is no file


@case("not a regular file")
def a09_fifo(folder: Path) -> Path:
    os.mkfifo(folder / "w.bin")
    entries = {"location": "w.bin", "length": "48"}
    (folder / "m.onnx").write_bytes(_bytes(external(entries)))
    return folder / "m.onnx"


@case("not a regular file")
def a10_fifo_nolength(folder: Path) -> Path:
    os.mkfifo(folder / "w.bin")
    (folder / "m.onnx").write_bytes(_bytes(external({"location": "w.bin"})))
    return folder / "m.onnx"


def _bytes(weight: TensorProto) -> bytes:
    proto = small()
    proto.graph.initializer[0].CopyFrom(weight)
    return proto.SerializeToString()


@case(OUTSIDE)
def a11_devzero(folder: Path) -> Path:
    return _linked(folder, "/dev/zero")


@case("not a regular file")
def a12_directory(folder: Path) -> Path:
    (folder / "w.bin").mkdir()
    return save(folder, small(), external({"location": "w.bin"}))


@case("not a regular file")
def a12_socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("w.bin")
        (folder / "m.onnx").write_bytes(_bytes(external({"location": "w.bin"})))
    return folder / "m.onnx"


@case("is the model itself")
def a15_model_itself(folder: Path) -> Path:
    return save(folder, small(), external({"location": "m.onnx"}))


@case("is the model itself", options={"limits": Limits(hard_links=True)})
def a15_hard_link_to_the_model(folder: Path) -> Path:
    path = save(folder, small(), external({"location": "again.onnx"}))
    os.link(path, folder / "again.onnx")
    return path


# Ranges


@case("w lies past the end")
def b14_dims_bomb(folder: Path) -> Path:
    return save(folder, small(), external({"location": "w.bin"}, tensor(dims=(2**40, 4))))


@case("w lies past the end")
def b14_empty_file(folder: Path) -> Path:
    (folder / "w.bin").touch()
    return save(folder, small(), external({"location": "w.bin"}))


@case(ok=True)
def b13_no_length_longer(folder: Path) -> Path:
    (folder / "w.bin").write_bytes(WEIGHT.tobytes() + b"more")
    return save(folder, small(), external({"location": "w.bin"}))


@case("larger than the limit")
def b15_petabytes(folder: Path) -> Path:
    with (folder / "w.bin").open("wb") as file:
        file.truncate(2**43)
    return save(folder, small(), external({"location": "w.bin"}, tensor(dims=(2**39, 4))))


def the_values(path: Path) -> np.ndarray:
    return tieops.from_onnx(path).parameters[0].numpy()


@case("mapped", read=the_values)
def b15_more_than_memory(folder: Path) -> Path:
    with (folder / "w.bin").open("wb") as file:
        file.truncate(2**41)
    return save(folder, small(), external({"location": "w.bin"}, tensor(dims=(2**37, 4))))


def _pair(folder: Path, second: str) -> Path:
    proto = model("(float[n, 4] x) => (float[n, 4] y) { h = MatMul(x, a)  y = MatMul(h, b) }")
    for name, offset in (("a", "0"), ("b", second)):
        entries = {"location": "w.bin", "offset": offset, "length": "64"}
        proto.graph.initializer.append(external(entries, tensor(name, (4, 4))))
    (folder / "w.bin").write_bytes(np.random.default_rng(0).random(24, np.float32).tobytes())
    return save(folder, proto)


def is_one_tie(read: tieops.TiedModel) -> None:
    assert [str(each.evidence) for each in read.duplicates] == ["storage"]
    assert read.ledger.stored_bytes == 64


def is_no_tie(read: tieops.TiedModel) -> None:
    assert not read.duplicates
    assert read.ledger.stored_bytes == 128


case(name="b16_alias", ok=True, holds=is_one_tie)(lambda folder: _pair(folder, "0"))
case(name="b17_partial_overlap", ok=True, holds=is_no_tie)(lambda folder: _pair(folder, "8"))


@case(ok=True)
def b18_two_types_one_range(folder: Path) -> Path:
    """FLOAT and INT32 views of one range are no tie."""
    proto = model("(float[n, 4] x) => (float[n, 4] y, int32[4, 4] z)"
                  "{ y = MatMul(x, a)  z = Identity(b) }")  # fmt: skip
    for name, kind in (("a", TensorProto.FLOAT), ("b", TensorProto.INT32)):
        made = external({"location": "w.bin"}, tensor(name, (4, 4)))
        made.data_type = kind
        proto.graph.initializer.append(made)
    (folder / "w.bin").write_bytes(np.random.default_rng(0).random(16, np.float32).tobytes())
    return save(folder, proto)


@case("w has external strings")
def b19_ext_string(folder: Path) -> Path:
    made = external({"location": "w.bin"})
    made.data_type = TensorProto.STRING
    return save(folder, small(), made)


@case("both external and inline data")
def b20_ext_and_raw(folder: Path) -> Path:
    return save(folder, small(), external({"location": "w.bin"}, tensor(raw_data=WEIGHT.tobytes())))


@case("both external and inline data")
def b20_ext_and_floats(folder: Path) -> Path:
    return save(folder, small(), external({"location": "w.bin"}, tensor(float_data=[0.0] * 12)))


@case("says that its data is inline")
def b21_entries_of_inline_data(folder: Path) -> Path:
    made = external({"location": "w.bin"}, tensor(raw_data=WEIGHT.tobytes()))
    made.data_location = TensorProto.DEFAULT
    return save(folder, small(), made)


@case(ok=True)
def b22_no_elements(folder: Path) -> Path:
    (folder / "w.bin").touch()
    proto = model("(float[n, 3] x) => (float[n, 0] y) { y = MatMul(x, w) }")
    proto.graph.initializer.append(external({"location": "w.bin"}, tensor(dims=(3, 0))))
    return save(folder, proto)


# Elsewhere in the model

SECRET = {"location": "../secret.bin", "length": "16"}


def _constant() -> onnx.NodeProto:
    made = node("Constant", "", "c")
    made.attribute.append(helper.make_attribute("value", external(SECRET, tensor("c", (4,)))))
    return made


def _with_constant(text: str, body: onnx.GraphProto | onnx.FunctionProto | None = None,
                   proto: onnx.ModelProto | None = None) -> onnx.ModelProto:  # fmt: skip
    proto = model(text) if proto is None else proto
    nodes = proto.graph.node if body is None else body.node
    rest = [onnx.NodeProto.FromString(each.SerializeToString()) for each in nodes]
    del nodes[:]
    nodes.extend([_constant(), *rest])
    return proto


@case("c lies outside of the model's folder")
def c03_const_ext(folder: Path) -> Path:
    return save(folder, _with_constant("(float[4] x) => (float[4] y) { y = Add(x, c) }"))


@case("c lies outside of the model's folder")
def c04_branch_ext(folder: Path) -> Path:
    proto = model("""(bool b) => (float[4] y) { y = If(b) <
        then_branch = t () => (float[4] p) { p = Identity(c) },
        else_branch = e () => (float[4] q) { q = Constant<value = float[4] {1, 2, 3, 4}>() }> }""")
    return save(folder, _with_constant("", proto.graph.node[0].attribute[0].g, proto))


@case("v lies outside of the model's folder")
def c04_branch_initializer(folder: Path) -> Path:
    proto = model("""(bool b) => (float[4] y) { y = If(b) <
        then_branch = t () => (float[4] p) { p = Identity(v) },
        else_branch = e () => (float[4] q) { q = Constant<value = float[4] {1, 2, 3, 4}>() }> }""")
    branch = proto.graph.node[0].attribute[0].g
    branch.initializer.append(external(SECRET, tensor("v", (4,))))
    return save(folder, proto)


@case("c lies outside of the model's folder")
def c05_function_ext(folder: Path) -> Path:
    proto = model("(float[4] x) => (float[4] y) { y = local.f(x) }",
                  '<opset_import: ["" : 20], domain: "local"> f (a) => (b) { b = Add(a, c) }',
                  '"" : 20, "local" : 1')  # fmt: skip
    return save(folder, _with_constant("", proto.functions[0], proto))


@case("lies outside of the model's folder")
def c05_tensors_attribute(folder: Path) -> Path:
    proto = model("(float[4] x) => (float[4] y) { y = other.Op(x) }", "", '"" : 20, "other" : 1')
    tensors = [tensor("i", (1,), float_data=[1.0]), external(SECRET, tensor("c", (4,)))]
    proto.graph.node[0].attribute.append(helper.make_attribute("tensors", tensors))
    return save(folder, proto)


@case("sparse")
def c02_const_sparse_ext(folder: Path) -> Path:
    sparse = helper.make_sparse_tensor(
        external(SECRET, tensor("c", (4,))),
        TensorProto(data_type=TensorProto.INT64, dims=[4], int64_data=[0, 1, 2, 3]),
        [4],
    )
    proto = model("(float[4] x) => (float[4] y) { y = Add(x, c) }")
    made = node("Constant", "", "c")
    made.attribute.append(helper.make_attribute("sparse_value", sparse))
    proto.graph.node.insert(0, made)
    return save(folder, proto)


@case("sparse")
def c02_sparse_initializer_ext(folder: Path) -> Path:
    proto = small()
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            external(SECRET, tensor("c", (4,))),
            TensorProto(data_type=TensorProto.INT64, dims=[4], int64_data=[0, 1, 2, 3]),
            [4],
        )
    )
    return save(folder, proto)


@case("training_info")
def c06_training_info_ext(folder: Path) -> Path:
    proto = small()
    info = proto.training_info.add()
    info.initialization.initializer.append(external(SECRET, tensor("c", (4,))))
    return save(folder, proto)


@case("missing")
def c08_missing_file_unused(folder: Path) -> Path:
    proto = small()
    proto.graph.initializer.append(external({"location": "none.bin"}, tensor("unused", (4,))))
    return save(folder, proto)


@case("external data as a default")
def c10_function_default_ext(folder: Path) -> Path:
    proto = model("(float[4] x) => (float[4] y) { y = local.f(x) }",
                  '<opset_import: ["" : 20], domain: "local"> f (a) => (b) '
                  "{ c = Constant() b = Add(a, c) }",
                  '"" : 20, "local" : 1')  # fmt: skip
    function = proto.functions[0]
    default = helper.make_attribute("which", external(SECRET, tensor("c", (4,))))
    function.attribute_proto.append(default)
    value = function.node[0].attribute.add(name="value", ref_attr_name="which")
    value.type = onnx.AttributeProto.TENSOR
    return save(folder, proto)


@case(ok=True, holds=holds_the_weight)
def a22_prepacked_by_onnx_runtime(folder: Path) -> Path:
    entries = {"location": "w.bin", "offset": "0", "length": "48", "prepacked_0": "48|64|0"}
    return save(folder, small(), external(entries))
