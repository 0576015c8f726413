"""Models of each layout whose head importance is compared with gates that are multiplied in."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnwatch import HeadImportance
from attnwatch.heads.importance import Importance
from tests.support.head_models import features, padded, with_decoder
from tests.support.models import HEADS, LAYERS, TOKENS, WIDTH, bert, gpt2, llama, seeded, t5, token_ids


def encoder(batch_first: bool = True) -> nn.Module:
    options = {"dim_feedforward": 48, "dropout": 0.0, "batch_first": batch_first}
    return seeded(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, **options), LAYERS))


@dataclass(frozen=True)
class Kind:
    """A kind of model, what it is called with, and what its output projections' weights are called."""

    build: Callable[[], nn.Module]
    batch: Callable[[int], dict[str, Tensor]]
    outputs: str
    dim: int = 1  # of the heads

    def model(self, *, frozen: bool = False) -> nn.Module:
        model = self.build().double()
        for weight in self.output_weights(model).values():
            weight.requires_grad_(not frozen)
        return model

    def output_weights(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {name: weight for name, weight in model.named_parameters() if name.endswith(self.outputs)}


KINDS = {
    "llama": Kind(llama, lambda seed: {"input_ids": token_ids(seed=seed)}, "o_proj.weight"),
    "bert": Kind(bert, lambda seed: padded() | {"input_ids": token_ids(seed=seed)}, "attention.output.dense.weight"),
    "gpt2": Kind(gpt2, lambda seed: {"input_ids": token_ids(seed=seed)}, "attn.c_proj.weight", dim=0),
    "torch": Kind(encoder, lambda seed: {"src": features(TOKENS, seed=seed)}, "out_proj.weight"),
    "t5": Kind(t5, lambda seed: with_decoder() | {"input_ids": token_ids(seed=seed)}, "Attention.o.weight"),
}


def stacked(importance: HeadImportance | Importance) -> Tensor:
    values = importance if isinstance(importance, dict) else importance.values()
    return torch.stack(list(values.values()))
