"""Encoder-decoders with cross-attention, of text and of speech."""

from benchmarks.coverage.architecture import Architecture
from benchmarks.coverage.batches import speech_and_text, two_texts
from benchmarks.coverage.sizes import TOKENS, Part

_MEL = {"num_mel_bins": 6, "max_source_positions": TOKENS}
_LOCAL = {"local_radius": 3}
_BLOCKS = {"block_size": 4, "num_global_tokens": 2}
_WINDOW = {"attention_window": 4, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64}
_STREAMS = {"num_encoder_layers": 2, "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4}
_GEMMA = {"layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 8}
_GEMMAS = {"encoder": Part("T5GemmaModuleConfig", _GEMMA)}
_GEMMAS |= {"decoder": Part("T5GemmaModuleConfig", {**_GEMMA, "is_decoder": True})}

ENCODER_DECODERS = (
    Architecture("T5Model", "relative positions", batch=two_texts),
    Architecture("MT5Model", "relative positions", batch=two_texts),
    Architecture("UMT5Model", "relative positions in all layers", batch=two_texts),
    Architecture("LongT5Model", "relative positions, local attention", _LOCAL, two_texts),
    Architecture("SwitchTransformersModel", "relative positions, experts", batch=two_texts),
    Architecture("T5GemmaModel", "soft-capped logits, sliding window in some layers", _GEMMAS, two_texts),
    Architecture("BartModel", "learned positions", batch=two_texts),
    Architecture("MBartModel", "learned positions", batch=two_texts),
    Architecture("BlenderbotModel", "learned positions", batch=two_texts),
    Architecture("PegasusModel", "sinusoidal positions", batch=two_texts),
    Architecture("MarianModel", "sinusoidal positions", batch=two_texts),
    Architecture("M2M100Model", "sinusoidal positions", batch=two_texts),
    Architecture("SeamlessM4TForTextToText", "sinusoidal positions", batch=two_texts),
    Architecture("PegasusXModel", "local and global attention", _BLOCKS, two_texts),
    Architecture("BigBirdPegasusModel", "random, local and global blocks", batch=two_texts),
    Architecture("LEDModel", "sliding window and global tokens", _WINDOW, two_texts),
    Architecture("ProphetNetModel", "several streams", _STREAMS, two_texts),
    Architecture("WhisperModel", "sound, no mask of the encoder", _MEL, speech_and_text),
)
