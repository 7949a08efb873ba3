"""Architectures of transformers that tie weights, each small enough to be built from a config.

A family is a class and what its config needs beyond the sizes that all have. The vocabulary times
the width is under and over the 8,192 elements from which torch's optimizer leaves a weight alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fixtures.torch_models import Case, add_noise, tie_groups

__all__ = ["FAMILIES", "VOCABULARIES", "WIDTH", "Family", "build"]

VOCABULARIES = (150, 2000)
WIDTH = 32

_TEXT = {"input_ids": {0: "batch", 1: "sequence"}}
_TARGET = {"decoder_input_ids": {0: "batch", 1: "target"}}
_FRAMES = {"input_features": {0: "batch"}}

_SIZES: dict[str, Any] = {
    "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 2 * WIDTH, "max_position_embeddings": 64,
}  # fmt: skip
_GPT: dict[str, Any] = {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 64}
_GROUPED = {**_SIZES, "num_key_value_heads": 1, "head_dim": 16}
# All experts are chosen: between two whose scores are nearly equal, rounding would choose.
_EXPERTS = {
    "experts_implementation": "batched_mm", "num_local_experts": 4, "num_experts": 4,
    "num_experts_per_tok": 4,
}  # fmt: skip
_BART: dict[str, Any] = {
    "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 2 * WIDTH, "decoder_ffn_dim": 2 * WIDTH,
    "max_position_embeddings": 64,
}  # fmt: skip
_T5: dict[str, Any] = {
    "d_model": WIDTH, "d_kv": 8, "d_ff": 2 * WIDTH, "num_layers": 2, "num_decoder_layers": 2,
    "num_heads": 2,
}  # fmt: skip
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
_MAMBA: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 8}


def _tokens(batch: int, length: int, vocab: int) -> Tensor:
    return torch.arange(5, 5 + batch * length).reshape(batch, length) % vocab


def _text(vocab: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return {"input_ids": _tokens(2, 9, vocab)}, _TEXT


def _text_to_text(vocab: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    inputs = {"input_ids": _tokens(2, 9, vocab), "decoder_input_ids": _tokens(2, 7, vocab)}
    return inputs, _TEXT | _TARGET


def _speech(channels: int, frames: int, *, last: bool = False) -> Callable[[int], Any]:
    """Return inputs of log-mel frames; ``last`` puts the channels behind the frames."""
    shape = (2, frames, channels) if last else (2, channels, frames)

    def made(vocab: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        features = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        inputs = {"input_features": features, "decoder_input_ids": _tokens(2, 7, vocab)}
        return inputs, _FRAMES | _TARGET

    return made


def _fixed(inputs: Callable[[int], Any]) -> Callable[[int], Any]:
    """Return the same inputs with lengths that do not vary: code that asks for them."""

    def made(vocab: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, axes = inputs(vocab)
        return tensors, {name: {0: sizes[0]} for name, sizes in axes.items()}

    return made


def _masked(inputs: Callable[[int], Any]) -> Callable[[int], Any]:
    """Return the same inputs with a mask, for code that makes none while it is exported."""

    def made(vocab: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, axes = inputs(vocab)
        mask = torch.ones_like(tensors["input_ids"])
        return tensors | {"attention_mask": mask}, axes | {"attention_mask": axes["input_ids"]}

    return made


@dataclass(frozen=True)
class Family:
    """A class of transformers and how to build and call it small.

    Attributes:
        model: The class's name.
        config: What its config takes, but for the vocabulary and ``tie_word_embeddings``.
        inputs: From the vocabulary to keyword inputs and the sizes that vary.
        atol: How far outputs may be apart between torch and ONNX Runtime.
    """

    model: str
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Callable[[int], tuple[dict[str, Tensor], Any]] = _text
    atol: float = 1e-5


FAMILIES: dict[str, Family] = {
    # Decoders.
    "gpt2": Family("GPT2LMHeadModel", _GPT),
    "gpt_neo": Family(
        "GPTNeoForCausalLM",
        _SIZES | {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    ),
    "gpt_neox": Family("GPTNeoXForCausalLM", _SIZES),
    "gptj": Family("GPTJForCausalLM", _GPT | {"rotary_dim": 8}),
    "gpt_bigcode": Family("GPTBigCodeForCausalLM", _GPT),
    "codegen": Family("CodeGenForCausalLM", _GPT | {"rotary_dim": 8, "n_head": 4}),
    "openai-gpt": Family("OpenAIGPTLMHeadModel", _GPT),
    "ctrl": Family("CTRLLMHeadModel", _GPT | {"dff": 2 * WIDTH}),
    "opt": Family(
        "OPTForCausalLM", _SIZES | {"ffn_dim": 2 * WIDTH, "word_embed_proj_dim": WIDTH}
    ),
    "opt projected": Family(
        "OPTForCausalLM",
        _SIZES | {"ffn_dim": 2 * WIDTH, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "bloom": Family("BloomForCausalLM", {"hidden_size": WIDTH, "n_layer": 2, "n_head": 2}),
    "mpt": Family("MptForCausalLM", {"d_model": WIDTH, "n_layers": 2, "n_heads": 2}),
    "falcon": Family("FalconForCausalLM", _SIZES),
    "biogpt": Family("BioGptForCausalLM", _SIZES),
    "xglm": Family(
        "XGLMForCausalLM",
        {"d_model": WIDTH, "num_layers": 2, "attention_heads": 2, "ffn_dim": 2 * WIDTH,
         "max_position_embeddings": 64},
    ),
    "llama": Family("LlamaForCausalLM", _GROUPED),
    "mistral": Family("MistralForCausalLM", _GROUPED),
    "mixtral": Family("MixtralForCausalLM", _GROUPED | _EXPERTS),
    "qwen2": Family("Qwen2ForCausalLM", _GROUPED),
    "qwen2_moe": Family(
        "Qwen2MoeForCausalLM",
        _GROUPED | _EXPERTS | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    ),
    "qwen3": Family("Qwen3ForCausalLM", _GROUPED),
    "gemma": Family("GemmaForCausalLM", _GROUPED),
    "gemma2": Family("Gemma2ForCausalLM", _GROUPED | {"query_pre_attn_scalar": 16}),
    "gemma3": Family("Gemma3ForCausalLM", _GROUPED | {"query_pre_attn_scalar": 16}),
    "recurrent_gemma": Family(
        "RecurrentGemmaForCausalLM",
        _GROUPED | {"num_hidden_layers": 3, "lru_width": WIDTH, "attention_window_size": 16},
        _fixed(_text),
    ),
    "phi": Family("PhiForCausalLM", _SIZES),
    "phi3": Family("Phi3ForCausalLM", _GROUPED | {"pad_token_id": 0}),
    "starcoder2": Family("Starcoder2ForCausalLM", _GROUPED),
    "olmo": Family("OlmoForCausalLM", _SIZES),
    "olmo2": Family("Olmo2ForCausalLM", _SIZES),
    "granite": Family("GraniteForCausalLM", _GROUPED),
    "granitemoe": Family("GraniteMoeForCausalLM", _GROUPED | _EXPERTS),
    "cohere": Family("CohereForCausalLM", _SIZES),
    "cohere2": Family("Cohere2ForCausalLM", _GROUPED),
    "stablelm": Family("StableLmForCausalLM", _GROUPED),
    "smollm3": Family("SmolLM3ForCausalLM", _GROUPED | {"pad_token_id": 0}),
    "glm4": Family("Glm4ForCausalLM", _GROUPED | {"pad_token_id": 0}),
    "nemotron": Family("NemotronForCausalLM", _GROUPED),
    "ernie4_5": Family("Ernie4_5ForCausalLM", _GROUPED),
    "exaone4": Family("Exaone4ForCausalLM", _GROUPED),
    "lfm2": Family("Lfm2ForCausalLM", _GROUPED | {"layer_types": ["conv", "full_attention"]}),
    "modernbert-decoder": Family("ModernBertDecoderForCausalLM", _SIZES | {"pad_token_id": 0}),
    "mamba": Family("MambaForCausalLM", _MAMBA, _fixed(_text)),
    "falcon_mamba": Family("FalconMambaForCausalLM", _MAMBA, _fixed(_text)),
    "mamba2": Family(
        "Mamba2ForCausalLM",
        _MAMBA | {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    ),
    "rwkv": Family(
        "RwkvForCausalLM", _SIZES | {"attention_hidden_size": WIDTH}, _fixed(_text)
    ),
    "xlnet": Family(
        "XLNetLMHeadModel", {"d_model": WIDTH, "n_layer": 2, "n_head": 2, "d_inner": 2 * WIDTH}
    ),
    "xlm": Family(
        "XLMWithLMHeadModel",
        {"emb_dim": WIDTH, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64},
    ),
    "trocr": Family(
        "TrOCRForCausalLM",
        {"d_model": WIDTH, "decoder_layers": 2, "decoder_attention_heads": 2,
         "decoder_ffn_dim": 2 * WIDTH, "max_position_embeddings": 64},
    ),
    # Encoders.
    "bert": Family("BertForMaskedLM", _SIZES),
    "bert pretraining": Family("BertForPreTraining", _SIZES),
    "roberta": Family("RobertaForMaskedLM", _SIZES),
    "roberta-prelayernorm": Family("RobertaPreLayerNormForMaskedLM", _SIZES),
    "xlm-roberta": Family("XLMRobertaForMaskedLM", _SIZES),
    "camembert": Family("CamembertForMaskedLM", _SIZES),
    "data2vec-text": Family("Data2VecTextForMaskedLM", _SIZES),
    "distilbert": Family(
        "DistilBertForMaskedLM",
        {"dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 2 * WIDTH,
         "max_position_embeddings": 64},
    ),
    "electra": Family("ElectraForMaskedLM", _SIZES | {"embedding_size": WIDTH}),
    "electra projected": Family("ElectraForMaskedLM", _SIZES | {"embedding_size": 16}),
    "albert": Family("AlbertForMaskedLM", _SIZES | {"embedding_size": WIDTH}),
    "deberta": Family("DebertaForMaskedLM", _SIZES | {"pos_att_type": ["c2p", "p2c"]}),
    "deberta relative": Family(
        "DebertaForMaskedLM", _SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
    ),
    "deberta-v2": Family("DebertaV2ForMaskedLM", _SIZES),
    "mpnet": Family("MPNetForMaskedLM", _SIZES),
    "mobilebert": Family(
        "MobileBertForMaskedLM",
        _SIZES | {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    ),
    "convbert": Family("ConvBertForMaskedLM", _SIZES | {"embedding_size": WIDTH}),
    "funnel": Family(
        "FunnelForMaskedLM",
        {"block_sizes": [1, 1], "d_model": WIDTH, "n_head": 2, "d_head": 16, "d_inner": 2 * WIDTH},
        _fixed(_text),
    ),
    "longformer": Family(
        "LongformerForMaskedLM", _SIZES | {"attention_window": 4}, _fixed(_text)
    ),
    "big_bird": Family("BigBirdForMaskedLM", _SIZES | {"attention_type": "original_full"}),
    "fnet": Family("FNetForMaskedLM", _SIZES),
    "nystromformer": Family("NystromformerForMaskedLM", _SIZES | {"segment_means_seq_len": 64}),
    "yoso": Family("YosoForMaskedLM", _SIZES | {"use_expectation": True}),
    "roformer": Family("RoFormerForMaskedLM", _SIZES),
    "squeezebert": Family("SqueezeBertForMaskedLM", _SIZES | {"embedding_size": WIDTH}),
    "ernie": Family("ErnieForMaskedLM", _SIZES),
    "esm": Family("EsmForMaskedLM", _SIZES | {"pad_token_id": 1, "mask_token_id": 2}),
    "layoutlm": Family("LayoutLMForMaskedLM", _SIZES),
    "luke": Family("LukeForMaskedLM", _SIZES | {"entity_vocab_size": 40, "entity_emb_size": 16}),
    "megatron-bert": Family("MegatronBertForMaskedLM", _SIZES),
    "modernbert": Family("ModernBertForMaskedLM", _SIZES | {"pad_token_id": 0}),
    "ibert": Family("IBertForMaskedLM", _SIZES),
    "tapas": Family("TapasForMaskedLM", _SIZES),
    "xmod": Family("XmodForMaskedLM", _SIZES | {"default_language": "en_XX"}),
    # Encoders with decoders.
    "t5": Family("T5ForConditionalGeneration", _T5, _text_to_text),
    "t5 v1.1": Family(
        "T5ForConditionalGeneration", _T5 | {"feed_forward_proj": "gated-gelu"}, _text_to_text
    ),
    # Their logits are not scaled down, so they are rounded as larger ones are.
    "mt5": Family("MT5ForConditionalGeneration", _T5, _text_to_text, atol=1e-4),
    "umt5": Family("UMT5ForConditionalGeneration", _T5, _text_to_text, atol=1e-4),
    "longt5": Family("LongT5ForConditionalGeneration", _T5, _masked(_fixed(_text_to_text))),
    "switch_transformers": Family(
        "SwitchTransformersForConditionalGeneration", _T5 | {"num_experts": 4}, _text_to_text
    ),
    "bart": Family("BartForConditionalGeneration", _BART, _text_to_text),
    "mbart": Family("MBartForConditionalGeneration", _BART, _text_to_text),
    "plbart": Family("PLBartForConditionalGeneration", _BART, _text_to_text),
    "mvp": Family("MvpForConditionalGeneration", _BART, _text_to_text),
    "pegasus": Family("PegasusForConditionalGeneration", _BART, _text_to_text),
    "pegasus_x": Family("PegasusXForConditionalGeneration", _BART, _text_to_text),
    "bigbird_pegasus": Family(
        "BigBirdPegasusForConditionalGeneration",
        _BART | {"attention_type": "original_full"},
        _text_to_text,
    ),
    "blenderbot": Family("BlenderbotForConditionalGeneration", _BART, _text_to_text),
    "blenderbot-small": Family("BlenderbotSmallForConditionalGeneration", _BART, _text_to_text),
    "m2m_100": Family("M2M100ForConditionalGeneration", _BART, _text_to_text),
    "marian": Family("MarianMTModel", _BART, _text_to_text),
    "led": Family(
        "LEDForConditionalGeneration",
        _BART | {"attention_window": 4, "max_encoder_position_embeddings": 64,
                 "max_decoder_position_embeddings": 64},
        _text_to_text,
    ),
    "prophetnet": Family(
        "ProphetNetForConditionalGeneration",
        {"hidden_size": WIDTH, "num_encoder_layers": 2, "num_decoder_layers": 2,
         "num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2,
         "encoder_ffn_dim": 2 * WIDTH, "decoder_ffn_dim": 2 * WIDTH,
         "max_position_embeddings": 64},
        _text_to_text,
    ),
    "whisper": Family(
        "WhisperForConditionalGeneration",
        _BART | {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 64},
        _speech(8, 32),
    ),
    "speech_to_text": Family(
        "Speech2TextForConditionalGeneration",
        _BART | {"input_feat_per_channel": 8, "conv_channels": WIDTH, "max_target_positions": 64,
                 "max_source_positions": 64},
        _speech(8, 32, last=True),
    ),
}  # fmt: skip
"""Families by name."""


def build(name: str, vocab: int) -> Case:
    """Build a family with seeded random weights that no two parameters share by accident.

    Raises:
        ValueError: If the model does not share what its class says it ties.
    """
    import transformers

    family = FAMILIES[name]
    made = getattr(transformers, family.model)
    given = _SPECIAL | {"vocab_size": vocab, "tie_word_embeddings": True} | {**family.config}
    config = made.config_class(**given)
    config.use_cache = False
    torch.manual_seed(0)
    module = made(config)
    add_noise(module)
    _check_ties(module)
    inputs, dynamic_shapes = family.inputs(vocab)
    return Case(module, inputs, dynamic_shapes)


def _check_ties(module: Any) -> None:
    """Hold the module to ``_tied_weights_keys``: what its class says is tied is one Parameter."""
    names = dict(module.named_parameters(remove_duplicate=False))
    declared = {
        name: source
        for name, source in module.all_tied_weights_keys.items()
        if name in names and source in names
    }
    groups = tie_groups(module)
    loose = [
        f"{name} = {source}"
        for name, source in declared.items()
        if not any({name, source} <= group for group in groups)
    ]
    if loose or not declared:
        raise ValueError(f"{type(module).__name__} does not tie {', '.join(loose) or 'anything'}")
