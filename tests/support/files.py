"""Files that tests write: models, what a folder holds, and what killed processes leave."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import tieops
from tieops.exporters.files import temporary
from tieops.model import TiedModel


def files(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def dead_writer(folder: Path) -> None:
    """Leave a temporary file as a killed process leaves it."""
    child = os.fork()
    if not child:
        with temporary(folder, "data"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def written(model: TiedModel, path: Path) -> tuple[Path, int]:
    """Write a model with a data file; return the path, and its unique bytes."""
    return tieops.to_onnx(model, path, external_data=True).path, model.ledger.stored_bytes


def language_model(vocabulary: int, width: int, layers: int, *, tied: bool) -> onnx.ModelProto:
    """Return a table, square layers and a head, all of zeros without bytes yet."""
    nodes = [helper.make_node("Gather", ["table", "x"], ["h0"])]
    shapes = {"table": (vocabulary, width)}
    for layer in range(layers):
        shapes[f"w{layer}"] = (width, width)
        nodes.append(helper.make_node("MatMul", [f"h{layer}", f"w{layer}"], [f"h{layer + 1}"]))
    if tied:
        nodes.append(helper.make_node("Transpose", ["table"], ["head"], perm=[1, 0]))
    else:
        shapes["head"] = (width, vocabulary)
    nodes.append(helper.make_node("MatMul", [f"h{layers}", "head"], ["y"]))
    x = helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", vocabulary])
    graph = helper.make_graph(nodes, "g", [x], [y])
    for name, shape in shapes.items():
        graph.initializer.append(TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def save_random(folder: Path, *, tied: bool = False) -> None:
    """Write a small model twice: with its weights inside, and beside it."""
    model = language_model(3000, 32, 3, tied=tied)
    arrays: dict[str, np.ndarray] = {}
    for number, tensor in enumerate(model.graph.initializer):
        rng = np.random.default_rng(number)
        arrays[tensor.name] = rng.standard_normal(tuple(tensor.dims)).astype("f4")
    if "head" in arrays:
        arrays["head"] = np.ascontiguousarray(arrays["table"].T)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    onnx.save(model, folder / "inside.onnx")
    onnx.save(
        model, folder / "beside.onnx", save_as_external_data=True, location="beside.data",
        size_threshold=0,
    )  # fmt: skip
