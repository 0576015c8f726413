"""Pruned models to save, and what a loaded one returns."""

from collections.abc import Callable

import torch
import transformers as hf
from torch import nn

from attnwatch import prune_heads
from tests.support import models
from tests.support.head_models import features, output, with_decoder
from tests.support.models import token_ids


def mixtral():
    options = {**models._GROUPED, "num_local_experts": 2, "num_experts_per_tok": 1}
    return models._transformers(hf.MixtralForCausalLM, hf.MixtralConfig, "sdpa", **options)


def result(model: nn.Module) -> torch.Tensor:
    batch = {"input_ids": token_ids()}
    if isinstance(model, hf.ViTModel):
        batch = {"pixel_values": features(12, 12, width=12)[:, :3].float()}
    elif model.config.is_encoder_decoder:
        batch = with_decoder()
    with torch.no_grad():
        return output(model.eval(), batch)


def pruned(build: Callable, heads) -> nn.Module:
    model = build()
    prune_heads(model, heads)
    return model


def other(build) -> nn.Module:
    """The same kind of model with other weights."""
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.5)
    return model
