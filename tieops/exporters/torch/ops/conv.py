"""Convolutions over one, two and three axes, and transposed convolutions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tieops.exporters.torch.ops.literals import Ints
from tieops.exporters.torch.ops.registry import op

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def window_pads(
    sizes: Ints, kernel: Ints, strides: Ints, dilations: Ints, pads: Ints | None, auto_pad: str
) -> tuple[list[int], list[int]]:
    """Return how much to pad before and after each axis."""
    if auto_pad == "VALID" or (auto_pad == "NOTSET" and pads is None):
        return [0] * len(kernel), [0] * len(kernel)
    if auto_pad == "NOTSET":
        assert pads is not None
        return list(pads[: len(kernel)]), list(pads[len(kernel) :])
    before: list[int] = []
    after: list[int] = []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before.append(small if auto_pad == "SAME_UPPER" else large)
        after.append(large if auto_pad == "SAME_UPPER" else small)
    return before, after


def pad_ends(x: Tensor, before: Ints, after: Ints, value: float = 0.0) -> Tensor:
    """Pad the last axes."""
    flat = [size for pair in reversed(list(zip(before, after, strict=True))) for size in pair]
    return functional.pad(x, flat, value=value)


@op("Conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """Convolve."""
    rank = weight.dim() - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    sizes, kernel = x.shape[2:], weight.shape[2:]
    before, after = window_pads(sizes, kernel, strides, dilations, pads, auto_pad)
    if before != after:
        x, before = pad_ends(x, before, after), [0] * rank
    return _CONV[rank](x, weight, bias, strides, before, dilations, group)


@op("ConvTranspose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    output_padding: Ints | None = None,
    output_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """Convolve the other way round: what a convolution's gradient is to its input."""
    rank = weight.dim() - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    extra = list(output_padding or (0,) * rank)
    full = [
        (size - 1) * s + (k - 1) * d + 1
        for size, s, k, d in zip(x.shape[2:], strides, weight.shape[2:], dilations, strict=True)
    ]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER") and output_shape is None:
        output_shape = [size * s for size, s in zip(x.shape[2:], strides, strict=True)]
    if output_shape is not None:
        before, after = _cut_to(full, extra, output_shape[-rank:], auto_pad)
    else:
        before, after = window_pads((), weight.shape[2:], strides, dilations, pads, auto_pad)
    if before == after and all(
        e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)
    ):
        return _TRANSPOSED[rank](x, weight, bias, strides, before, extra, group, dilations)
    # Torch cuts both ends alike: compute all of it and cut afterwards.
    whole = _TRANSPOSED[rank](x, weight, None, strides, 0, 0, group, dilations)
    cut = [e - a for e, a in zip(extra, after, strict=True)]
    whole = pad_ends(whole, [-b for b in before], cut)
    return whole if bias is None else whole + bias.reshape(-1, *(1,) * rank)


def _cut_to(full: Ints, extra: Ints, wanted: Ints, auto_pad: str) -> tuple[list[int], list[int]]:
    before: list[int] = []
    after: list[int] = []
    for size, more, want in zip(full, extra, wanted, strict=True):
        total = size + more - want
        small, large = total // 2, total - total // 2
        before.append(small if auto_pad == "SAME_UPPER" else large)
        after.append(large if auto_pad == "SAME_UPPER" else small)
    return before, after


@op("ConvInteger")
def conv_integer(
    x: Tensor,
    weight: Tensor,
    x_zero_point: Tensor | None = None,
    w_zero_point: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """Convolve 8-bit integers into 32 bits; in double precision, which is exact for them."""
    left, right = x.to(torch.float64), weight.to(torch.float64)
    if x_zero_point is not None:
        left = left - x_zero_point
    if w_zero_point is not None:
        right = right - w_zero_point.reshape(-1, *(1,) * (weight.dim() - 1))
    found = conv(
        left, right, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides
    )
    return found.to(torch.int32)


@op("Col2Im", literals=(1, 2))
def col2im(
    x: Tensor,
    image_shape: Ints,
    block_shape: Ints,
    *,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """Add sliding blocks up into images, by the gradient of cutting them out."""
    rank = len(image_shape)
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    pads = pads or (0,) * (2 * rank)
    total = 1
    for size in block_shape:
        total *= size
    channels = x.shape[1] // total
    padded = [image_shape[i] + pads[i] + pads[i + rank] for i in range(rank)]
    blocks = [
        (padded[i] - dilations[i] * (block_shape[i] - 1) - 1) // strides[i] + 1 for i in range(rank)
    ]
    flat = torch.zeros((), dtype=torch.int64, device=x.device)
    for i in range(rank):
        inside = torch.arange(block_shape[i], device=x.device) * dilations[i]
        across = torch.arange(blocks[i], device=x.device) * strides[i]
        shape = [1] * (2 * rank)
        shape[i], shape[rank + i] = block_shape[i], blocks[i]
        flat = flat * padded[i] + (inside[:, None] + across[None]).reshape(shape)
    places = flat.reshape(-1).expand(x.shape[0], channels, -1)
    empty = x.new_zeros(x.shape[0], channels, int(torch.Size(padded).numel()))
    images = empty.scatter_add(2, places, x.reshape(x.shape[0], channels, -1))
    images = images.reshape(x.shape[0], channels, *padded)
    return pad_ends(images, [-p for p in pads[:rank]], [-p for p in pads[rank:]])
