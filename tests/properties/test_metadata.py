"""Junk under every key that the code reads from a file: it is as if the key were not there."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import tieops
from tieops import TieopsError

_KEY = re.compile(r"tieops\.[a-z_]+|pkg\.torch\.[\w.]+|namespace")


def keys() -> list[str]:
    """Return every text in the sources that may be a key of metadata; modules' names are not."""
    root = Path(tieops.__file__).parent
    modules = {f"tieops.{path.relative_to(root).parts[0].removesuffix('.py')}" for path in
               root.rglob("*.py")}  # fmt: skip
    found: set[str] = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.update([node.value] if _KEY.fullmatch(node.value) else [])
    return sorted(found - modules)


KEYS = keys()
JUNK = (
    "", " ", "null", "true", "0", "-1", "1e999", "NaN", "-Infinity", "9" * 5000,
    "18446744073709551616", "-9999999999999999999999",
    "0x" + "f" * 9000, "[", "[" * 3000, "[" * 3000 + "]" * 3000, "{}",
    "[]", "[null]", "[1]", "[1, 0]", "[0, 0]", "[1.5]", '["a", "a"]', '["w", "v"]', '"x"',
    '{"parts": 3}', '{"parts": ["a"], "op": [], "slot": {}}',
    '{"op": "LSTM", "slot": "w", "parts": []}',
    '["\\ud800"]', r"['\ud800', '\ud801', 'n']", r"['', 'a\x00b', 'n']", "['', 'fc', 1]", "{[]}",
    "{[]: 1}", r"'\d'", "1if 1else 2", "[" + "-" * 3000 + "1]", "['', [], {}]", "(1, 2)", "b'x'",
    "\x1b[31m\u202e\n", "inf", "nan", "٣", "1_0", "PARAMETER", "BUFFER", "False", "object",
    "samples", "a/b", "../../x", "999999999", "w", "a" * 70_000, "true" * 3000,
    '{"node": {"opType": 1}}',
)  # fmt: skip
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["parts", "op", "slot", "a"]), inner, max_size=4)
    ),
    max_leaves=8,
)
texts = st.sampled_from(JUNK) | anything.map(str) | anything.map(repr) | st.text(max_size=20)


def proto_with(key: str, text: str) -> onnx.ModelProto:
    """Return a model with a tied table, and the text under the key on all that has keys."""
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20]>
        g (int64[n] x) => (float[n, 6] y) {
            e = Gather(w, x)
            d = MatMul(e, v)
            t = Transpose<perm = [1, 0]>(w)
            a = Relu(d)
            y = MatMul(a, t) }""")
    rng = np.random.default_rng(0)
    for name, shape in {"w": (6, 5), "v": (5, 5)}.items():
        array = rng.standard_normal(shape, dtype=np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for holder in (proto, proto.graph, *proto.graph.initializer, *proto.graph.node):
        holder.metadata_props.add(key=key, value=text)
    return proto


def run_torch(model: tieops.TiedModel) -> Any:
    module = tieops.to_torch(model)
    assert module.state_dict()
    return module(torch.zeros(2, dtype=torch.long))


def verbs(proto: onnx.ModelProto, folder: Path) -> Iterator[Callable[[], object]]:
    model = tieops.from_onnx(proto)
    yield lambda: str(model)
    yield lambda: (str(model.ties), str(model.slots), str(model.layers), str(model.duplicates))
    yield lambda: model.analysis.to_dict()
    yield lambda: tieops.tie(model, include_small=True)
    yield lambda: tieops.to_onnx(tieops.untie(model), folder / "untied.onnx")
    yield lambda: str(tieops.tie(tieops.untie(model)))
    yield lambda: tieops.to_onnx(tieops.replace_head(model, out_features=3), folder / "head.onnx")
    yield lambda: tieops.remove_disconnected_outputs(model, unused_inputs=True)
    yield lambda: run_torch(model)
    yield lambda: tieops.diff(model, tieops.untie(model))
    yield lambda: tieops.render(model, folder / "picture.txt")
    yield lambda: tieops.from_onnx(tieops.to_onnx(model, folder / "m.onnx", external_data=True))
    yield lambda: tieops.to_onnx(model, folder / "m.onnx")


def hold(key: str, text: str, folder: Path) -> None:
    for verb in verbs(proto_with(key, text), folder):
        with suppress(TieopsError):
            verb()


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
@settings(max_examples=12)
@given(text=texts)
def test_junk_is_ignored_or_one_clear_error(
    key: str, text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if text.encode("utf-8", "replace").decode() != text:
        return  # protobuf does not take it
    hold(key, text, tmp_path_factory.mktemp("junk"))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("pkg.torch.onnx.name_scopes", "{[]}"),
        ("pkg.torch.onnx.name_scopes", r"['\ud800', '\ud801', 'n']"),
        ("pkg.torch.onnx.class_hierarchy", r"'\d'"),
        ("tieops.padding_idx", "9" * 5000),
        ("tieops.padding_idx", "18446744073709551616"),
        ("tieops.padding_idx", "6"),
        ("tieops.axes", "[true, false]"),
        ("tieops.names", '["\\ud800"]'),
        ("tieops.packed", '{"op": "LSTM", "slot": "w", "parts": [[]]}'),
    ],
)
def test_what_was_seen_to_crash(key: str, text: str, tmp_path: Path) -> None:
    hold(key, text, tmp_path)


def test_the_keys_are_found() -> None:
    assert {"tieops.names", "tieops.padding_idx", "pkg.torch.onnx.name_scopes"} <= set(KEYS)
    assert len(KEYS) > 12


@pytest.mark.parametrize("key", ["tieops.names", "pkg.torch.onnx.name_scopes"])
def test_a_key_twice_and_bytes_that_are_no_text_are_refused(key: str) -> None:
    proto = proto_with(key, "[]")
    proto.graph.initializer[0].metadata_props.add(key=key, value="[1]")
    with pytest.raises(TieopsError, match="duplicate"):
        tieops.from_onnx(proto)
    data = proto_with(key, "MARK").SerializeToString()
    with pytest.raises(TieopsError, match="UTF-8"):
        tieops.from_onnx(data.replace(b"MARK", b"\xff\xfe\xfd\xfc"))


def test_a_mark_of_data_files_that_is_cut_does_not_stop_a_save(tmp_path: Path) -> None:
    """What is at the target is looked at for data files of ours, whatever it is."""
    path = tmp_path / "m.onnx"
    model = tieops.from_onnx(proto_with("tieops.names", "[]"))
    for end in (b"", b"\x80", b"\xff\xff\xff\xff\x7f", b"\x05ab"):
        path.write_bytes(b"\x08\x0atieops.data\x12" + end)
        tieops.to_onnx(model, path)


NOT_SIZES = (
    "n%0", "n//0", "n/0", "Mod(n,0)", "floor(n/0)", "oo", "zoo", "I", "9**9**9**9", "n**9999999",
    "(", "n+", "lambda", "__import__('os')", "n.__class__", "(" * 500 + "n" + ")" * 500, "1" * 5000,
    "factorial(99999999)", "Symbol('n')", "n:=3", "\x1b", "-" * 3000 + "n", "é", "n if n else m",
)  # fmt: skip


@pytest.mark.parametrize("size", NOT_SIZES)
def test_a_name_of_an_axis_that_is_no_expression_is_a_name(size: str, tmp_path: Path) -> None:
    proto = proto_with("tieops.names", "[]")
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = size
    for verb in verbs(proto, tmp_path):
        verb()
    assert tieops.verify(proto, against=tieops.from_onnx(proto))
