"""Kinds of models whose heads can be removed, and what they must equal then: the model with these heads masked."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import transformers
from timm.layers import Attention
from torch import Tensor, nn

from attnwatch import prune_heads
from attnwatch.heads import HeadMap
from tests.support import models
from tests.support.models import HEADS, LENGTHS, TOKENS, WIDTH, CausalSelfAttention, gpt, padding_mask, token_ids
from tests.support.versions import BEFORE_5, EARLY

Heads = Mapping[int, Sequence[int]]
"""Heads to remove, by layer."""
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """A kind of model, what it is called with, and heads to remove: other ones, and another number, in each layer."""

    build: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    heads: Heads
    dtype: torch.dtype = torch.float64

    def model(self) -> nn.Module:
        """In train mode. Vectors are random too: biases of zero would hide a wrong cut."""
        model = self.build().to(self.dtype)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=self.dtype)
        return model


def pruned(model: nn.Module, heads: Heads) -> nn.Module:
    """A copy without these heads."""
    model = copy.deepcopy(model)
    prune_heads(model, heads)
    return model


def masked(model: nn.Module, heads: Heads) -> nn.Module:
    """A copy whose output projections have zeros in the columns of these heads."""
    model = copy.deepcopy(model)
    mask(model, heads)
    return model


@torch.no_grad()
def mask(model: nn.Module, heads: Heads) -> None:
    sites = list(HeadMap.of(model).sites.values())
    for layer, gone in heads.items():
        site = sites[layer]
        adapters = [lora.weight for lora in getattr(site.projection, "lora_A", {}).values()]
        for weight in (site.output_weight, *adapters):
            weight.unflatten(1, (site.num_heads, site.head_dim))[:, list(gone)] = 0


def survivors(model: nn.Module, heads: Heads) -> dict[str, Tensor]:
    """For each parameter of the pruned model, which entries of the unpruned one it has: int64 positions."""
    numbered = copy.deepcopy(model).double()
    with torch.no_grad():
        for parameter in numbered.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view_as(parameter))
    prune_heads(numbered, heads)
    return {name: parameter.detach().long() for name, parameter in numbered.named_parameters()}


def output(model: nn.Module, batch: Batch) -> Tensor:
    result = model(**batch)
    return result if isinstance(result, Tensor) else result[0]


def assert_equal_step(masked_model: nn.Module, pruned_model: nn.Module, batch: Batch, entries: dict[str, Tensor]):
    """Same outputs, and same gradients of what is left."""
    rtol, atol = (1e-9, 1e-11) if next(masked_model.parameters()).dtype == torch.float64 else (1e-4, 1e-5)
    close = partial(torch.testing.assert_close, rtol=rtol, atol=atol)
    expected, got = output(masked_model, batch), output(pruned_model, batch)
    assert got.isfinite().all()
    close(got, expected)
    for result in (expected, got):
        result.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in masked_model.named_parameters()}
    num_gradients = 0
    for name, parameter in pruned_model.named_parameters():
        assert (parameter.grad is None) == (gradients[name] is None), name
        if parameter.grad is not None:
            close(parameter.grad, gradients[name].take(entries[name]), msg=lambda text, at=name: f"{at}: {text}")
            num_gradients += 1
    assert num_gradients


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
}


def features(*shape: int, batch: int = len(LENGTHS), width: int = WIDTH, seed: int = 3) -> Tensor:
    """float64 [batch, *shape, width]"""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *shape, width, generator=generator, dtype=torch.float64)


def padded() -> Batch:
    return {"input_ids": token_ids(), "attention_mask": padding_mask("right")}


def causal() -> Batch:
    return {"input_ids": token_ids(), "use_cache": False}


def with_decoder() -> Batch:
    return {**padded(), "decoder_input_ids": token_ids(tokens=8, seed=1), "use_cache": False}


def with_encoder_states() -> Batch:
    mask_of_encoder = padding_mask("right")[:, :10]
    return {**causal(), "encoder_hidden_states": features(10), "encoder_attention_mask": mask_of_encoder}


def with_sound() -> Batch:
    return {
        "input_features": features(6, width=2 * TOKENS),
        "decoder_input_ids": token_ids(tokens=8),
        "use_cache": False,
    }


def with_patches() -> Batch:
    """Of two images, 4 × 4 and 2 × 4."""
    return {"hidden_states": features(batch=24, width=96), "grid_thw": torch.tensor([[1, 4, 4], [1, 2, 4]])}


def with_lora(build: Callable, *targets: str, **options) -> Callable:
    """The model with adapters of rank 3 around these projections."""

    def built() -> nn.Module:
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(target_modules=list(targets), r=3, lora_alpha=6, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft calls what transformers deprecates
            model = peft.get_peft_model(build(), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name and parameter.ndim == 2:  # zero, in a new adapter
                nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(4))
        return model

    return built


def timm_attention() -> nn.Module:
    options = {"qkv_bias": True, "qk_norm": True, "norm_layer": nn.LayerNorm}
    return models.seeded(lambda: Attention(WIDTH, HEADS, **options))


def nanogpt(**options) -> nn.Module:
    return gpt(lambda dropout: CausalSelfAttention(dropout, **options))


PLAIN = {0: [1], 1: [0, 3]}
# Of four heads, the first two and the last two share key and value.
GROUPS = {0: [2, 3], 1: [0, 1]}
WITHIN = {0: [1, 2], 1: [0, 3]}
MIXED = {0: [0, 1, 2], 1: [1, 3]}
CROSS = {0: [1], 1: [0, 3], 2: [2], 3: [0, 1, 3]}
ENCODER_DECODER = {**CROSS, 4: [1, 2], 5: [3]}
EVERYWHERE = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj")

KINDS = {
    "llama, groups": Family(models.llama, causal, GROUPS),
    "llama, within groups": Family(models.llama, causal, WITHIN),
    "mistral": Family(models.mistral, causal, MIXED),
    "afmoe": Family(models.afmoe, causal, MIXED, torch.float32),
    "modernbert": Family(models.modernbert, lambda: {"input_ids": token_ids()}, PLAIN),
    "modernbert_decoder": Family(models.modernbert_decoder, causal, PLAIN),
    "qwen2 vision": Family(models.qwen2_vision, with_patches, PLAIN),
    "qwen2": Family(models.qwen2, causal, MIXED),
    "qwen3": Family(models.qwen3, causal, WITHIN),
    "gemma2": Family(models.gemma2, causal, MIXED),
    "gpt_oss": Family(models.gpt_oss, causal, MIXED, torch.float32),
    "phi3": Family(models.phi3, causal, MIXED),
    "gpt2": Family(models.gpt2, causal, PLAIN),
    "gpt2, cross": Family(models.gpt2_with_cross_attention, with_encoder_states, CROSS),
    "gpt_neox": Family(models.gpt_neox, causal, PLAIN),
    "persimmon": Family(models.persimmon, causal, PLAIN),
    "opt": Family(models.opt, causal, PLAIN),
    "bert": Family(models.bert, padded, PLAIN),
    "bert, cross": Family(partial(models.bert, is_decoder=True, add_cross_attention=True), with_encoder_states, CROSS),
    "roberta": Family(models.roberta, padded, PLAIN),
    "distilbert": Family(models.distilbert, padded, PLAIN),
    "vit": Family(models.vit, lambda: {"pixel_values": features(12, 12, width=12)[:, :3]}, PLAIN),
    "bart": Family(models.bart, with_decoder, ENCODER_DECODER),
    "t5": Family(models.t5, with_decoder, ENCODER_DECODER),
    "whisper": Family(models.whisper, with_sound, ENCODER_DECODER),
}
# Whose heads can't be removed with transformers before 5, with this attention, as it is computed by hand.
BY_HAND = {
    *(f"{name}, eager" for name in ("bert", "bert, cross", "roberta", "distilbert", "t5")),
    *("distilbert, sdpa", "t5, sdpa"),
}
# Which the oldest tested versions do not have, or compute in another way.
NEWER = {"afmoe", "modernbert", "modernbert_decoder"}


def _build(name: str, build: Callable[[str], nn.Module], implementation: str) -> nn.Module:
    if (EARLY if name == "t5" else BEFORE_5) and f"{name}, {implementation}" in BY_HAND:
        pytest.skip(f"transformers {transformers.__version__}: attention of {name} is computed by hand")
    if EARLY and name in NEWER:
        pytest.skip(f"transformers {transformers.__version__}: {name} is not there, or another one")
    return build(implementation)


FAMILIES = {
    f"{name}, {implementation}": Family(
        partial(_build, name, family.build, implementation), family.batch, family.heads, family.dtype
    )
    for name, family in KINDS.items()
    for implementation in ("eager", "sdpa")
    if implementation == "eager" or name not in ("gemma2", "gpt_oss")  # which have no other
}
FAMILIES |= {
    "llama, lora on q and v": Family(with_lora(models.llama, "q_proj", "v_proj"), causal, WITHIN),
    "llama, lora everywhere": Family(with_lora(models.llama, *EVERYWHERE, lora_bias=True), causal, MIXED),
    "llama, dora on q and v": Family(with_lora(models.llama, "q_proj", "v_proj", use_dora=True), causal, MIXED),
    "gpt2, lora": Family(with_lora(models.gpt2, "c_attn", "c_proj", fan_in_fan_out=True), causal, PLAIN),
    "bert, lora": Family(with_lora(models.bert, "query", "value", "dense"), padded, PLAIN),
    "nanogpt": Family(nanogpt, lambda: {"ids": token_ids()}, PLAIN),
    "nanogpt, not flash, no bias": Family(
        partial(nanogpt, bias=False, flash=False), lambda: {"ids": token_ids()}, PLAIN
    ),
    "timm": Family(timm_attention, lambda: {"x": features(TOKENS)}, {0: [0, 2]}),
}
