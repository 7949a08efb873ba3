"""Capture runs into a CUDA graph, which is launched as one on fixed buffers."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tieops.errors import PreconditionError
from tieops.runtime.feeds import Port
from tieops.runtime.ort_values import value_of
from tieops.runtime.providers import onnxruntime_module
from tieops.runtime.tensors import device_value

__all__ = ["CapturedRun"]


class CapturedRun:
    """A session with ``enable_cuda_graph``, and the buffers that its graph reads and writes.

    ONNX Runtime captures the first run; from then on it launches what it captured, whatever else is
    bound: so inputs are copied into the buffers, and outputs out of them.

    Args:
        inner: ONNX Runtime's session.
        inputs: What it has to be fed.
        outputs: What it returns.
        device: The GPU's number.

    Raises:
        PreconditionError: If the size of an input or output is not fixed.
    """

    def __init__(
        self, inner: Any, inputs: Sequence[Port], outputs: Sequence[Port], device: int
    ) -> None:
        varying = [port for port in (*inputs, *outputs) if not _is_fixed(port)]
        if varying:
            raise PreconditionError(
                "a CUDA graph needs fixed sizes, but some sizes are dynamic",
                {"not fixed": ", ".join(map(str, varying))},
                "export the model with fixed sizes, or leave enable_cuda_graph out",
            )
        self._inner = inner
        self._device = device
        self._fed = {port.name: self._empty(port) for port in inputs}
        self._written = {port.name: self._empty(port) for port in outputs}
        self._ports = {port.name: port for port in (*inputs, *outputs)}
        self._binding = inner.io_binding()
        for name, value in self._fed.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._written.items():
            self._binding.bind_ortvalue_output(name, value)
        self._lock = threading.Lock()

    def _empty(self, port: Port, device: str = "cuda") -> Any:
        assert port.data_type is not None
        make = onnxruntime_module().OrtValue.ortvalue_from_shape_and_type
        place = self._device if device == "cuda" else 0
        return make(list(port.shape), int(port.data_type), device, place)

    def run(self, feeds: Mapping[str, Any], names: Iterable[str], device: str) -> list[Any]:
        """Run once, and return copies of the outputs as ONNX Runtime's values.

        Args:
            feeds: What ``fitted`` returned, of the inputs alone.
            names: The outputs to return.
            device: Where to return them, "cuda" or "cpu".

        Raises:
            PreconditionError: If a stored weight is fed.
        """
        if unfit := [name for name in feeds if name not in self._fed]:
            raise PreconditionError(
                "a CUDA graph cannot be fed stored weights",
                {"fed": ", ".join(unfit)},
                "feed the inputs alone, or leave enable_cuda_graph out",
            )
        with self._lock:  # one set of buffers, one run at a time
            for name, value in feeds.items():
                known = device_value(value)
                data_type = self._ports[name].data_type
                self._fed[name].update_inplace(known or value_of(value, data_type))
            self._binding.synchronize_inputs()
            self._inner.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
            copies: list[Any] = []
            for name in names:
                copies.append(self._empty(self._ports[name], device))
                copies[-1].update_inplace(self._written[name])
        return copies


def _is_fixed(port: Port) -> bool:
    return port.is_tensor and all(isinstance(size, int) for size in port.shape)
