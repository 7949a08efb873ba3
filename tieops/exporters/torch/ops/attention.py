"""Attention and rotary embeddings, which are operators since opset 23."""

from __future__ import annotations

import math

import onnx_ir
import torch
from onnx_ir.tensor_adapters import to_torch_dtype
from torch import Tensor
from torch.nn import functional

from tieops.exporters.torch.ops.registry import op


@op("Attention", many=True)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int = 0,
    outputs: int,
) -> tuple[Tensor, ...]:
    """Return the result and, if asked for, the present keys and values and the scores.

    Queries, keys and values are (batch, heads, length, size) or (batch, length, heads * size).
    """
    is_flat = q.dim() == 3
    if is_flat:
        q, k, v = (
            _heads(x, n) for x, n in ((q, q_num_heads), (k, kv_num_heads), (v, kv_num_heads))
        )
    past = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    present = (k, v)
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    window = (left_window_size, 0 if is_causal else right_window_size)
    bias = _bias(q, k, mask, past, lengths, window, bool(is_causal))
    scores = q
    if softcap or outputs == 4 or softmax_precision:
        found, scores = _by_hand(
            q, k, v, bias, scale, softcap, softmax_precision, qk_matmul_output_mode
        )
    else:
        found = functional.scaled_dot_product_attention(q, k, v, bias, scale=scale)
    if is_flat:
        found = found.transpose(1, 2).flatten(2)
    return found, *present, scores


def _heads(x: Tensor, heads: int | None) -> Tensor:
    return x.unflatten(-1, (heads or 1, -1)).transpose(1, 2)


def _bias(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    past: int,
    lengths: Tensor | None,
    window: tuple[int, int],
    is_causal: bool,
) -> Tensor | None:
    """Return what is added to the scores: minus infinity where a query must not look."""
    rows, columns = q.shape[2], k.shape[2]
    if mask is not None and mask.shape[-1] < columns:
        hidden = False if mask.dtype == torch.bool else -math.inf
        mask = functional.pad(mask, (0, columns - mask.shape[-1]), value=hidden)
    left, right = window
    allowed: Tensor | None = None
    at = torch.arange(rows, device=q.device).unsqueeze(1) + past
    places = torch.arange(columns, device=q.device)
    if lengths is not None:
        lengths = lengths.reshape(-1, 1, 1, 1)
        at, allowed = at + lengths - rows, places < lengths
    if left >= 0:
        near = places >= at - left
        allowed = near if allowed is None else allowed & near
    if right >= 0 or is_causal:
        near = places <= at + right
        allowed = near if allowed is None else allowed & near
    if mask is not None and mask.dtype == torch.bool:
        allowed = mask if allowed is None else allowed & mask
        mask = None
    if allowed is None:
        return mask
    zeros = torch.zeros((), dtype=q.dtype, device=q.device)
    bias = torch.where(allowed, zeros, -math.inf)
    return bias if mask is None else bias + mask


def _by_hand(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    softcap: float,
    precision: int,
    output_mode: int,
) -> tuple[Tensor, Tensor]:
    root = math.sqrt(scale)
    stages = [(q * root) @ (k * root).transpose(-1, -2)]
    stages.append(softcap * torch.tanh(stages[-1] / softcap) if softcap else stages[-1])
    stages.append(stages[-1] if bias is None else stages[-1] + bias)
    scores = stages[-1].to(to_torch_dtype(onnx_ir.DataType(precision))) if precision else stages[-1]
    weights = torch.softmax(scores, -1)
    # A query that may look nowhere gets zeros.
    weights = torch.where((scores == -math.inf).all(-1, keepdim=True), 0, weights).to(q.dtype)
    stages.append(weights)
    return weights @ v, stages[output_mode]


@op("RotaryEmbedding")
def rotary_embedding(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Rotate pairs of features by their position; (batch, heads, length, size) or flat."""
    is_flat = x.dim() == 3
    # (batch, length, heads, size)
    heads = x.unflatten(-1, (num_heads, -1)) if is_flat else x.transpose(1, 2)
    size = rotary_embedding_dim or heads.shape[-1]
    if position_ids is not None:
        cos, sin = cos[position_ids], sin[position_ids]
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    turned, rest = heads[..., :size], heads[..., size:]
    pairs = turned.unflatten(-1, (-1, 2) if interleaved else (2, -1))
    axis = -1 if interleaved else -2
    a, b = pairs.select(axis, 0), pairs.select(axis, 1)
    found = torch.stack([cos * a - sin * b, sin * a + cos * b], axis).flatten(-2)
    found = torch.cat([found, rest], -1)
    return found.flatten(2) if is_flat else found.transpose(1, 2)


@op("SwiGLU")
def swiglu(a: Tensor, b: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Gate one projection by the swish of another."""
    return a * torch.sigmoid(alpha * a) * b
