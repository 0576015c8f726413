"""Encoders of text."""

from benchmarks.coverage.architecture import Architecture

_LOCAL_AND_GLOBAL = {"layer_types": ["full_attention", "sliding_attention"], "local_attention": 8}
_DISENTANGLED = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
_FUNNEL = {"block_sizes": [1, 1], "num_decoder_layers": 1, "d_head": 8, "d_inner": 48}

ENCODERS = (
    Architecture("BertModel", "learned positions"),
    Architecture("RobertaModel", "learned positions"),
    Architecture("XLMRobertaModel", "learned positions"),
    Architecture("DistilBertModel", "learned positions"),
    Architecture("ElectraModel", "learned positions"),
    Architecture("AlbertModel", "layers with the same weights"),
    Architecture(
        "DebertaModel", "disentangled relative positions", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
    ),
    Architecture(
        "DebertaV2Model",
        "disentangled relative positions",
        {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    ),
    Architecture("ModernBertModel", "rotary positions, sliding window in some layers", _LOCAL_AND_GLOBAL),
    Architecture("MPNetModel", "relative positions"),
    Architecture("EuroBertModel", "rotary positions, grouped queries"),
    Architecture("OpenAIPrivacyFilterModel", "attention sinks, experts"),
    Architecture("NomicBertModel", "rotary positions"),
    Architecture("EsmModel", "rotary positions", {"position_embedding_type": "rotary", "mask_token_id": 4}),
    Architecture("RoFormerModel", "rotary positions"),
    Architecture("LongformerModel", "sliding window and global tokens", {"attention_window": 4}),
    Architecture("BigBirdModel", "random, local and global blocks"),
    Architecture("XLNetModel", "relative positions, two streams", {"d_inner": 48}),
    Architecture(
        "FunnelModel", "pooled queries", {"block_sizes": [1, 1], "num_decoder_layers": 1, "d_head": 8, "d_inner": 48}
    ),
    Architecture("ConvBertModel", "convolutions beside attention"),
    Architecture("MobileBertModel", "bottlenecks", {"intra_bottleneck_size": 16, "true_hidden_size": 16}),
    Architecture("FNetModel", "Fourier transforms, no attention"),
    Architecture("GteModel", "rotary positions"),
)
