"""Layers that are run on chosen tokens by hand, in float64.

Positions and masks are made from their definitions; nothing of them comes from the model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from tests.support.models import (
    LENGTHS,
    TOKENS,
    VOCABULARY,
    WIDTH,
    bert,
    distilbert,
    gemma2,
    gpt2,
    gpt_neox,
    llama,
    mistral,
    opt,
    phi3,
    qwen2,
    qwen3,
    roberta,
    seeded,
    token_ids,
)
from tests.support.versions import BEFORE_5

BATCH = len(LENGTHS)


FIRST, LAST, LAYERS = 1, 2, 4


@dataclass(frozen=True)
class Family:
    """How its layers are run by hand: run(model, layer, states, positions, mask), each with a batch axis of one."""

    build: Callable[[], nn.Module]
    stack: Callable[[nn.Module], nn.ModuleList]
    run: Callable[[nn.Module, nn.Module, Tensor, Tensor, Tensor], Tensor]
    is_causal: bool = True
    window: Callable[[nn.Module], int | None] = lambda layer: None


def deep(build: Callable, **options) -> Callable[[], nn.Module]:
    """The same model with four layers, in float64 and training mode, without dropout."""

    def built() -> nn.Module:
        small = build()
        config = small.config
        for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
            if name in config.to_dict():
                setattr(config, name, LAYERS)
        if getattr(config, "layer_types", None):
            config.layer_types = (config.layer_types * LAYERS)[:LAYERS]
        for name, value in options.items():
            setattr(config, name, value)
        model = seeded(lambda: type(small)(config)).double().train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return model

    return built


def with_rotary(rotary: Callable[[nn.Module], nn.Module]):
    def run(model, layer, states, positions, mask):
        return first(
            layer(
                states,
                attention_mask=mask,
                position_ids=positions,
                position_embeddings=rotary(model)(states, positions),
            )
        )

    return run


def plainly(model, layer, states, positions, mask):
    return first(layer(states, attention_mask=mask))


def first(output):
    return output[0] if isinstance(output, tuple) else output


def window_of(layer: nn.Module) -> int | None:
    attention = layer.self_attn
    return attention.sliding_window if hasattr(attention, "sliding_window") else attention.config.sliding_window


def small(model_class: type, config_class: type, **options) -> Callable[[], nn.Module]:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS}
    heads = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return deep(lambda: model_class(config_class(**sizes, **heads, **options)))


def with_rotary_of_its_kind(model, layer, states, positions, mask):
    """Gemma 3 has one for the layers with a window, one for the others."""
    if BEFORE_5:
        kinds = {"global": model.model.rotary_emb, "local": model.model.rotary_emb_local}
        given = {f"position_embeddings_{kind}": rotary(states, positions) for kind, rotary in kinds.items()}
        return first(layer(states, attention_mask=mask, position_ids=positions, **given))
    rotary = model.model.rotary_emb(states, positions, layer.self_attn.layer_type)
    return first(layer(states, attention_mask=mask, position_ids=positions, position_embeddings=rotary))


def _distilbert() -> nn.Module:
    if BEFORE_5:
        pytest.skip(f"transformers {hf.__version__}: layers of DistilBERT take other arguments")
    return distilbert()


LLAMA = {"stack": lambda model: model.model.layers, "run": with_rotary(lambda model: model.model.rotary_emb)}


FAMILIES = {
    "llama": Family(deep(llama), **LLAMA),
    "llama eager": Family(deep(lambda: llama("eager")), **LLAMA),
    "mistral": Family(deep(mistral), **LLAMA, window=window_of),
    "qwen2": Family(deep(qwen2), **LLAMA),
    "qwen3": Family(deep(qwen3), **LLAMA),
    "gemma2": Family(deep(gemma2), **LLAMA, window=window_of),
    "phi3": Family(deep(phi3), **LLAMA),
    "phi": Family(small(hf.PhiForCausalLM, hf.PhiConfig), **LLAMA),
    "gemma": Family(small(hf.GemmaForCausalLM, hf.GemmaConfig, head_dim=8), **LLAMA),
    "gemma3": Family(
        small(hf.Gemma3ForCausalLM, hf.Gemma3TextConfig, head_dim=8, sliding_window=4, sliding_window_pattern=2),
        lambda model: model.model.layers,
        with_rotary_of_its_kind,
        window=lambda layer: layer.self_attn.sliding_window,
    ),
    "gpt2": Family(deep(gpt2), lambda model: model.transformer.h, plainly),
    "gpt_neox": Family(
        deep(gpt_neox), lambda model: model.gpt_neox.layers, with_rotary(lambda model: model.gpt_neox.rotary_emb)
    ),
    "opt": Family(deep(opt), lambda model: model.model.decoder.layers, plainly),
    "bert": Family(deep(bert), lambda model: model.encoder.layer, plainly, is_causal=False),
    "roberta": Family(deep(roberta), lambda model: model.encoder.layer, plainly, is_causal=False),
    "distilbert": Family(lambda: deep(_distilbert)(), lambda model: model.transformer.layer, plainly, is_causal=False),
}


@dataclass(frozen=True)
class Batch:
    """What a model is given, and what that means for each sequence.

    Attributes:
        given: the arguments.
        real: bool [batch, tokens].
        positions: int [batch, tokens].
        documents: int [batch, tokens].
    """

    given: dict[str, Tensor]
    real: Tensor
    positions: Tensor
    documents: Tensor


def whole() -> Batch:
    return _batch(torch.ones(BATCH, TOKENS, dtype=torch.bool), {})


def _batch(real: Tensor, more: dict[str, Tensor]) -> Batch:
    positions = torch.arange(TOKENS).expand(BATCH, -1)
    return Batch({"input_ids": token_ids()} | more, real, positions, torch.zeros_like(positions))


def visible(batch: Batch, sequence: int, kept: Tensor, *, is_causal: bool, window: int | None) -> Tensor:
    """Bool [kept, kept], from the definitions. Distances are those in the whole sequence."""
    allowed = torch.zeros(len(kept), len(kept), dtype=torch.bool)
    for row, query in enumerate(kept.tolist()):
        for column, key in enumerate(kept.tolist()):
            allowed[row, column] = (
                bool(batch.real[sequence, key])
                and batch.documents[sequence, query] == batch.documents[sequence, key]
                and (key <= query or not is_causal)
                and (window is None or query - key < window)
            )
    return allowed


def expected_kept(scores: Tensor, batch: Batch, sequence: int, number: int) -> Tensor:
    """The first token of every document, then by score, padding last."""
    ranks = scores[sequence].clone()
    ranks[~batch.real[sequence]] = -1e9
    seen = set()
    for token in range(TOKENS):
        document = int(batch.documents[sequence, token])
        if batch.real[sequence, token] and document not in seen:
            seen.add(document)
            ranks[token] = 1e9
    return ranks.argsort(descending=True)[:number].sort().values


def by_hand(family: Family, model: nn.Module, batch: Batch, states: Tensor, kept: list[Tensor]) -> Tensor:
    """States behind the last of the layers, from those before the first, sequence by sequence."""
    result = states.clone()
    for sequence, tokens in enumerate(kept):
        own = states[sequence : sequence + 1, tokens]
        for layer in list(family.stack(model))[FIRST : LAST + 1]:
            allowed = visible(batch, sequence, tokens, is_causal=family.is_causal, window=family.window(layer))
            mask = torch.where(allowed, 0.0, -1e30)[None, None]
            own = family.run(model, layer, own, batch.positions[sequence : sequence + 1, tokens], mask.double())
        result[sequence, tokens] = own[0]
    return result


def run(family: Family, model: nn.Module, given: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(states that enter the first of the layers, those that enter the one behind the last, output)."""
    seen = []
    layers = family.stack(model)
    handles = [
        layers[FIRST - 1].register_forward_hook(lambda module, args, output: seen.append(first(output))),
        layers[LAST + 1].register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        ),
    ]
    try:
        output = model(**given)[0]
    finally:
        for handle in handles:
            handle.remove()
    return seen[0], seen[1], output


def scores(seed: int = 3) -> Tensor:
    return torch.rand(BATCH, TOKENS, generator=torch.Generator().manual_seed(seed))


def entering(family: Family, model: nn.Module, given) -> Tensor:
    with torch.no_grad():
        return run(family, model, given)[0]
