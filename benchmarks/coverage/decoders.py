"""Decoders with attention in all layers."""

from benchmarks.coverage.architecture import Architecture

_EQUAL = {"num_key_value_heads": 4}
_LOCAL_AND_GLOBAL = {"layer_types": ["sliding_attention", "full_attention"]}
_GROUPS = {"n_group": 1, "topk_group": 1}
_LATENT = {"qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8, "kv_lora_rank": 16, "q_lora_rank": 16}
_LATENT |= {**_EQUAL, **_GROUPS}
_SPARSE = {"index_topk": 4, "index_head_dim": 8, "index_n_heads": 2}
_TWICE = {"expert_ffn_hidden_size": 16, "moe_topk": 2, "zero_expert_num": 2, "head_dim": 4}
_PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64}
_SHARED = {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "laurel_rank": 4, **_PER_LAYER}
_SHARED |= {"layer_types": ["sliding_attention", "full_attention"] * 2}
_COMPRESSED = {"q_lora_rank": 16, "o_lora_rank": 16, "o_groups": 2, "head_dim": 16, "num_key_value_heads": 1, **_SPARSE}
_COMPRESSED |= {"compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}}
_COMPRESSED |= {"layer_types": ["sliding_attention", *_COMPRESSED["compress_rates"]], "num_hidden_layers": 3}
_NARROW_VALUES = {"v_head_dim": 4, **_GROUPS, **_LOCAL_AND_GLOBAL}
_ALIBI = {"alibi": True, "new_decoder_architecture": True, "num_kv_heads": 2}
_CHUNKS = {"attention_chunk_size": 4, "no_rope_layers": [1, 0]}
_LOCAL = {"attention_types": [[["global", "local"], 1]], "window_size": 4}

DECODERS = (
    Architecture("LlamaForCausalLM", "grouped queries"),
    Architecture("Qwen2ForCausalLM", "grouped queries, biases"),
    Architecture("Qwen3ForCausalLM", "grouped queries, norms of queries and keys"),
    Architecture("MistralForCausalLM", "grouped queries, sliding window"),
    Architecture("MinistralForCausalLM", "sliding window in some layers", _LOCAL_AND_GLOBAL),
    Architecture("GemmaForCausalLM", "grouped queries"),
    Architecture("Gemma2ForCausalLM", "soft-capped logits, sliding window in some layers", _LOCAL_AND_GLOBAL),
    Architecture("Gemma3ForCausalLM", "norms of queries and keys, sliding window in some layers", _LOCAL_AND_GLOBAL),
    Architecture("Gemma3nForCausalLM", "keys and values of other layers", _SHARED),
    Architecture("Gemma4ForCausalLM", "wider global heads", {"global_head_dim": 16, **_PER_LAYER, **_LOCAL_AND_GLOBAL}),
    Architecture("GptOssForCausalLM", "attention sinks, experts, sliding window in some layers", _LOCAL_AND_GLOBAL),
    Architecture("FlintForCausalLM", "attention sinks, experts"),
    Architecture("MiMoV2FlashForCausalLM", "attention sinks in some layers, experts", _NARROW_VALUES),
    Architecture("FalconForCausalLM", "one key head, parallel block"),
    Architecture("FalconForCausalLM", "ALiBi, grouped queries", _ALIBI),
    Architecture("GPTBigCodeForCausalLM", "one key head"),
    Architecture("DeepseekV2ForCausalLM", "latent attention, experts", _LATENT),
    Architecture("DeepseekV3ForCausalLM", "latent attention, experts", _LATENT),
    Architecture("DeepseekV32ForCausalLM", "latent attention, keys chosen by an indexer", {**_LATENT, **_SPARSE}),
    Architecture("GlmMoeDsaForCausalLM", "latent attention, keys chosen by an indexer", {**_LATENT, **_SPARSE}),
    Architecture("DeepseekV4ForCausalLM", "compressed keys, attention sinks", _COMPRESSED),
    Architecture("MiniCPM3ForCausalLM", "latent attention", {**_LATENT, "head_dim": None}),
    Architecture("LongcatFlashForCausalLM", "latent attention, two in each layer", {**_LATENT, **_TWICE}),
    Architecture("Glm4MoeLiteForCausalLM", "latent attention, experts", _LATENT),
    Architecture("BloomForCausalLM", "ALiBi"),
    Architecture("MptForCausalLM", "ALiBi"),
    Architecture("GPTNeoXForCausalLM", "parallel block"),
    Architecture("GPTJForCausalLM", "parallel block", {"rotary_dim": 4}),
    Architecture("CodeGenForCausalLM", "parallel block", {"rotary_dim": 4}),
    Architecture("PhiForCausalLM", "parallel block", _EQUAL),
    Architecture("CohereForCausalLM", "parallel block, grouped queries"),
    Architecture("Cohere2ForCausalLM", "parallel block, sliding window in some layers", _LOCAL_AND_GLOBAL),
    Architecture("MixtralForCausalLM", "experts, grouped queries"),
    Architecture("Qwen2MoeForCausalLM", "experts, grouped queries"),
    Architecture("Qwen3MoeForCausalLM", "experts, norms of queries and keys"),
    Architecture("OlmoeForCausalLM", "experts, norms over all heads", _EQUAL),
    Architecture("PhimoeForCausalLM", "experts, grouped queries"),
    Architecture("GraniteMoeForCausalLM", "experts, grouped queries"),
    Architecture("Glm4MoeForCausalLM", "experts, partial rotary positions", _GROUPS),
    Architecture("AfmoeForCausalLM", "experts, gated attention", _LOCAL_AND_GLOBAL),
    Architecture("Llama4ForCausalLM", "experts, chunks of tokens in some layers", _CHUNKS),
    Architecture("JetMoeForCausalLM", "experts of attention", {"kv_channels": 8, **_EQUAL}),
    Architecture("GPT2LMHeadModel", "learned positions"),
    Architecture("GPTNeoForCausalLM", "local in some layers", _LOCAL),
    Architecture("OPTForCausalLM", "learned positions"),
    Architecture("BioGptForCausalLM", "learned positions"),
    Architecture("XGLMForCausalLM", "sinusoidal positions"),
    Architecture("CTRLLMHeadModel", "sinusoidal positions", {"dff": 48}),
    Architecture("Phi3ForCausalLM", "grouped queries, one projection"),
    Architecture("Starcoder2ForCausalLM", "grouped queries, biases"),
    Architecture("StableLmForCausalLM", "grouped queries, partial rotary positions"),
    Architecture("SmolLM3ForCausalLM", "grouped queries, no positions in some layers", {"no_rope_layers": [1, 0]}),
    Architecture("GraniteForCausalLM", "grouped queries, scale of its own"),
    Architecture("GlmForCausalLM", "grouped queries, partial rotary positions"),
    Architecture("Glm4ForCausalLM", "grouped queries, norms behind attention"),
    Architecture("NemotronForCausalLM", "grouped queries"),
    Architecture("SeedOssForCausalLM", "grouped queries"),
    Architecture("PersimmonForCausalLM", "norms of queries and keys, one projection"),
    Architecture("OlmoForCausalLM", "clipped projections", {"clip_qkv": 0.5}),
    Architecture("Olmo2ForCausalLM", "norms over all heads"),
    Architecture("Exaone4ForCausalLM", "norms of queries and keys, sliding window in some layers", _LOCAL_AND_GLOBAL),
    Architecture("NanoChatForCausalLM", "norms of queries and keys without weights"),
    Architecture("ModernBertDecoderForCausalLM", "sliding window in some layers", _LOCAL_AND_GLOBAL),
    Architecture("LagunaForCausalLM", "as many heads as a layer likes", {"num_attention_heads_per_layer": [4, 2]}),
    Architecture("DiffLlamaForCausalLM", "differential attention"),
    Architecture("DogeForCausalLM", "keys chosen by their values", {"keep_window_size": 4}),
    Architecture("HrmTextForCausalLM", "layers that run several times"),
)
