"""Decoders with linear attention or state-space layers, beside attention or alone."""

from benchmarks.coverage.architecture import Architecture

_EQUAL = {"num_key_value_heads": 4}
_LINEAR = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
_GATED_DELTA = {"layer_types": ["linear_attention", "full_attention"], **_LINEAR}
_STATE_SPACE = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}
_MAMBA2 = {"num_heads": 4, "head_dim": 16, "n_groups": 1, "state_size": 8, "chunk_size": 8}
_LATENT = {"qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8, "kv_lora_rank": 16, **_EQUAL}

HYBRIDS = (
    Architecture("JambaForCausalLM", "Mamba, experts", {"attn_layer_period": 2, "attn_layer_offset": 1}),
    Architecture("Qwen3NextForCausalLM", "gated delta rule, gated attention, experts", _GATED_DELTA),
    Architecture("Qwen3_5ForCausalLM", "gated delta rule, gated attention", _GATED_DELTA),
    Architecture("BambaForCausalLM", "Mamba 2", {**_STATE_SPACE, "attn_layer_indices": [1]}),
    Architecture("FalconH1ForCausalLM", "Mamba 2 beside attention", {**_STATE_SPACE, "mamba_d_ssm": 64}),
    Architecture("Lfm2ForCausalLM", "short convolutions", {"layer_types": ["conv", "full_attention"]}),
    Architecture(
        "Zamba2ForCausalLM",
        "Mamba 2, shared attention",
        {
            "layers_block_type": ["mamba", "hybrid", "hybrid"],
            "num_hidden_layers": 3,
            "n_mamba_heads": 4,
            "mamba_d_state": 8,
            "chunk_size": 8,
            **_EQUAL,
        },
    ),
    Architecture(
        "ZambaForCausalLM",
        "Mamba, shared attention",
        {"layers_block_type": ["mamba", "hybrid", "hybrid"], "num_hidden_layers": 3, "mamba_d_state": 8, **_EQUAL},
    ),
    Architecture(
        "MiniMaxForCausalLM",
        "lightning attention, experts",
        {"layer_types": ["linear_attention", "full_attention"], "block_size": 8},
    ),
    Architecture(
        "GraniteMoeHybridForCausalLM", "Mamba 2, experts", {**_STATE_SPACE, "layer_types": ["mamba", "attention"]}
    ),
    Architecture(
        "NemotronHForCausalLM",
        "Mamba 2",
        {
            "layers_block_type": ["mamba", "attention", "mlp"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
        },
    ),
    Architecture(
        "KimiLinearForCausalLM",
        "delta rule, latent attention, experts",
        {"layer_types": ["linear_attention", "full_attention"], "linear_head_dim": 8, "linear_num_heads": 4, **_LATENT},
    ),
    Architecture("OlmoHybridForCausalLM", "gated delta rule", {"layer_types": ["linear_attention", "full_attention"]}),
    Architecture(
        "RecurrentGemmaForCausalLM",
        "gated linear recurrence, sliding window",
        {"block_types": ["recurrent", "attention"], "attention_window_size": 4, "lru_width": 32},
    ),
    Architecture("MambaForCausalLM", "state space only", {"state_size": 8}),
    Architecture("Mamba2ForCausalLM", "state space only", _MAMBA2),
    Architecture("FalconMambaForCausalLM", "state space only", {"state_size": 8}),
    Architecture("RwkvForCausalLM", "recurrent only", {"attention_hidden_size": 32}),
)
