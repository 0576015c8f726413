"""Configs with which transformers builds a pruned model without attnwatch."""

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from attnwatch.capture import KEPT_HEADS
from attnwatch.heads.head_map import HeadMap
from attnwatch.heads.site import HeadSite

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def stock_config(model: "PreTrainedModel") -> "PretrainedConfig | None":
    """Return a config that builds the pruned model without attnwatch; None if there is none.

    Layers must have equal numbers of heads. Some families declare a `head_dim` (Llama, Qwen3), some read it from their
    config without declaring it (Qwen2); all others derive the width of a head from the number of heads.
    """
    sites = list(HeadMap.of(model).sites.values())
    if not any(site.is_pruned for site in sites):
        return model.config
    numbers = {(site.num_heads, site.num_key_value_heads, site.head_dim) for site in sites}
    if len(numbers) != 1 or not sites[0].num_heads:
        return None
    return next((config for config in _candidates(model, sites[0]) if _builds(config, model)), None)


def _candidates(model: "PreTrainedModel", site: HeadSite) -> "Iterator[PretrainedConfig]":
    names = {"num_attention_heads": site.num_heads, "head_dim": site.head_dim}
    if isinstance(getattr(model.config, "num_key_value_heads", None), int):
        names["num_key_value_heads"] = site.num_key_value_heads
    if isinstance(getattr(model.config, "num_attention_heads", None), int):
        config = copy.deepcopy(model.config)
        for name, value in names.items():
            setattr(config, name, value)
        yield config


def _builds(config: "PretrainedConfig", model: "PreTrainedModel") -> bool:
    """Return whether a saved copy of the config builds this model, with the same tensors and module sizes."""
    try:
        read = type(config).from_dict(config.to_dict())
        read._attn_implementation = model.config._attn_implementation
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            built = type(model)(read)
    except Exception:  # from the config's own checks: Llama's width must be a multiple of its number of heads
        return False
    numbers, built_numbers = _numbers(model), _numbers(built)
    is_alike = all(built_numbers[name] == numbers[name] for name in numbers.keys() & built_numbers.keys())
    return is_alike and _tensors(built) == _tensors(model)


def _tensors(model: nn.Module) -> dict[str, torch.Size]:
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.shape for name, tensor in named if not name.endswith(f".{KEPT_HEADS}")}


def _numbers(model: nn.Module) -> dict[str, Any]:
    """Return the numbers that modules compute with, such as heads, widths and scales."""
    return {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, int | float | str | tuple) and name != "training" and not name.startswith("_")
    }
