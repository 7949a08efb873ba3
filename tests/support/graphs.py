"""Graphs from ONNX text, with weights of any size and dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
from onnx import numpy_helper, parser

import tieops
from tieops.model import TiedModel

DTYPES: dict[str, Any] = {
    "float": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


def stored(text: str, opset: int = 20, **tensors: np.ndarray[Any, Any]) -> TiedModel:
    """Return a model of ONNX text with these tensors stored in it, all of one graph ``g``."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> g {text}')
    proto.graph.initializer.extend(_proto(array, name) for name, array in tensors.items())
    return tieops.from_onnx(proto)


def _proto(array: np.ndarray[Any, Any], name: str) -> onnx.TensorProto:
    if array.dtype != DTYPES["bfloat16"]:
        return numpy_helper.from_array(array, name)
    kind = onnx.TensorProto.BFLOAT16
    return onnx.helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True)


def weight(*shape: int, dtype: str = "float", seed: int = 0) -> np.ndarray[Any, Any]:
    """Return random numbers of a dtype."""
    found = np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(0.05)
    return found.astype(DTYPES[dtype])


FUNCTION = '<opset_import: ["" : 20, "f" : 1], domain: "f"> '


IDS = np.array([0, 3, 7, 1])


def made(
    text: str, functions: Sequence[str] = (), opset: int = 20, **tensors: Any
) -> tieops.TiedModel:
    """Return a model from ONNX text; a tensor is an array, or the shape of a random one."""
    domains = f'"" : {opset}' + (', "f" : 1' if functions else "")
    body = "\n".join([text, *(FUNCTION + each for each in functions)])
    ir_version = 10 if opset >= 20 else 8
    proto = parser.parse_model(f"<ir_version: {ir_version}, opset_import: [{domains}]>\n{body}")
    rng = np.random.default_rng(0)
    for name, given in tensors.items():
        array = given
        if isinstance(given, tuple):
            array = rng.standard_normal(given).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return tieops.from_onnx(proto)


def rows(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


CONSTANT = "w = Constant<value = float[8,8] {" + ", ".join(map(str, rows(64).tolist())) + "}>() "


def graph(text: str, functions: Sequence[str] = (), **tensors: object) -> onnx_ir.Model:
    """Return a graph of its own, to be edited."""
    return made(text, functions, **tensors).clone()
