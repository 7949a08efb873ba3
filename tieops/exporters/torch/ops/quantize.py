"""Quantization to integers or 8-bit floats by a scale and a zero point, and dequantization."""

from __future__ import annotations

import torch
from torch import Tensor

from tieops.exporters.torch.ops.cast import cast
from tieops.exporters.torch.ops.conv import conv
from tieops.exporters.torch.ops.literals import Ints
from tieops.exporters.torch.ops.registry import op


def _spread(x: Tensor, like: Tensor, axis: int, block_size: int) -> Tensor:
    """Broadcast one scale a tensor, a slice along an axis, or a block of it."""
    if x.numel() == 1 and not block_size:
        return x.reshape(())
    if block_size:
        return x.repeat_interleave(block_size, axis).narrow(axis, 0, like.shape[axis])
    shape = [1] * like.dim()
    shape[axis] = -1
    return x.reshape(shape)


@op("QuantizeLinear")
def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: torch.dtype | None = None,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    """Divide by the scale, round to even, add the zero point, and keep what fits."""
    dtype = zero_point.dtype if zero_point is not None else output_dtype or torch.uint8
    scaled = x.to(scale.dtype) / _spread(scale, x, axis, block_size)
    if dtype.is_floating_point:
        return cast(scaled, to=dtype, saturate=saturate)
    found = torch.round(scaled.to(torch.float64))
    if zero_point is not None:
        found = found + _spread(zero_point, x, axis, block_size)
    limits = torch.iinfo(dtype)
    return found.clamp(limits.min, limits.max).to(torch.int64).to(dtype)


@op("DequantizeLinear")
def dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """Subtract the zero point and multiply by the scale."""
    if x.dtype.is_floating_point:
        wide = x.to(torch.float32)
    else:
        wide = x.to(torch.int32)
        if zero_point is not None:
            wide = wide - _spread(zero_point, x, axis, block_size).to(torch.int32)
    found = wide.to(scale.dtype) * _spread(scale, x, axis, block_size)
    return found.to(output_dtype or scale.dtype)


@op("DynamicQuantizeLinear", many=True)
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize to eight bits by a scale that fits this tensor, which is returned too."""
    low, high = torch.aminmax(x)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / 255
    zero_point = torch.round(-low / scale).clamp(0, 255).to(torch.uint8)
    return quantize_linear(x, scale, zero_point), scale, zero_point


@op("QLinearMatMul")
def qlinear_mat_mul(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
) -> Tensor:
    """Multiply quantized matrices; in double precision, which is exact for eight bits."""
    left = _real(a, a_scale, a_zero_point, -2)
    right = _real(b, b_scale, b_zero_point, -1)
    return quantize_linear(left @ right, y_scale.to(torch.float64), y_zero_point)


def _real(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    wide = x.to(torch.float64) - _spread(zero_point, x, axis, 0).to(torch.float64)
    return wide * _spread(scale, x, axis, 0).to(torch.float64)


@op("QLinearConv")
def qlinear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """Convolve quantized tensors; the bias has the scale of both, and zero point zero."""
    left = _real(x, x_scale, x_zero_point, 1)
    right = _real(weight, w_scale, w_zero_point, 0)
    if bias is not None:
        bias = bias.to(torch.float64) * x_scale.to(torch.float64) * w_scale.to(torch.float64)
    found = conv(
        left, right, bias, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads,
        strides=strides,
    )  # fmt: skip
    return quantize_linear(found, y_scale.to(torch.float64), y_zero_point)
