"""From ONNX: every kind of source, external data left on disk, and broken files refused by name."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import tieops
from tieops.errors import PreconditionError, TieopsError, UnsupportedModelError, UntrustedFileError

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def small() -> onnx.ModelProto:
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
        g (float[n, 3] x) => (float[n, 4] y) { y = MatMul(x, w) }""")
    proto.graph.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    return proto


def refused(source: object, error: type[TieopsError], *words: str, **options: object) -> str:
    with pytest.raises(error) as caught:
        tieops.from_onnx(source, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert all(word in text for word in words), text
    return text


# Sources


def test_a_path_bytes_a_proto_and_a_graph_are_the_same_model(tmp_path):
    proto = small()
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    graph = onnx_ir.from_proto(proto)
    sources = (path, str(path), proto.SerializeToString(), proto, graph)
    texts = {str(tieops.from_onnx(source)) for source in sources}
    assert len(texts) == 1
    assert "w: f32[3,4]" in texts.pop() or str(tieops.from_onnx(path).parameters) == "w: f32[3,4]"


def test_the_source_is_left_alone():
    proto = small()
    before = proto.SerializeToString(deterministic=True)
    model = tieops.from_onnx(proto)
    tieops.tie(model)
    assert proto.SerializeToString(deterministic=True) == before
    graph = onnx_ir.from_proto(proto)
    imported = tieops.from_onnx(graph)
    graph.graph.remove(graph.graph.node(0))
    assert len(list(imported.ir.graph.all_nodes())) == 1


# External data


def external(folder: Path, entries: dict[str, str] | None = None, size: int = 48) -> Path:
    """Write a model whose one weight is external, with these entries instead of the right ones."""
    proto = small()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (entries if entries is not None else {"location": "w.bin"}).items():
        tensor.external_data.add(key=key, value=value)
    (folder / "w.bin").write_bytes(WEIGHT.tobytes()[:size].ljust(size, b"\0"))
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_external_data_is_mapped_and_not_read(tmp_path):
    elements = 32 << 20
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
        g (int64[n] x) => (float[n, 1024] y) { y = Gather(w, x) }""")
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[elements // 1024, 1024])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", "offset": "0", "length": str(elements * 4)}.items():
        tensor.external_data.add(key=key, value=value)
    proto.graph.initializer.append(tensor)
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(elements * 4)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    before = _resident_bytes()
    model = tieops.from_onnx(path)
    str(model)
    (parameter,) = model.parameters
    assert _resident_bytes() - before < elements  # a quarter of the weights
    assert isinstance(parameter.tensor, onnx_ir.ExternalTensor)
    assert not parameter.numpy().flags.owndata
    assert model.ledger.stored_bytes == elements * 4


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_external_data_of_bytes_needs_a_folder(tmp_path):
    data = external(tmp_path).read_bytes()
    refused(data, PreconditionError, "w is external data", "fix: pass base_dir=")
    model = tieops.from_onnx(data, base_dir=tmp_path)
    np.testing.assert_array_equal(model.parameters[0].numpy(), WEIGHT)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (moved / "m.onnx").write_bytes(data)
    refused(moved / "m.onnx", UntrustedFileError, "the external data of w is missing", "w.bin")
    assert tieops.from_onnx(moved / "m.onnx", base_dir=tmp_path)


def test_two_tensors_on_one_range_are_a_tie(tmp_path):
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
        g (float[n, 4] x) => (float[n, 4] y) { h = MatMul(x, a)  y = MatMul(h, b) }""")
    for name in "ab":
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4, 4])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "w.bin", "offset": "0", "length": "64"}.items():
            tensor.external_data.add(key=key, value=value)
        proto.graph.initializer.append(tensor)
    (tmp_path / "w.bin").write_bytes(np.random.default_rng(0).random(16, np.float32).tobytes())
    model = tieops.from_onnx(proto, base_dir=tmp_path)
    assert model.ledger.stored_bytes == 64
    assert [str(each.evidence) for each in model.duplicates] == ["storage"]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({}, ["w", "external data without a location"]),
        ({"location": ""}, ["w", "no valid external location"]),
        ({"location": "w.bin\0x"}, ["w", "no valid external location"]),
        ({"location": "..\\w.bin"}, ["w", "no valid external location"]),
        ({"location": "w" * 5000}, ["w", "no valid external location"]),
        ({"location": "../w.bin"}, ["w lies outside of the model's folder", "../w.bin"]),
        ({"location": "sub/../../w.bin"}, ["w lies outside of the model's folder"]),
        ({"location": "/etc/passwd"}, ["w lies outside of the model's folder", "/etc/passwd"]),
        ({"location": "none.bin"}, ["the external data of w is missing", "none.bin"]),
        ({"location": "."}, ["w"]),
        ({"location": "w.bin", "offset": "-4"}, ["w", "offset: -4"]),
        ({"location": "w.bin", "offset": "1_6"}, ["w", "offset: 1_6"]),
        ({"location": "w.bin", "offset": " 16 "}, ["w", "no valid external offset"]),
        ({"location": "w.bin", "offset": "0x10"}, ["w", "no valid external offset"]),
        ({"location": "w.bin", "offset": "１６"}, ["w", "no valid external offset"]),
        ({"location": "w.bin", "offset": "9" * 100_000}, ["w", "no valid external offset"]),
        ({"location": "w.bin", "offset": str(2**64 - 8)}, ["w"]),
        ({"location": "w.bin", "offset": "4"}, ["w lies past the end", "4..52", "48 bytes"]),
        ({"location": "w.bin", "length": "-1"}, ["w", "no valid external length"]),
        ({"location": "w.bin", "length": "8"}, ["w", "length: 8", "f32[3,4], 48 bytes"]),
        ({"location": "w.bin", "length": "64"}, ["w", "length: 64", "48 bytes"]),
    ],
    ids=lambda value: repr([*value.values()])[:40] if isinstance(value, dict) else "",
)
def test_external_nonsense_is_refused(entries, words, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    refused(external(folder, entries), UntrustedFileError, *words)


def test_external_data_that_is_said_twice_is_refused(tmp_path):
    proto = onnx.load(external(tmp_path), load_external_data=False)
    proto.graph.initializer[0].external_data.add(key="location", value="other.bin")
    refused(proto, UntrustedFileError, "w says its external location twice", base_dir=tmp_path)


def test_external_and_inline_data_together_are_refused(tmp_path):
    proto = onnx.load(external(tmp_path), load_external_data=False)
    proto.graph.initializer[0].raw_data = WEIGHT.tobytes()
    refused(proto, UntrustedFileError, "w has both external and inline data", base_dir=tmp_path)


def test_external_data_that_is_too_short_is_refused(tmp_path):
    text = refused(external(tmp_path, size=40), UntrustedFileError, "w lies past the end", "w.bin")
    assert "fix: copy the data file again" in text


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_link_out_of_the_folder_is_refused(linked, tmp_path):
    folder, outside = tmp_path / "model", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "w.bin").write_bytes(WEIGHT.tobytes())
    path = external(folder, {"location": "w.bin" if linked == "file" else "sub/w.bin"})
    (folder / "w.bin").unlink()
    if linked == "file":
        (folder / "w.bin").symlink_to(outside / "w.bin")
    else:
        (folder / "sub").symlink_to(outside)
    refused(path, UntrustedFileError, "w lies outside of the model's folder", "fix: copy the data")


def test_a_link_within_the_folder_is_followed(tmp_path):
    path = external(tmp_path)
    (tmp_path / "w.bin").rename(tmp_path / "blob")
    (tmp_path / "w.bin").symlink_to("blob")
    np.testing.assert_array_equal(tieops.from_onnx(path).parameters[0].numpy(), WEIGHT)


def test_a_fifo_in_the_place_of_external_data_is_refused_at_once(tmp_path):
    path = external(tmp_path)
    (tmp_path / "w.bin").unlink()
    os.mkfifo(tmp_path / "w.bin")
    refused(path, UntrustedFileError, "the external data of w is not a regular file", "w.bin")


def test_external_data_of_functions_and_constants_is_checked_too(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    text = """<ir_version: 10, opset_import: ["" : 20, "local": 1]>
        g (float[4] x) => (float[4] y) { %s }
        <opset_import: ["" : 20], domain: "local"> f (a) => (b) { %s }"""
    body = "c = Constant<value = float[4] {1, 2, 3, 4}>() %s = Add(%s, c)"
    in_function = parser.parse_model(text % ("y = local.f(x)", body % ("b", "a")))
    in_graph = parser.parse_model(text % (body % ("y", "x"), "b = Neg(a)"))
    for proto, node in (
        (in_function, in_function.functions[0].node[0]),
        (in_graph, in_graph.graph.node[0]),
    ):
        tensor = node.attribute[0].t
        tensor.Clear()
        tensor.CopyFrom(TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[4]))
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../secret.bin")
        (folder / "m.onnx").write_bytes(proto.SerializeToString())
        refused(folder / "m.onnx", UntrustedFileError, "outside of the model's folder")


# What would be lost or read in two ways


def sparse(proto: onnx.ModelProto) -> None:
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 4]))


def training(proto: onnx.ModelProto) -> None:
    proto.training_info.add().algorithm.name = "step"


def twice(what: Callable[[onnx.ModelProto], object]) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        items = what(proto)
        items.add().CopyFrom(items[0])  # type: ignore[attr-defined, index]

    return change


def functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    function = helper.make_function(
        "local", "f", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])],
        [helper.make_opsetid("", 20)],
    )  # fmt: skip
    proto.functions.extend([function])
    return proto


def nameless(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.add().CopyFrom(numpy_helper.from_array(WEIGHT, ""))


def weight(**fields: object) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 4])
        for key, value in fields.items():
            if isinstance(value, list):
                del getattr(tensor, key)[:]
                getattr(tensor, key).extend(value)
            elif key == "segment":
                tensor.segment.begin = 0
            else:
                setattr(tensor, key, value)
        proto.graph.initializer[0].CopyFrom(tensor)

    return change


LOST = {
    "sparse": (sparse, ["sparse initializers", "s", "fix: store them dense"]),
    "training": (training, ["training_info", "fix: remove it"]),
    "initializer": (twice(lambda p: p.graph.initializer), ["duplicate", "initializer", "w"]),
    "input": (twice(lambda p: p.graph.input), ["duplicate", "input", "x"]),
    "opset": (twice(lambda p: p.opset_import), ["duplicate opset import: ai.onnx"]),
    "function": (twice(lambda p: functions(p).functions), ["duplicate", "local::f"]),
    "nameless": (nameless, ["initializers without a name", "nameless: 1"]),
    "no opset": (lambda proto: proto.ClearField("opset_import"), ["imports no opset"]),
    "output twice": (
        lambda p: p.graph.node.add().CopyFrom(helper.make_node("Neg", ["x"], ["y"])),
        ["y"],
    ),
}


@pytest.mark.parametrize("case", LOST)
def test_what_would_be_lost_is_refused_by_name(case):
    change, words = LOST[case]
    proto = small()
    change(proto)
    refused(proto, UnsupportedModelError, *words)
    refused(proto.SerializeToString(), UnsupportedModelError, *words)


RAW = WEIGHT.tobytes()
WRONG = {
    "raw too short": (weight(raw_data=RAW[:-1]), ["bytes stored: 47", "bytes needed: 48"]),
    "raw too long": (weight(raw_data=RAW + b"\0"), ["bytes stored: 49", "bytes needed: 48"]),
    "no data": (weight(), ["w", "values stored: 0", "values needed: 12"]),
    "values too few": (weight(float_data=[1.0] * 11), ["w", "values stored: 11"]),
    "negative": (weight(dims=[-3, -4], raw_data=RAW), ["w has no valid shape"]),
    "wraps": (weight(dims=[2**32, 2**32]), ["w"]),
    "unknown dtype": (weight(data_type=999, raw_data=RAW), ["w has the unknown data type 999"]),
    "segment": (weight(raw_data=RAW, segment=True), ["w has no valid shape"]),
    "int4 too short": (
        weight(data_type=TensorProto.INT4, dims=[5], raw_data=b"\1\2"),
        ["w: int4[5]", "bytes stored: 2", "bytes needed: 3"],
    ),
    "bomb": (weight(dims=[2**40], raw_data=RAW), ["stored: 48", "bytes needed: 4398046511104"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_tensor_of_another_size_than_it_says_is_refused(case):
    change, words = WRONG[case]
    proto = small()
    change(proto)
    refused(proto, UntrustedFileError, *words)


def test_wrong_tensors_are_found_inside_of_branches_and_constants():
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
        g (bool c) => (float[2] y) { y = If(c) <
            then_branch = t () => (float[2] a) { a = Constant<value = float[2] {1, 2}>() },
            else_branch = e () => (float[2] b) <float[2] v = {1, 2}> { b = Identity(v) }> }""")
    then_branch, else_branch = (attribute.g for attribute in proto.graph.node[0].attribute)
    tieops.from_onnx(proto)
    constant = then_branch.node[0].attribute[0].t
    saved = constant.SerializeToString()
    del constant.float_data[1:]
    constant.name = "inside"
    refused(proto, UntrustedFileError, "inside holds other data")
    constant.ParseFromString(saved)
    del else_branch.initializer[0].float_data[1:]
    refused(proto, UntrustedFileError, "v holds other data", "values stored: 1")
    else_branch.initializer[0].float_data.append(2)
    else_branch.initializer.add().CopyFrom(else_branch.initializer[0])
    refused(proto, UnsupportedModelError, "duplicate initializer of e: v")


def test_special_values_come_through_bit_for_bit():
    bits = np.array([0x7FC00001, 0x7FC00002, 0x80000000, 0, 0x7F800000, 0xFF800000, 1, 0xFFFFFFFF,
                     0x7F800001, 2, 3, 4], np.uint32)  # fmt: skip
    proto = small()
    proto.graph.initializer[0].raw_data = bits.tobytes()
    model = tieops.from_onnx(proto)
    assert model.parameters[0].tensor.tobytes() == bits.tobytes()


# Files that are no models

RANDOM = random.Random(0).randbytes(4096)
FILES = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "html": (b"<!DOCTYPE html><html></html>", "HTML page"),
    "lower html": (b"<html><body>404</body></html>", "HTML page"),
    "zip": (b"PK\x03\x04" + bytes(100), "from_torch"),
    "empty": (b"", "is empty"),
    "random": (RANDOM, "no ONNX model"),
    "text": (b"hello, this is no model\n", "no ONNX model"),
    "truncated": (small().SerializeToString()[:-20], "m.onnx"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_model_is_refused(case, tmp_path):
    content, words = FILES[case]
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    text = refused(path, UntrustedFileError, words)
    assert "m.onnx" in text


def test_a_missing_file_and_a_fifo_are_refused(tmp_path):
    refused(tmp_path / "none.onnx", UntrustedFileError, "cannot open", "none.onnx", "fix: ")
    fifo = tmp_path / "fifo.onnx"
    os.mkfifo(fifo)
    refused(fifo, UntrustedFileError, "fifo.onnx is not a regular file")


def test_bytes_without_a_graph_are_refused():
    refused(b"", UntrustedFileError, "has no graph")
    refused(onnx.ModelProto(ir_version=10), UntrustedFileError, "has no graph")


# Functions


def calls(bodies: dict[str, str]) -> onnx.ModelProto:
    """Return a model of functions, each a chain of calls: ``{"f": "gg"}`` calls g twice."""
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
        g (float[n] x) => (float[n] y) { y = local.f(x) }""")
    for name, body in bodies.items():
        values = [f"v{i}" for i in range(len(body) + 1)]
        nodes = [
            helper.make_node(
                "Neg" if callee == "-" else callee,
                [a],
                [b],
                domain="" if callee == "-" else "local",
            )
            for callee, a, b in zip(body, values[:-1], values[1:], strict=True)
        ]
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
        proto.functions.append(
            helper.make_function("local", name, [values[0]], [values[-1]], nodes, opsets)
        )
    return proto


def test_functions_may_call_functions():
    assert len(tieops.from_onnx(calls({"f": "-h-", "h": "-"})).ir.functions) == 2


@pytest.mark.parametrize("bodies", [{"f": "f"}, {"f": "h", "h": "f"}, {"f": "-h", "h": "hh"}])
def test_functions_in_a_circle_are_refused(bodies):
    refused(calls(bodies), UnsupportedModelError, "calls itself", "calls: ", "fix: ")


def test_a_function_bomb_is_refused_at_once():
    letters = [chr(ord("f") + i) for i in range(40)]
    bodies = {one: other * 2 for one, other in zip(letters, [*letters[1:], "-"], strict=True)}
    refused(calls(bodies), UnsupportedModelError, "calls of 40 functions", "fix: ")


def test_texts_have_three_parts_and_no_control_characters():
    proto = small()
    proto.graph.initializer[0].name = proto.graph.node[0].input[1] = "w\x1b[31m"
    proto.graph.initializer.add().CopyFrom(proto.graph.initializer[0])
    text = refused(proto, UnsupportedModelError, "duplicate", "\\x1b[31m")
    what, facts, fix = text.splitlines()
    assert text.isprintable() or "\x1b" not in text
    assert facts.startswith("  repeated: ")
    assert fix.startswith("  fix: ")
    assert what.startswith("duplicate")


def test_a_folder_is_refused(tmp_path):
    refused(tmp_path, UntrustedFileError, str(tmp_path), "not a regular file")


def test_an_input_that_nothing_produces_is_refused():
    """The initializer that it reads is gone."""
    proto = small()
    proto.graph.ClearField("initializer")
    refused(proto, UnsupportedModelError, "w")


def test_values_stored_twice_are_refused():
    """Raw data and float_data, which readers choose between differently."""
    proto = small()
    weight(raw_data=RAW, float_data=[0.0] * 12)(proto)
    refused(proto, UntrustedFileError, "w")


def test_values_in_the_field_of_another_dtype_are_refused():
    """Integers of a FLOAT tensor."""
    proto = small()
    weight(int64_data=[1] * 12)(proto)
    refused(proto, UntrustedFileError, "w")


UNSORTED = """<ir_version: 10, opset_import: ["" : 20]>
g (bool c, float[2] x) => (float[2] y) {
  y = If<then_branch = a () => (float[2] p) { p = Relu(h) },
         else_branch = b () => (float[2] q) { q = Abs(r)  r = Neg(h) }>(c)
  h = Neg(x) }"""


def test_nodes_that_come_before_what_they_read_are_sorted() -> None:
    """ONNX Runtime runs such files; onnx_ir cannot copy them."""
    model = tieops.from_onnx(parser.parse_model(UNSORTED))
    onnx.checker.check_model(onnx_ir.to_proto(model.ir))
    for taken, want in ((True, [0.0, 2.0]), (False, [1.0, 2.0])):
        sess = tieops.session(model, "cpu")
        assert sess.run({"c": np.array(taken), "x": [1.0, -2.0]})["y"].tolist() == want


def test_nodes_that_read_each_other_are_refused() -> None:
    proto = parser.parse_model(UNSORTED.replace("h = Neg(x)", "h = Neg(y)"))
    with pytest.raises(UnsupportedModelError, match="has a cycle"):
        tieops.from_onnx(proto)


def test_an_unsorted_graph_of_onnx_ir_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="not sorted"):
        tieops.from_onnx(onnx_ir.from_onnx_text(UNSORTED))


def test_a_branch_that_returns_an_outer_value_is_refused() -> None:
    proto = parser.parse_model(UNSORTED.replace("p = Relu(h)", "p = Relu(x)"))
    branch = proto.graph.node[0].attribute[0].g
    del branch.node[:]
    branch.output[0].name = "x"
    refused(proto, UnsupportedModelError, "nothing in a defines its output x", "an Identity of it")
