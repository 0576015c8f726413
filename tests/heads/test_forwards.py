"""Forwards that replace a module's own take what the module's class takes, or the module is refused."""

import inspect
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from attnwatch import ConfigurationError, HeadLayout, ModelFamily, prune_heads
from attnwatch.heads import HeadMap
from attnwatch.heads.signatures import not_honoured
from tests.support.head_models import FAMILIES, assert_equal_step, features, masked, pruned, survivors
from tests.support.models import HEAD_DIM, HEADS, TOKENS, CausalSelfAttention, gpt
from tests.support.snapshot import assert_unchanged, snapshot


class Own(nn.Module):
    def forward(self, x, mask=None, *, scale=1.0):
        return x


def same(module, x, mask=None, *, scale=1.0): ...
def all_handed_on(module, *args, **kwargs): ...
def rest_handed_on(module, x, *args, **kwargs): ...
def more(module, x, mask=None, flag=False, scale=1.0): ...
def no_scale(module, x, mask=None): ...
def no_mask(module, x, **kwargs): ...
def positions_only(module, x, *args, scale=1.0): ...
def other_order(module, mask, x=None, scale=1.0): ...
def other_name(module, x, attn_mask=None, scale=1.0): ...
def other_default(module, x, mask=None, scale=None): ...
def always_needed(module, x, mask=None, *, needed, scale=1.0): ...


@pytest.mark.parametrize(
    ("forward", "unknown"),
    [
        (same, []),
        (all_handed_on, []),
        (rest_handed_on, []),
        (more, []),
        (no_scale, ["scale"]),
        (no_mask, ["mask"]),
        (positions_only, ["mask"]),
        (other_order, ["x", "mask"]),
        (other_name, ["mask"]),
        (other_default, ["scale"]),
        (always_needed, ["needed"]),
    ],
)
def test_signatures(forward: Callable, unknown: list):
    assert not_honoured(forward, Own()) == unknown


@pytest.mark.parametrize("forward", [no_scale, rest_handed_on])
def test_more_of_any_kind(forward: Callable):
    class Open(nn.Module):
        def forward(self, x, *args, **kwargs):
            return x

    assert not_honoured(forward, Open()) == (["*args", "**kwargs"] if forward is no_scale else [])


def later_nanogpt() -> nn.Module:
    """nanoGPT's attention, as a later version might have it."""

    class WithMask(CausalSelfAttention):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            size, width = x.size()[:-1], x.size()[-1]
            heads = (*size, self.n_head, width // self.n_head)
            q, k, v = (part.view(heads).transpose(1, 2) for part in self.c_attn(x).split(width, dim=2))
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
            return self.resid_dropout(self.c_proj(mixed.transpose(1, 2).contiguous().view(x.size())))

    WithMask.__name__ = "CausalSelfAttention"
    return gpt(WithMask)


def test_later_version_of_a_class_is_refused_before_anything_is_touched():
    model = later_nanogpt()
    before = snapshot(model)
    with pytest.raises(ConfigurationError, match=r"has 'mask', which the forward of its layout, nanogpt_forward"):
        prune_heads(model, {0: [1]})
    assert_unchanged(before, model)


def test_later_torch_is_refused_by_name(monkeypatch):
    """A context puts torch's own forward back."""

    def forward(self, query, key, value, key_padding_mask=None, need_weights=False, attn_mask=None, scale=None):
        raise NotImplementedError

    model = nn.TransformerEncoderLayer(32, 4)
    monkeypatch.setattr(nn.MultiheadAttention, "forward", forward)
    heads = HeadMap.of(model)
    assert not heads.sites
    assert (
        "has 'need_weights', 'scale', which the forward of its layout, multihead_forward" in heads.refused["self_attn"]
    )


@pytest.mark.parametrize("kind", ["user's own", "handed on"])
def test_forward_of_a_users_layout(kind: str, registered):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

        def forward(self, x, mask=None):
            q, k, v = self.qkv(x).unflatten(-1, (3, -1, HEAD_DIM)).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, mask)
            return self.proj(mixed.transpose(1, 2).flatten(2))

    replaced = {
        "user's own": lambda module, x: Masked.forward(module, x),
        "handed on": lambda module, *args, **kwargs: Masked.forward(module, *args, **kwargs),
    }
    layout = HeadLayout({"qkv": "q|k|v"}, "proj", HEAD_DIM, forward=replaced[kind], returns="output")
    registered(ModelFamily("masked", heads={Masked: layout}))
    model = Masked()
    if kind == "user's own":
        with pytest.raises(ConfigurationError, match="the forward of Masked has 'mask'"):
            prune_heads(model, {0: [1]})
    else:
        mask = torch.ones(TOKENS, TOKENS).tril().bool()
        expected = masked(model, {0: [1]})(features(TOKENS).float(), mask=mask)
        torch.testing.assert_close(pruned(model, {0: [1]})(features(TOKENS).float(), mask=mask), expected)


REPLACED = {name: family for name, family in FAMILIES.items() if name.startswith(("t5", "nanogpt", "timm"))}


@pytest.mark.parametrize("name", REPLACED)
def test_forwards_of_todays_versions_are_honoured(name: str):
    heads = HeadMap.of(REPLACED[name].model())
    assert heads.sites
    assert not heads.refused
    for site in heads.sites.values():
        assert not_honoured(site.layout.forward, site.module) == []


HEADLESS = ("llama, groups, sdpa", "bert, sdpa", "gpt2, sdpa", "gpt_neox, sdpa", "opt, sdpa", "qwen2 vision, sdpa")


@pytest.mark.parametrize("name", HEADLESS)
def test_layers_without_heads_take_unknown_arguments(name: str):
    """Such as a later version may hand to its attention; nothing depends on them."""
    family = FAMILIES[name]
    model, heads = family.model(), {0: range(HEADS)}
    entries = survivors(model, heads)
    without = pruned(model, heads)
    site = next(iter(HeadMap.of(without).sites.values()))
    site.module.forward = partial(site.module.forward, of_a_later_version=torch.ones(1), another=None)
    assert_equal_step(masked(model, heads), without, family.batch(), entries)


@pytest.mark.parametrize("name", HEADLESS[:3])
def test_layers_without_heads_are_called_by_position(name: str):
    """In the order of the class's own forward, from the first argument to the last."""
    without = pruned(FAMILIES[name].model(), {0: range(HEADS)})
    module = next(iter(HeadMap.of(without).sites.values())).module
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    given = [features(TOKENS), *(None for name in names[1:] if name not in ("args", "kwargs"))]
    got = module(*given)
    assert torch.equal(got[0], module(hidden_states=features(TOKENS))[0])
    assert torch.equal(got[0], module(**dict(zip(names[1:2], [None], strict=False)), hidden_states=features(TOKENS))[0])


def test_nanogpt_takes_its_input_by_name():
    family = FAMILIES["nanogpt"]
    model = pruned(family.model(), {0: range(HEADS)})
    module = next(iter(HeadMap.of(model).sites.values())).module
    assert torch.equal(module(x=features(TOKENS)), module(features(TOKENS)))
