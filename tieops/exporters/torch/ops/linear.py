"""Matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from tieops.exporters.torch.ops.registry import op

op("MatMul")(torch.matmul)


@op("Gemm")
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    trans_a: int = 0,
    trans_b: int = 0,
    broadcast: int = 0,
) -> Tensor:
    """Return ``alpha * a @ b + beta * c``, with ``a`` or ``b`` transposed if asked for.

    ``broadcast`` says of opsets before 7 that ``c`` may be smaller; torch sees that.
    """
    a = a.t() if trans_a else a
    b = b.t() if trans_b else b
    if c is not None and a.is_floating_point():
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)
    found = a @ b
    if alpha != 1.0:
        found = (alpha * found).to(found.dtype)
    if c is None:
        return found
    return found + (c if beta == 1.0 else (beta * c).to(c.dtype))


@op("MatMulInteger")
def mat_mul_integer(
    a: Tensor, b: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None
) -> Tensor:
    """Multiply matrices of 8-bit integers into 32 bits."""
    a, b = a.to(torch.int32), b.to(torch.int32)
    if a_zero_point is not None:
        zero = a_zero_point.to(torch.int32)
        a = a - (zero.unsqueeze(-1) if zero.dim() == 1 and zero.numel() > 1 else zero)
    if b_zero_point is not None:
        b = b - b_zero_point.to(torch.int32)
    return torch.matmul(a, b)
