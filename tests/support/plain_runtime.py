"""ONNX Runtime without any optimization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

REFUSALS = (
    state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented,
    state.RuntimeException,
)  # fmt: skip
"""What ONNX Runtime raises of what it does not take; they have no class in common."""


class PlainRuntime:
    """ONNX Runtime on the CPU with its graph optimizations off: what the graph says, in order."""

    def run(self, model: onnx_ir.Model, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        data = onnx_ir.to_proto(model).SerializeToString()
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return session.run(None, dict(feeds))

    def feeds(self, model: onnx_ir.Model, seed: int = 0, ids_below: int = 8) -> dict[str, Any]:
        """Return seeded inputs; flags are true where ``seed`` is odd."""
        rng = np.random.default_rng(seed)
        feeds: dict[str, Any] = {}
        for value in model.graph.inputs:
            if value.is_initializer():
                continue
            shape = tuple(int(size) for size in value.shape.numpy())
            kind = value.dtype.numpy()
            if kind == np.bool_:
                feeds[value.name] = np.full(shape, bool(seed % 2))
            elif np.issubdtype(kind, np.integer):
                feeds[value.name] = rng.integers(0, ids_below, shape).astype(kind)
            else:
                feeds[value.name] = rng.standard_normal(shape).astype(kind)
        return feeds
