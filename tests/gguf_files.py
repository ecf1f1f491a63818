"""Tiny GGUF files that tests write: a random llama with a tokenizer of bytes and a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from peftkit.models.tiny import tiny

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
"""Unknown, begin, and end of turn, which is the end of sequence and the padding too."""
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
PAIRS = ["t h", "e r"]
VOCABULARY = len(SPECIAL) + len(LETTERS) + len(PAIRS)
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nAnswer briefly.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    path: Path, kind: str = "Q8_0", architecture: str = "llama", tokenizer: bool = True, template: str | None = TEMPLATE
) -> Path:
    """Write a llama of two layers whose matrices are held as `kind`; skips the test without the package gguf."""
    gguf = pytest.importorskip("gguf", reason="reading GGUF needs the package gguf: pip install 'peftkit[gguf]'")
    model = tiny("llama", vocab_size=VOCABULARY)
    config: Any = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    if tokenizer:
        _write_tokenizer(writer, template)
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy().astype(np.float32)
        part = ".".join(name.split(".")[3:-1])
        if part in heads:
            values = interleaved(values, heads[part])
        chosen = gguf.GGMLQuantizationType[kind] if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(stored_name(name), gguf.quantize(values, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Order the rows of queries or keys as llama.cpp wants them: pairs of rotary positions beside each other."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def stored_name(name: str) -> str:
    """Return what llama.cpp calls a tensor of a llama."""
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name == "lm_head.weight":
        return "output.weight"
    if name in whole:
        return whole[name]
    _, _, block, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{block}.{LAYER[part]}.weight"


def _write_tokenizer(writer: Any, template: str | None) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    ordinary = [*LETTERS, *(pair.replace(" ", "") for pair in PAIRS)]
    writer.add_token_list([*SPECIAL, *ordinary])
    writer.add_token_types([3] * len(SPECIAL) + [1] * len(ordinary))
    writer.add_token_merges(PAIRS)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)
