"""Models of images and of sound, and of images with text."""

from benchmarks.coverage.architecture import Architecture
from benchmarks.coverage.batches import (
    patches_in_text,
    pictures,
    pictures_among_text,
    pictures_in_prefix,
    pictures_in_text,
    spectrogram,
    text_and_pictures,
    waves,
)
from benchmarks.coverage.sizes import HEAD_DIM, IMAGE, LAYERS, PATCH, VISION_START, WIDTH, Part

_WINDOWS = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 2, "image_size": 16, "patch_size": 2}
_PYRAMID = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32]}
_PYRAMID |= {"patch_sizes": [3, 3], "strides": [2, 2], "num_attention_heads": [2, 4], "mlp_ratios": [2, 2]}
_CLIP = {"text_config": Part("CLIPTextConfig"), "vision_config": Part("CLIPVisionConfig"), "projection_dim": 16}
_SIGLIP = {"text_config": Part("SiglipTextConfig", {"projection_size": WIDTH})}
_SIGLIP |= {"vision_config": Part("SiglipVisionConfig")}
_BLIP = {"text_config": Part("BlipTextConfig"), "vision_config": Part("BlipVisionConfig"), "projection_dim": 16}
_HEADLESS = Part("SiglipVisionConfig", {"vision_use_head": False})
_LLAVA = {"text_config": Part("LlamaConfig"), "vision_config": Part("CLIPVisionConfig"), "image_token_index": IMAGE}
_PALIGEMMA = {"text_config": Part("GemmaConfig"), "vision_config": _HEADLESS, "image_token_index": IMAGE}
_PALIGEMMA |= {"projection_dim": WIDTH}
_GEMMA3 = {"text_config": Part("Gemma3TextConfig", {"layer_types": ["sliding_attention", "full_attention"]})}
_GEMMA3 |= {"vision_config": _HEADLESS, "image_token_index": IMAGE, "mm_tokens_per_image": 9}
_SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
_QWEN_EYES = {"depth": LAYERS, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": 4, "patch_size": PATCH}
_QWEN2_VL = {"text_config": Part("Qwen2VLTextConfig", {"rope_parameters": _SECTIONS, "head_dim": HEAD_DIM})}
_QWEN2_VL |= {"vision_config": Part("Qwen2VLVisionConfig", _QWEN_EYES), "image_token_id": IMAGE}
_QWEN2_VL |= {"vision_start_token_id": VISION_START, "vision_end_token_id": 5, "video_token_id": 6}
_SOUND = {"conv_dim": [16, 16], "conv_kernel": [2, 2], "conv_stride": [2, 1], "num_conv_pos_embeddings": 4}
_SOUND |= {"num_conv_pos_embedding_groups": 2, "apply_spec_augment": False}
_SPECTRA = {"max_length": 16, "num_mel_bins": 8, "frequency_stride": 4, "time_stride": 4}
_RELATIVE = {"use_relative_position_bias": True}

VISION_AND_AUDIO = (
    Architecture("ViTModel", "learned positions", batch=pictures),
    Architecture("DeiTModel", "learned positions", batch=pictures),
    Architecture("BeitModel", "relative positions", _RELATIVE, pictures),
    Architecture("Data2VecVisionModel", "relative positions", _RELATIVE, pictures),
    Architecture("Dinov2Model", "scaled layers", batch=pictures),
    Architecture("Dinov2WithRegistersModel", "register tokens", batch=pictures),
    Architecture("DINOv3ViTModel", "rotary positions", {"pos_embed_rescale": None}, pictures),
    Architecture("IJepaModel", "no class token", batch=pictures),
    Architecture("YolosModel", "detection tokens", {"num_detection_tokens": 3, "image_size": [12, 12]}, pictures),
    Architecture("SwinModel", "shifted windows, relative positions", _WINDOWS, pictures),
    Architecture("Swinv2Model", "shifted windows, cosine attention", _WINDOWS, pictures),
    Architecture("SegformerModel", "fewer keys than queries", _PYRAMID, pictures),
    Architecture("SiglipVisionModel", "pooled by attention", batch=pictures),
    Architecture("CLIPModel", "two towers", _CLIP, text_and_pictures),
    Architecture("SiglipModel", "two towers", _SIGLIP, text_and_pictures),
    Architecture("BlipModel", "two towers", _BLIP, text_and_pictures),
    Architecture("LlavaForConditionalGeneration", "images in text", _LLAVA, pictures_in_text),
    Architecture("PaliGemmaForConditionalGeneration", "images in a prefix", _PALIGEMMA, pictures_in_prefix),
    Architecture("Gemma3ForConditionalGeneration", "images in text, seen from all sides", _GEMMA3, pictures_among_text),
    Architecture("Qwen2VLForConditionalGeneration", "images in text, three axes", _QWEN2_VL, patches_in_text),
    Architecture("Wav2Vec2Model", "convolutions of sound", _SOUND, waves),
    Architecture("HubertModel", "convolutions of sound", _SOUND, waves),
    Architecture("WavLMModel", "convolutions of sound, relative positions", _SOUND, waves),
    Architecture("ASTModel", "spectrograms", _SPECTRA, spectrogram),
)
