"""Pruned models generate what the masked ones do, layers without any head included."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.head_models import (
    CROSS,
    ENCODER_DECODER,
    FAMILIES,
    PLAIN,
    WITHIN,
    Family,
    assert_equal_step,
    features,
    masked,
    output,
    padded,
    pruned,
    survivors,
)
from tests.support.models import (
    HEADS,
    bart_for_generation,
    gpt2,
    gpt2_with_cross_attention,
    gpt_neox,
    llama,
    mistral,
    padding_mask,
    phi3,
    t5_for_generation,
    token_ids,
)
from tests.support.versions import CACHE, EARLY, lacks

NONE = range(HEADS)


def prompt() -> dict[str, Tensor]:
    return {"input_ids": token_ids(tokens=5), "attention_mask": padding_mask("left")[:, -5:]}


def prompt_of_decoder() -> dict[str, Tensor]:
    return {**prompt(), "encoder_hidden_states": features(6)}


GENERATING = {
    "llama": (llama, prompt, WITHIN),
    "llama, layer 0 without heads": (llama, prompt, {0: NONE, 1: [2, 3]}),
    "llama, layer 1 without heads": (llama, prompt, {1: NONE}),
    "mistral, layer 0 without heads": (mistral, prompt, {0: NONE}),
    "phi3": (phi3, prompt, WITHIN),
    "gpt2": (gpt2, prompt, PLAIN),
    "gpt2, layer 0 without heads": (gpt2, prompt, {0: NONE, 1: [2]}),
    "gpt_neox, layer 0 without heads": (gpt_neox, prompt, {0: NONE, 1: [2]}),
    "gpt2 with cross-attention": (gpt2_with_cross_attention, prompt_of_decoder, CROSS),
    "gpt2, cross-attention without heads": (gpt2_with_cross_attention, prompt_of_decoder, {1: NONE, 2: [0]}),
    "t5": (t5_for_generation, padded, ENCODER_DECODER),
    "t5, layers 0 without heads": (t5_for_generation, padded, {0: NONE, 2: NONE}),
    "t5, cross-attention without heads": (t5_for_generation, padded, {1: [0], 3: NONE, 4: NONE}),
    "bart": (bart_for_generation, padded, ENCODER_DECODER),
    "bart, layers 0 without heads": (bart_for_generation, padded, {0: NONE, 2: NONE}),
    "bart, cross-attention without heads": (bart_for_generation, padded, {3: NONE, 4: NONE, 5: [1, 2]}),
}
T5_BY_HAND = lacks(EARLY, "attention of T5 is computed by hand")
GENERATING = {
    name: pytest.param(*case, marks=T5_BY_HAND) if name.startswith("t5") else case for name, case in GENERATING.items()
}
GENERATIONS = {
    "greedy": ("sdpa", {}),
    "greedy, eager": ("eager", {}),
    "beams": ("sdpa", {"num_beams": 2}),
    "static cache": ("sdpa", {"cache_implementation": "static"}),
}


@pytest.mark.parametrize(("implementation", "how"), GENERATIONS.values(), ids=GENERATIONS)
@pytest.mark.parametrize(("build", "batch", "heads"), GENERATING.values(), ids=GENERATING)
def test_generation(build: Callable, batch: Callable, heads: dict, implementation: str, how: dict):
    model = Family(lambda: build(implementation), dict, {}, torch.float32).model().eval()
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "output_logits": True, **how}
    inputs = {name: value.float() if value.is_floating_point() else value for name, value in batch().items()}
    expected, got = (
        cut(model, heads).generate(**inputs, **options, return_dict_in_generate=True) for cut in (masked, pruned)
    )
    assert torch.equal(got.sequences, expected.sequences)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["llama, layer 0 without heads", "gpt2, layer 0 without heads", "mistral, layer 0 without heads"]
)
def test_tokens_one_after_the_other(name: str):
    """The model's own count of the tokens that it has seen, which is the first layer's."""
    build, _, heads = GENERATING[name]
    model = Family(build, dict, {}).model().eval()
    logits = []
    for cut in (masked, pruned):
        each, cache, parts = cut(model, heads), None, []
        for ids in token_ids().split([5, 1, 1, 3, 2], dim=1):
            result = each(input_ids=ids, use_cache=True, **{CACHE: cache})
            cache = result[CACHE]
            parts.append(result.logits)
        logits.append(torch.cat(parts, dim=1))
    torch.testing.assert_close(logits[1], logits[0])
    torch.testing.assert_close(logits[1], each(token_ids(), use_cache=False).logits)


HEADLESS = [name for name in FAMILIES if name not in ("gpt2, lora", "timm")]


@pytest.mark.parametrize("name", HEADLESS)
def test_layers_without_heads(name: str):
    """Their parameters have gradients where those of the masked layer have some."""
    family = FAMILIES[name]
    for heads in ({0: NONE}, {layer: NONE for layer in family.heads if layer}):
        model = family.model()
        assert_equal_step(masked(model, heads), pruned(model, heads), family.batch(), survivors(model, heads))


@pytest.mark.parametrize("name", ["llama, groups, sdpa", "t5, sdpa", "gpt2, sdpa", "bert, sdpa", "nanogpt"])
def test_state_dict_of_layers_without_heads(name: str):
    family, heads = FAMILIES[name], {0: NONE, 1: [1, 2]}
    model = pruned(family.model(), heads)
    other = pruned(family.build().to(family.dtype), heads)  # with other vectors
    assert not torch.equal(output(other, family.batch()), output(model, family.batch()))
    other.load_state_dict(model.state_dict())
    assert torch.equal(output(other, family.batch()), output(model, family.batch()))
