"""Small models that the cases spoil."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

__all__ = ["WEIGHT", "external", "model", "save", "small", "tensor"]

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def model(text: str, functions: str = "", opsets: str = '"" : 20') -> onnx.ModelProto:
    """Return a model from the text of its graph, after ``g``."""
    return parser.parse_model(f"<ir_version: 10, opset_import: [{opsets}]> g {text} {functions}")


def small() -> onnx.ModelProto:
    """Return ``y = MatMul(x, w)`` with its weight inside."""
    proto = model("(float[n, 3] x) => (float[n, 4] y) { y = MatMul(x, w) }")
    proto.graph.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    return proto


def tensor(name: str = "w", dims: tuple[int, ...] = (3, 4), **fields: object) -> TensorProto:
    """Return a float tensor of these fields, checked by nobody."""
    made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims)
    for key, value in fields.items():
        if isinstance(value, list | tuple):
            getattr(made, key).extend(value)
        else:
            setattr(made, key, value)
    return made


def external(
    entries: Mapping[str, str] | list[tuple[str, str]], made: TensorProto | None = None
) -> TensorProto:
    """Return a tensor with these entries as its external data."""
    made = tensor() if made is None else made
    made.data_location = TensorProto.EXTERNAL
    for key, value in entries.items() if isinstance(entries, Mapping) else entries:
        made.external_data.add(key=key, value=value)
    return made


def save(folder: Path, proto: onnx.ModelProto, weight: TensorProto | None = None) -> Path:
    """Write a model, with another first initializer if one is given, and ``w.bin`` beside it."""
    if weight is not None:
        proto.graph.initializer[0].CopyFrom(weight)
    if not (folder / "w.bin").is_symlink() and not (folder / "w.bin").exists():
        (folder / "w.bin").write_bytes(WEIGHT.tobytes())
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def node(op_type: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    """Return a node; names are separated by blanks."""
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)
