"""Sound scripts of other families of models of a fifth blind set, for `odd_fifth`."""

from collections.abc import Callable

import transformers as hf
from torch import nn

from benchmarks.checkup import architectures, data
from benchmarks.checkup.architectures import BERT, LLAMA, VIT, hf_loss, hf_model, image_loss
from benchmarks.checkup.data import IMAGE, PATCH
from benchmarks.checkup.nets import BEGIN, CLASSES, END, HEADS, PAD, TOKENS, VOCABULARY, WIDTH
from benchmarks.checkup.odd_models import causal
from benchmarks.checkup.scripts import Script

_BART = {"d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
_BART |= {"encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS, "vocab_size": VOCABULARY}
_BART |= {"pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END, "decoder_start_token_id": END}
_BART |= {"max_position_embeddings": TOKENS, "forced_eos_token_id": None}
_GPTJ = architectures.GPT2 | {"rotary_dim": 8}
_ROW = {"num_key_value_heads": 1}


def _decoder(name: str, config: str, sizes: dict[str, object], **options: object) -> Script:
    return Script(hf_model(name, config, sizes, **options), data.language(), hf_loss)


def _encoder(name: str, config: str, sizes: dict[str, object], **options: object) -> Script:
    return Script(hf_model(f"{name}ForMaskedLM", config, sizes, **options), data.masked_language(), hf_loss)


def _of_images(name: str, sizes: dict[str, object], **options: object) -> Script:
    build = hf_model(f"{name}ForImageClassification", f"{name}Config", sizes, **options)
    return Script(build, data.images(), image_loss)


def _reversing(name: str, config: str, sizes: dict[str, object], **options: object) -> Script:
    return Script(hf_model(name, config, sizes, **options), data.reversed_texts(), hf_loss)


def _distilbert() -> nn.Module:
    sizes = {"dim": WIDTH, "n_layers": 2, "n_heads": HEADS, "hidden_dim": 2 * WIDTH, "vocab_size": VOCABULARY}
    return hf.DistilBertForMaskedLM(hf.DistilBertConfig(**sizes, pad_token_id=PAD, max_position_embeddings=TOKENS))


_SWIN: dict[str, object] = {"image_size": IMAGE, "patch_size": 2, "embed_dim": 16, "depths": [1, 1]}
_SWIN |= {"num_heads": [2, 2], "window_size": 4, "num_labels": CLASSES}
_CLASSIFIED: dict[str, Callable[[], nn.Module]] = {
    "gpt neox": hf_model("GPTNeoXForSequenceClassification", "GPTNeoXConfig", LLAMA, num_labels=CLASSES),
    "modernbert": hf_model(
        "ModernBertForSequenceClassification", "ModernBertConfig", BERT | {"num_labels": CLASSES, "cls_token_id": BEGIN}
    ),
}

FAMILIES: dict[str, tuple[str, Script]] = {
    "olmo2": ("norms behind attention alone", causal("Olmo2", num_key_value_heads=2)),
    "phi3": ("queries, keys and values in one matrix", causal("Phi3", num_key_value_heads=2)),
    "granite": ("scales on residuals and logits", causal("Granite", num_key_value_heads=1, residual_multiplier=0.5)),
    "cohere": ("attention beside feed-forward, tied", causal("Cohere", num_key_value_heads=2)),
    "starcoder2": ("biases and a window", causal("Starcoder2", num_key_value_heads=1, sliding_window=8)),
    "phi": ("rotation of a part of the features", causal("Phi", num_key_value_heads=2)),
    "stablelm": ("rotation of a part of the features", causal("StableLm", num_key_value_heads=2)),
    "nemotron": ("squared ReLU and norms plus one", causal("Nemotron", num_key_value_heads=2)),
    "helium": ("another decoder", causal("Helium", num_key_value_heads=2, head_dim=16)),
    "glm4": ("norms on both sides of each part", causal("Glm4", num_key_value_heads=2, head_dim=16)),
    "olmo": ("norms without parameters", causal("Olmo", num_key_value_heads=2)),
    "falcon": ("one head of keys for all", causal("Falcon", multi_query=True)),
    "persimmon": ("norms of queries and keys by means", causal("Persimmon", num_key_value_heads=2)),
    "qwen3 moe": (
        "experts of which two are taken",
        causal("Qwen3Moe", head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, **_ROW),
    ),
    "gptj": ("rotation of a part of the features", _decoder("GPTJForCausalLM", "GPTJConfig", _GPTJ)),
    "gpt bigcode": (
        "one head of keys for all",
        _decoder("GPTBigCodeForCausalLM", "GPTBigCodeConfig", architectures.GPT2),
    ),
    "modernbert": ("windows and rotations in an encoder", _encoder("ModernBert", "ModernBertConfig", BERT)),
    "deberta v2": (
        "content and distances apart",
        _encoder("DebertaV2", "DebertaV2Config", BERT, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    ),
    "roformer": ("rotary positions in an encoder", _encoder("RoFormer", "RoFormerConfig", BERT, embedding_size=WIDTH)),
    "mpnet": (
        "buckets of distances in an encoder",
        _encoder("MPNet", "MPNetConfig", BERT | {"max_position_embeddings": 2 * TOKENS}),
    ),
    "megatron bert": ("norms before the parts of an encoder", _encoder("MegatronBert", "MegatronBertConfig", BERT)),
    "distilbert": ("no segments and no pooler", Script(_distilbert, data.masked_language(), hf_loss)),
    **{
        f"{name} classifier": ("class of a text", Script(build, data.classified_texts(), hf_loss))
        for name, build in _CLASSIFIED.items()
    },
    "deit": ("token of a teacher beside that of the class", _of_images("DeiT", VIT)),
    "beit": ("biases of distances between patches", _of_images("Beit", VIT, use_relative_position_bias=True)),
    "dinov2": ("scales on branches of images", _of_images("Dinov2", VIT)),
    "vit msn": ("another ViT", _of_images("ViTMSN", VIT)),
    "swin": ("windows of patches that shift", _of_images("Swin", _SWIN)),
    "swin v2": ("windows of patches and cosines", _of_images("Swinv2", _SWIN)),
    "pegasus": ("sinusoids and norms before", _reversing("PegasusForConditionalGeneration", "PegasusConfig", _BART)),
    "marian": ("sinusoids in a translator", _reversing("MarianMTModel", "MarianConfig", _BART)),
    "mbart": ("norms before the parts", _reversing("MBartForConditionalGeneration", "MBartConfig", _BART)),
    "mt5": ("gated GELU", _reversing("MT5ForConditionalGeneration", "MT5Config", architectures.T5)),
    "umt5": ("distances in each layer", _reversing("UMT5ForConditionalGeneration", "UMT5Config", architectures.T5)),
    "switch": (
        "one expert for each token",
        _reversing(
            "SwitchTransformersForConditionalGeneration",
            "SwitchTransformersConfig",
            architectures.T5 | {"num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
        ),
    ),
    "patch of 8": ("four patches only", Script(architectures.vit(patch_size=2 * PATCH), data.images(), image_loss)),
}
