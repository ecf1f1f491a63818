"""Options of Hugging Face peft by type: those that are read, and those that change nothing of what a folder computes.

Of an option that stands in neither list nothing is known, and a folder in which it is set is refused. The names are
those of version 0.21; which modules have adapters, and of which sizes, the tensors tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftkit.errors import PeftkitError

ORIGIN = "peft_type peft_version task_type auto_mapping base_model_name_or_path revision inference_mode runtime_config"
PLACES = "target_modules exclude_modules layers_to_transform layers_pattern fan_in_fan_out"
COMMON = {*ORIGIN.split(), *PLACES.split(), "init_weights", "modules_to_save"}
"""Of every type: where the folder comes from, where adapters stand, what was saved beside them, and how they start,
which moves no base but those of LoRA's starts."""
LORA = "r lora_alpha lora_dropout rank_pattern alpha_pattern use_rslora use_dora init_lora_weights target_parameters"
WHOLE = "bias lora_bias trainable_token_indices"
"""What is trained beside LoRA's pairs."""
STARTS = "eva_config corda_config lora_ga_config loftq_config"
"""What starts of LoRA are told, which `init_lora_weights` names."""
UNUSED = "megatron_core qalora_group_size"
"""Sizes of what is switched on elsewhere."""
SCHEDULE = "target_r init_r tinit tfinal deltaT beta1 beta2 orth_reg_weight total_step"
PROMPT = "num_virtual_tokens token_dim num_attention_heads num_layers"
OWN = {
    "LORA": f"{LORA} {WHOLE} {STARTS} {UNUSED}",
    "ADALORA": f"{SCHEDULE} r lora_alpha lora_dropout rank_pattern init_lora_weights {STARTS} {UNUSED}",
    "IA3": "feedforward_modules init_ia3_weights",
    "VERA": "r projection_prng_key save_projection vera_dropout d_initial",
    "LOKR": "r alpha decompose_both decompose_factor rank_dropout module_dropout rank_dropout_scale",
    "LOHA": "r alpha rank_dropout module_dropout",
    "HIRA": "r hira_dropout",
    "GRALORA": "r hybrid_r alpha gralora_dropout gralora_k",
    "DELORA": "r delora_lambda module_dropout",
    "PEANUT": "r depth act_fn scaling",
    "MISS": "r mini_r miss_dropout",
    "OFT": "r oft_block_size module_dropout coft eps block_share use_cayley_neumann num_cayley_neumann_terms",
    "BOFT": "boft_block_size boft_block_num boft_n_butterfly_factor boft_dropout",
    "HRA": "r apply_GS",
    "ROAD": "variant group_size",
    "FOURIERFT": "n_frequency scaling random_loc_seed",
    "WAVEFT": "n_frequency scaling random_loc_seed wavelet_family use_idwt proportional_parameters",
    "C3A": "block_size",
    # Bases are read as they were drawn.
    "RANDLORA": "r projection_prng_key save_projection sparse very_sparse randlora_dropout randlora_alpha",
    "VBLORA": "r num_vectors vector_length topk save_only_topk_weights vblora_dropout init_vector_bank_bound "
    "init_logits_std",
    "UNILORA": "r proj_seed theta_d_length unilora_dropout init_theta_d_bound save_indices",
    "LN_TUNING": "",
    "ADAPTION_PROMPT": "adapter_len adapter_layers",
    "PROMPT_TUNING": f"{PROMPT} prompt_tuning_init prompt_tuning_init_text tokenizer_name_or_path tokenizer_kwargs",
    # What its encoder makes is what is saved.
    "P_TUNING": f"{PROMPT} encoder_reparameterization_type encoder_hidden_size encoder_num_layers encoder_dropout",
    "PREFIX_TUNING": f"{PROMPT} prefix_projection encoder_hidden_size",
}
OFF = (None, False, [], {}, "", "none")
"""Values with which an option does nothing."""
ONES = {"num_transformer_submodules": 1}
"""Options that do nothing at another value."""


def check_options(config: Mapping[str, Any]) -> None:
    """Refuse a configuration in which an option is set that is not read and changes what is computed, or may."""
    kind = config.get("peft_type")
    known = COMMON | set(OWN.get(str(kind), "").split())
    unread = [
        key
        for key, value in config.items()
        if key not in known and not any(value == off and type(value) is type(off) for off in (*OFF, ONES.get(key)))
    ]
    if unread:
        values = ", ".join(f"{key}: {config[key]!r}" for key in sorted(unread))
        raise PeftkitError(
            f"adapter_config.json: of the type {kind} these options are not read, and change what is computed, or may: "
            f"{values}."
        )
