"""The learnables of ONNX Runtime's own operators (``com.microsoft``), by the roles of their inputs.

Optimizers and model builders write them in the place of layers: attention with its projections,
experts, norms with what they are added to, products of quantized matrices. The source is ONNX
Runtime's contrib operator reference.
"""

from __future__ import annotations

__all__ = ["FUSED"]

Roles = dict[int, str]
_RECURRENT: Roles = {1: "weight", 2: "recurrent_weight", 3: "bias", 7: "peephole"}
_QUANTIZED_CONV: Roles = {3: "weight", 4: "weight_scale", 5: "zero_point", 8: "bias"}


def _inputs(
    *weights: int, bias: tuple[int, ...] = (), scale: tuple[int, ...] = (), zero: int = 0
) -> Roles:
    return {
        **dict.fromkeys(weights, "weight"),
        **dict.fromkeys(bias, "bias"),
        **dict.fromkeys(scale, "weight_scale"),
        **({zero: "zero_point"} if zero else {}),
    }


_ALL: dict[str, tuple[str, Roles]] = {
    # Products.
    "DynamicQuantizeMatMul": ("Linear", _inputs(1, bias=(4,), scale=(2,), zero=3)),
    "FusedGemm": ("Linear", {0: "weight", 1: "weight", 2: "bias"}),
    "FusedMatMul": ("Linear", {0: "weight", 1: "weight"}),
    "FusedMatMulActivation": ("Linear", {0: "weight", 1: "weight"}),
    "GemmFastGelu": ("Linear", _inputs(1, bias=(2,))),
    "GemmFloat8": ("Linear", {1: "weight", 2: "bias", 4: "weight_scale"}),
    "MatMulBlockQuantizedFp4Weight": ("Linear", _inputs(1, bias=(5,), scale=(2, 3))),
    "MatMulBlockQuantizedFp8Weight": ("Linear", _inputs(1, bias=(4,), scale=(2,))),
    "MatMulBnb4": ("Linear", {1: "weight", 2: "weight_scale"}),
    "MatMulFpQ4": ("Linear", {1: "weight"}),
    "MatMulInteger16": ("Linear", {1: "weight"}),
    "MatMulIntegerToFloat": ("Linear", _inputs(1, bias=(6,), scale=(3,), zero=5)),
    "MatMulNBits": ("Linear", _inputs(1, bias=(5,), scale=(2,), zero=3)),
    "MatMulNBitsMlp": ("MLP", _inputs(2, 3, 6, bias=(5, 8), scale=(4, 7))),
    "MatMulNBitsQkv": ("Attention", _inputs(2, 3, 6, 9, bias=(5, 8, 11), scale=(4, 7, 10))),
    "QGemm": ("Linear", _inputs(3, bias=(6,), scale=(4,), zero=5)),
    "QOrderedMatMul": ("Linear", _inputs(2, bias=(5,), scale=(3,))),
    "SparseToDenseMatMul": ("Linear", {1: "weight"}),
    "TransposeMatMul": ("Linear", {0: "weight", 1: "weight"}),
    # Rows that are looked up.
    "EmbedLayerNormalization": ("EmbedLayerNorm", _inputs(2, 3, 4, 5, bias=(6,))),
    "GatherBlockQuantized": ("Embedding", _inputs(0, scale=(2,), zero=3)),
    "QEmbedLayerNormalization": (
        "EmbedLayerNorm",
        {
            **_inputs(2, 3, 4, 5, bias=(6,), scale=(8, 9, 10, 11, 12)),
            **dict.fromkeys(range(13, 18), "zero_point"),
        },
    ),
    "RelativePositionBias": ("Embedding", {0: "weight"}),
    "TorchEmbedding": ("Embedding", {0: "weight"}),
    "WordConvEmbedding": ("Embedding", _inputs(1, 3, bias=(2,))),
    # Convolutions.
    "CausalConvWithState": ("Conv", _inputs(1, bias=(2,))),
    "ConvTransposeWithDynamicPads": ("ConvTranspose", _inputs(1, bias=(3,))),
    "FusedConv": ("Conv", _inputs(1, bias=(2,))),
    "NhwcConv": ("Conv", _inputs(1, bias=(2,))),
    "NhwcFusedConv": ("Conv", _inputs(1, bias=(2,))),
    "QLinearConv": ("Conv", _QUANTIZED_CONV),
    "VarlenCausalConvWithState": ("Conv", _inputs(1, bias=(3,))),
    # Recurrent layers.
    "AttnLSTM": ("LSTM", {**_RECURRENT, **_inputs(8, 9, 10, 13)}),
    "DynamicQuantizeLSTM": (
        "LSTM",
        {**_RECURRENT, 8: "weight_scale", 9: "zero_point", 10: "weight_scale", 11: "zero_point"},
    ),
    "GatedDeltaNet": ("GatedDeltaNet", {7: "weight", 8: "bias"}),
    "LinearAttentionGate": ("Gate", {1: "bias", 2: "weight"}),
    # Norms, and vectors that are added.
    "BiasAdd": ("Bias", {1: "bias"}),
    "BiasDropout": ("Bias", {1: "bias"}),
    "BiasGelu": ("Bias", {1: "bias"}),
    "BiasSplitGelu": ("Bias", {1: "bias"}),
    "BitmaskBiasDropout": ("Bias", {1: "bias"}),
    "BranchwiseRMSNorm": ("RMSNorm", {1: "weight"}),
    "EngramGate": ("Gate", _inputs(3, 4, 5)),
    "FastGelu": ("Bias", {1: "bias"}),
    "GatedRMSNorm": ("RMSNorm", {1: "weight"}),
    "GroupNorm": ("GroupNorm", _inputs(1, bias=(2,))),
    "QOrderedLayerNormalization": ("LayerNorm", _inputs(2, bias=(3,))),
    "SkipGroupNorm": ("GroupNorm", {1: "weight", 2: "bias", 4: "skip_bias"}),
    "SkipLayerNormalization": ("LayerNorm", {2: "weight", 3: "bias", 4: "skip_bias"}),
    "SkipSimplifiedLayerNormalization": ("RMSNorm", {2: "weight", 3: "bias"}),
    # Attention.
    "Attention": ("Attention", _inputs(1, bias=(2,))),
    "DecoderAttention": ("Attention", _inputs(2, 3, bias=(4,))),
    "DecoderMaskedMultiHeadAttention": ("Attention", {10: "bias"}),
    "DecoderMaskedSelfAttention": ("Attention", _inputs(1, bias=(2,))),
    "DynamicSparseAttention": ("Attention", _inputs(14, 15)),
    "GatedRelativePositionBias": ("Gate", _inputs(3, 5, bias=(1, 4))),
    "GroupQueryAttention": ("Attention", _inputs(14, 15)),
    "LongformerAttention": ("Attention", _inputs(1, 4, bias=(2, 5))),
    "MultiHeadAttention": ("Attention", {3: "bias"}),
    "PackedAttention": ("Attention", _inputs(1, bias=(2,))),
    "PackedMultiHeadAttention": ("Attention", {3: "bias"}),
    "PagedAttention": ("Attention", _inputs(12, 13)),
    "PackedSparseAttentionIndexer": ("Attention", _inputs(2, 3, bias=(9,))),
    "QAttention": ("Attention", _inputs(1, bias=(2,), scale=(4,), zero=7)),
    "QOrderedAttention": ("Attention", _inputs(5, 6, 7, bias=(11, 12, 13), scale=(8, 9, 10))),
    "QOrderedLongformerAttention": (
        "Attention",
        _inputs(2, 8, bias=(4, 10), scale=(3, 5, 9)),
    ),
    "SparseAttentionIndexer": ("Attention", _inputs(2, 3, bias=(9,))),
    "SparsePagedAttention": ("Attention", _inputs(17, 18)),
    # Experts.
    "MoE": ("MoE", _inputs(2, 4, 6, bias=(3, 5, 7))),
    "QMoE": (
        "MoE",
        {
            **_inputs(2, 5, 8, bias=(4, 7, 10), scale=(3, 6, 9, 15, 16)),
            **dict.fromkeys((11, 12, 13), "zero_point"),
        },
    ),
    "DequantizeLinear": ("DequantizeLinear", {0: "weight", 1: "scale", 2: "zero_point"}),
}

FUSED = {f"com.microsoft.{name}": found for name, found in _ALL.items()}
"""Operator to (kind of layer, input index to role)."""
