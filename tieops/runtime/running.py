"""Run an open session once: on arrays, or with bound inputs and outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np

from tieops.errors import PreconditionError
from tieops.ir.notation import printable
from tieops.runtime.cuda.cuda_nodes import missing_cudnn
from tieops.runtime.feeds import Port
from tieops.runtime.ort_values import RAW, raw_array, value_of
from tieops.runtime.providers import first_line, not_on_cuda, onnxruntime_errors, out_of_memory
from tieops.runtime.tensors import bind_device_input, is_on_device

__all__ = ["errors_with_feeds", "run_arrays", "run_bound"]


def run_arrays(
    inner: Any,
    feeds: Mapping[str, Any],
    names: Sequence[str],
    ports: Sequence[Port],
    stream: int = 0,
) -> dict[str, np.ndarray[Any, Any]]:
    """Run once and return arrays.

    Args:
        inner: ONNX Runtime's session.
        feeds: What ``fitted`` returned.
        names: The outputs to return.
        ports: What can be fed, and what can come out.
        stream: The stream that the session works on; 0 for one of its own.

    Raises:
        PreconditionError: If ONNX Runtime fails.
    """
    if any(map(is_on_device, feeds.values())):
        with errors_with_feeds(feeds):
            values = run_bound(inner, feeds, names, ports, ("cpu", 0), stream)
        return {name: raw_array(value) for name, value in zip(names, values, strict=True)}
    dtypes = {port.name: port.data_type for port in ports}
    touched = [dtypes[name] for name in (*feeds, *names)]
    with errors_with_feeds(feeds):
        if not any(dtype and dtype.name in RAW for dtype in touched):
            return dict(zip(names, inner.run(list(names), dict(feeds)), strict=True))
        given = {name: value_of(array, dtypes[name]) for name, array in feeds.items()}
        found = inner.run_with_ort_values(list(names), given)
    return {name: raw_array(value) for name, value in zip(names, found, strict=True)}


def run_bound(
    inner: Any,
    feeds: Mapping[str, Any],
    names: Sequence[str],
    ports: Sequence[Port],
    device: tuple[str, int],
    stream: int = 0,
) -> list[Any]:
    """Run once with inputs where they lie, and return ONNX Runtime's values.

    Args:
        inner: ONNX Runtime's session.
        feeds: What ``fitted`` returned.
        names: The outputs to return.
        ports: What can be fed.
        device: Where outputs are put: "cuda" or "cpu", and the number.
        stream: As for `run_arrays`.
    """
    dtypes = {port.name: port.data_type for port in ports}
    binding = inner.io_binding()
    alive: list[object] = []
    for name, value in feeds.items():
        dtype = dtypes[name]
        if dtype is not None and is_on_device(value):
            alive.append(bind_device_input(binding, name, value, dtype, stream))
        else:
            alive.append(value_of(value, dtype))
            binding.bind_ortvalue_input(name, alive[-1])
    for name in names:
        binding.bind_output(name, *device)
    binding.synchronize_inputs()
    inner.run_with_iobinding(binding)
    binding.synchronize_outputs()
    return list(binding.get_outputs())


@contextlib.contextmanager
def errors_with_feeds(feeds: Mapping[str, Any]) -> Generator[None]:
    """Raise ONNX Runtime's errors as ours, with the inputs that it was fed.

    Raises:
        PreconditionError: If ONNX Runtime fails.
        ProviderError: If it fails for want of cuDNN.
    """
    try:
        yield
    except onnxruntime_errors() as error:
        if says := out_of_memory(str(error)):
            raise PreconditionError(
                "out of memory while running the model",
                {"it says": says},
                "use a smaller batch, or raise gpu_mem_limit if it is set",
            ) from error
        if why := missing_cudnn(error):
            raise not_on_cuda(why) from error
        given = ", ".join(f"{printable(name)} {_brief(value)}" for name, value in feeds.items())
        raise PreconditionError(
            "ONNX Runtime could not run the model",
            {"fed": given, "it says": first_line(error)},
            "check that sizes agree, and that ids are below the number of rows of their table",
        ) from error


def _brief(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "dtype") else type(value).__name__
