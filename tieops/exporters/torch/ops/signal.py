"""Fourier transforms and windows."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir
import torch
from onnx_ir.tensor_adapters import to_torch_dtype
from torch import Tensor
from torch.nn import functional

from tieops.exporters.torch.ops.literals import one
from tieops.exporters.torch.ops.registry import op
from tieops.exporters.torch.ops.shape import device_of

FLOAT = int(onnx_ir.DataType.FLOAT)


@op("DFT", literals=(1, 2), since=20)
def dft(
    x: Tensor,
    length: Any = None,
    axis: Any = -2,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    """Transform along an axis; the last axis holds the real and the imaginary part."""
    axis = int(one(axis)) % x.dim()
    length = None if length is None else int(one(length))
    signal = x.squeeze(-1) if x.shape[-1] == 1 else torch.view_as_complex(x.contiguous())
    if inverse and onesided:
        length = length or 2 * (x.shape[axis] - 1)
        return torch.fft.irfft(signal, length, axis).unsqueeze(-1).to(x.dtype)
    length = length or x.shape[axis]
    found = (torch.fft.ifft if inverse else torch.fft.fft)(signal, length, axis)
    if onesided:
        found = found.narrow(axis, 0, length // 2 + 1)
    return torch.view_as_real(found.resolve_conj()).to(x.dtype)


@op("DFT", literals=(1,), since=17)
def dft_along(
    x: Tensor, length: int | None = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0
) -> Tensor:
    """Transform along an axis that is an attribute, as it was before opset 20."""
    return dft(x, length, axis, inverse=inverse, onesided=onesided)


@op("STFT", literals=(1, 3))
def stft(
    x: Tensor,
    frame_step: int,
    window: Tensor | None = None,
    frame_length: int | None = None,
    *,
    onesided: int = 1,
) -> Tensor:
    """Transform frames of a signal, (batch, length, 1 or 2), each weighed by a window.

    A real signal may be (batch, length), as ONNX Runtime reads it and onnxscript writes it.
    """
    x = x.unsqueeze(-1) if x.dim() == 2 else x
    length = frame_length or (x.shape[1] if window is None else window.shape[0])
    frames = x.unfold(1, length, frame_step).transpose(-1, -2)
    if window is not None:
        window = functional.pad(window, (0, length - window.shape[0]))
        frames = frames * window.unsqueeze(-1)
    return dft(frames, length, -2, onesided=onesided)


def _cosines(
    size: int, periodic: int, output_datatype: int, like: Tensor | None, *weights: float
) -> Tensor:
    device = device_of(like)
    at = torch.arange(size, dtype=torch.float64, device=device) * (2 * math.pi)
    at = at / (size if periodic else size - 1)
    found = torch.full_like(at, weights[0])
    for i, weight in enumerate(weights[1:], 1):
        found = found + weight * torch.cos(i * at)
    return found.to(to_torch_dtype(onnx_ir.DataType(output_datatype)))


@op("HannWindow", literals=(0,))
def hann_window(
    size: int, *, periodic: int = 1, output_datatype: int = FLOAT, like: Tensor | None = None
) -> Tensor:
    """Return a Hann window."""
    return _cosines(size, periodic, output_datatype, like, 0.5, -0.5)


@op("HammingWindow", literals=(0,))
def hamming_window(
    size: int, *, periodic: int = 1, output_datatype: int = FLOAT, like: Tensor | None = None
) -> Tensor:
    """Return a Hamming window, with the weights of the operator reference."""
    return _cosines(size, periodic, output_datatype, like, 25 / 46, -21 / 46)


@op("BlackmanWindow", literals=(0,))
def blackman_window(
    size: int, *, periodic: int = 1, output_datatype: int = FLOAT, like: Tensor | None = None
) -> Tensor:
    """Return a Blackman window."""
    return _cosines(size, periodic, output_datatype, like, 0.42, -0.5, 0.08)
