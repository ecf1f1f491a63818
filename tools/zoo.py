"""A tiny random model of every decoder that transformers knows: its configuration, with sizes shrunk by their keys."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from peftkit.families import FAMILIES, family_of

VOCABULARY = 300
LAYERS = 4
SIZES = (
    (VOCABULARY, "vocab_size vocab_size_per_layer_input unpadded_vocab_size encoder_hash_byte_group_vocab"),
    (
        LAYERS,
        "num_hidden_layers n_layer num_layers n_layers num_blocks decoder_layers max_window_layers "
        "num_layers_per_stack moe_layer_end_index depth encoder_layers",
    ),
    (
        32,
        "hidden_size n_embd d_model embedding_dim word_embed_proj_dim lru_width attention_hidden_size hidden_dim "
        "embed_dim backbone_hidden_size ple_embed_dim out_hidden_size projector_input_dim projector_output_dim "
        "vision_output_dim text_hidden_size adapter_in_dim adapter_input_size adapter_out_dim audio_token_vocab_size",
    ),
    (
        64,
        "intermediate_size ffn_dim dff dim_ff ffn_hidden_size n_inner d_inner decoder_ffn_dim dense_intermediate_size "
        "intermediate_size_mlp shared_intermediate_size encoder_ffn_dim expert_ffn_hidden_size moe_intermediate_size "
        "moe_shared_expert_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size "
        "mamba_d_ssm alignment_intermediate_size projector_hidden_size",
    ),
    (
        4,
        "num_attention_heads n_head num_heads n_heads attention_heads decoder_attention_heads swa_num_attention_heads "
        "linear_num_heads linear_num_key_heads linear_num_value_heads num_experts n_routed_experts num_local_experts "
        "moe_num_experts ffn_num_experts index_n_heads encoder_attention_heads n_mamba_heads num_query_groups",
    ),
    (
        2,
        "num_key_value_heads num_kv_heads n_head_kv swa_num_key_value_heads num_global_key_value_heads "
        "num_experts_per_tok num_experts_per_token moe_k moe_topk moe_top_k num_shared_experts moe_num_shared_experts "
        "n_shared_experts num_codebooks o_groups zero_expert_num n_groups layers_per_block mamba_n_groups",
    ),
    (
        8,
        "head_dim kv_channels attention_head_dim global_head_dim swa_head_dim linear_head_dim dim_head d_head "
        "linear_key_head_dim linear_value_head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim index_head_dim "
        "kv_lora_rank q_lora_rank o_lora_rank hidden_size_per_layer_input rotary_dim state_size ssm_state_size "
        "mamba_d_state time_step_rank mamba_dt_rank gated_norm_rank mamba_d_head mamba_head_dim head_size "
        "router_hidden_size d_rel hc_lowrank laurel_rank adapter_rank chunk_size mamba_chunk_size block_size",
    ),
    (128, "max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length"),
    (
        16,
        "sliding_window sliding_window_size local_attention attention_window_size attention_chunk_size window_size "
        "qk_head_dim rel_extent mamba_expand_dim keep_window_size "
        "index_topk",
    ),
    (1, "n_group topk_group num_expert_group n_groups_moe first_k_dense_replace num_dense_layers"),
)
"""Sizes, each with the keys whose value becomes it where that is larger; other keys stay as they are."""
SIZE_OF = {key: size for size, keys in SIZES for key in keys.split()}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
PER_LAYER = (
    "layer_types",
    "layers_block_type",
    "mlp_layer_types",
    "indexer_types",
    "no_rope_layers",
    "layer_rope_theta",
)
"""Lists with an entry for each layer."""
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SLIDING = {"num_attention_heads": 2, "num_key_value_heads": 2, "kv_lora_rank": 16, "head_dim": 16}
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": MAMBA | {"attn_layer_indices": [1, 3]},
    "bert-generation": {"is_decoder": True},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE}},
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots3_note_text": {"per_layer_config": {1: SLIDING, 3: SLIDING}},
    "deepseek_ocr2_text": {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"] * 2},
    "ernie4_5_vl_moe_text": {"rope_parameters": ROPE | {"mrope_section": [1, 1, 2]}},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "gemma3n_text": {"intermediate_size": 64, "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0]}
    | {"num_kv_shared_layers": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "attention_layers": ["global", "local"] * 2},
    "granitemoehybrid": MAMBA | {"layer_types": ["linear_attention", "full_attention"] * 2},
    "hrm_text": {"num_hidden_layers": 2, "num_layers_per_stack": None, "H_cycles": 1, "L_cycles": 2}
    | {"L_bp_cycles": [1]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "hunyuan_vl_text": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_offset": 0},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "mistral4": {"head_dim": 16},
    "molmo2_adapter": {"vision_feature_layer": [3, 1]},
    "paddleocr_vl_text": {"rope_parameters": ROPE | {"mrope_section": [2, 1, 1]}},
    "step3p5": {"sliding_window": 16},
    "ministral": {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {"layer_types": ["linear_attention", "full_attention"] * 2, "indexer_n_heads": 2}
    | {"indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 32, "indexer_compress_ratio": 4},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4},
    "zamba2": {"hybrid_layer_ids": [1, 3], "mamba_headdim": 16, "num_key_value_heads": 4, "attention_head_dim": 16}
    | {"attention_hidden_size": 64},
}
"""What single families want otherwise, by `model_type`, those of inner configurations too."""
UNMADE = {
    "blt": "transformers makes no cache for it: its configuration does not say how many layers it has",
    "chameleon": "it wants a map of its vocabulary that its configuration does not have",
    "dbrx": "its attention reads a key that its configuration does not have",
    "emu3": "it wants a map of its vocabulary that its configuration does not have",
    "fast_vlm": "its vision tower wants the package timm",
    "gemma3n": "its vision tower wants the package timm",
    "gemma4_unified_assistant": "it reads the cache of another model",
    "granite4_vision": "its configuration does not say where images enter",
    "mistral_large4": "its layers have sources of keys that do not follow from their number",
    "perception_lm": "its vision tower wants the package timm",
}
"""Families of which no model is made, and why."""
REFUSED = {
    "git": "takes images or sound",
    "mistral4": "is not a decoder",
    "paligemma": "reads its prompts in both directions",
}
"""Families of images and text that no family of ours takes, and what it says."""
NOT_CAUSAL = ("cpmant", "xlnet")
"""Families whose tokens see those behind them, which a run refuses at its start."""
NOT_TEXT = (
    "blip blip-2 diffusion_gemma evolla florence2 idefics instructblip instructblipvideo kosmos-2 molmo2 pi0 "
    "pix2struct pp_chart2table pp_formulanet qwen2_5_omni_thinker qwen3_omni_moe_thinker shieldgemma2 "
    "t5gemma2 udop vision-encoder-decoder"
)
"""Families of images and text that are encoder-decoders, do not run on text alone or do not answer by text."""
IMAGE_TEXT = tuple(sorted(set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - set(NOT_TEXT.split())))
"""Families of decoders that take images and text."""


def families() -> list[str]:
    """List the architectures of every decoder of plain text, in the order of their names."""
    return sorted(
        name
        for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if _refusal(name) is None and name not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    )


def made() -> list[str]:
    """List the families of which there is a model, those of images and text after the others."""
    return [name for name in (*families(), *IMAGE_TEXT) if name not in (*UNMADE, *REFUSED, *NOT_CAUSAL)]


def settings(architecture: str) -> dict[str, Any]:
    """Return the configuration keys of a tiny model of an architecture."""
    return shrunk(AutoConfig.for_model(architecture).to_dict(), architecture) | EXCEPTIONS.get(architecture, {})


def config_of(architecture: str, **overrides: Any) -> PretrainedConfig:
    """Return the configuration of a tiny model; `overrides` are keys of it."""
    return AutoConfig.for_model(architecture, **(settings(architecture) | overrides))


def build(architecture: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Build the random model: 4 layers of width 32, 300 tokens, fp32, eval mode, with nothing left out at random."""
    return of_config(config_of(architecture, **overrides), seed)


def image_text(architecture: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Build a random model that takes images and text, as `build` does; with `save_pretrained` it is a checkpoint."""
    config = config_of(architecture, **overrides)
    if "vision_config" in config.sub_configs and getattr(config, "vision_config", None) is None:
        vision = config.sub_configs["vision_config"]()
        small = shrunk(vision.to_dict(), vision.model_type)
        config = config_of(architecture, vision_config=small, **overrides)
    return of_config(config, seed, AutoModelForImageTextToText)


def write(folder: Path, architecture: str, seed: int = 0) -> Path:
    """Write the model of a family, of text or of images too, and a tokenizer of bytes that fits it."""
    make = image_text if architecture in IMAGE_TEXT else build
    make(architecture, seed).save_pretrained(folder)  # type: ignore[call-overload]
    byte_tokenizer().save_pretrained(folder)
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 259 tokens: padding, begin, end, and every byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {letter: index + 3 for index, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def of_config(config: PretrainedConfig, seed: int = 0, loader: Any = None) -> PreTrainedModel:
    """Build the model of a configuration: normal weights, and vectors spread around their start."""
    loader = loader or family_of(config).loader
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = loader.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 and "A_log" not in name:
                    parameter.normal_(std=0.2)
                else:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def shrunk(keys: Mapping[str, Any], architecture: str = "") -> dict[str, Any]:
    """Return configuration keys with sizes made small by their names, those of inner configurations too."""
    layers = next((LAYERS for key in keys if SIZE_OF.get(key) == LAYERS), LAYERS)
    small: dict[str, Any] = {}
    for key, value in keys.items():
        if isinstance(value, Mapping) and key.endswith("config") and "model_type" in value:
            inner = str(value["model_type"])
            small[key] = {"model_type": inner} | shrunk(value, inner) | EXCEPTIONS.get(inner, {})
        elif key in SPECIAL:
            small[key] = SPECIAL[key]
        elif isinstance(value, list) and len(value) > layers and (key in PER_LAYER or key.endswith("_per_layer")):
            small[key] = _drawn(value, layers)
        elif isinstance(value, int) and not isinstance(value, bool) and value > SIZE_OF.get(key, value):
            small[key] = SIZE_OF[key]
        elif isinstance(value, float) and value > 0 and key.endswith(("dropout", "pdrop", "dropout_prob", "layerdrop")):
            small[key] = 0.0
        elif key in DROPPED:
            continue
        else:
            small[key] = value
    if "kv_lora_rank" in small:
        small["num_key_value_heads"] = small["num_attention_heads"]
    small = {key: value for key, value in small.items() if key not in DROPPED}
    kind = CONFIG_MAPPING[architecture] if architecture in CONFIG_MAPPING else None  # noqa: SIM401 its get loads none
    if "mrope_section" in getattr(kind, "ignore_keys_at_rope_validation", ()) and "rope_parameters" in keys:
        small["rope_parameters"] = {**(keys["rope_parameters"] or {}), "mrope_section": _sections(keys, small)}
    return small


def _sections(keys: Mapping[str, Any], small: Mapping[str, Any]) -> list[int]:
    """Return how many of the frequencies of a small head are for time, height and width."""
    share = (keys["rope_parameters"] or {}).get("partial_rotary_factor", 1.0)
    width = small.get("head_dim") or small["hidden_size"] // small["num_attention_heads"]
    count = int(width * share) // 2
    return [count - 2 * (count // 4), count // 4, count // 4]


def _drawn(values: list[Any], count: int) -> list[Any]:
    """Return entries for `count` layers that hold every kind there is."""
    kinds = list(dict.fromkeys(map(str, values)))
    by_kind = {str(value): value for value in values}
    return [by_kind[kinds[index % len(kinds)]] for index in range(count)]


DROPPED = (
    "torch_dtype",
    "dtype",
    "transformers_version",
    "_name_or_path",
    "architectures",
    "model_type",
    "rope_parameters",
    "per_layer_config",
)
"""Keys that are left to the configuration class."""


@cache
def _refusal(architecture: str) -> str | None:
    try:
        return FAMILIES["decoder"].refusal(AutoConfig.for_model(architecture))
    except Exception as error:  # some configurations cannot be made without arguments
        return f"{type(error).__name__}: {error}"
