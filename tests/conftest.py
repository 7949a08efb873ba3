"""What the graph tests share: stable property tests, ONNX text, and running models as they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "tieops",
    max_examples=100,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("tieops")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
DRIVER = shutil.which("chromedriver")
FIREFOX = next(filter(None, map(shutil.which, ("firefox-esr", "firefox"))), None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of the page where there is no browser; in CI they run, and fail then."""
    if (CHROMIUM and DRIVER) or os.environ.get("CI"):
        return
    left_out = [item for item in items if item.get_closest_marker("browser")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("browser")]
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            missing = "Chromium" if not CHROMIUM else "chromedriver"
            reporter.write_line(f"no {missing} here: {len(left_out)} tests of the page left out")


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


@pytest.fixture(scope="session")
def plain_runtime() -> PlainRuntime:
    return PlainRuntime()
