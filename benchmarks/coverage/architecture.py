"""Architectures of transformers: their tiny models, and the outputs of these models."""

import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

import attnwatch
from benchmarks.coverage.batches import Batch, text
from benchmarks.coverage.sizes import small_config

CRASHES = "crashes:"  # begins the description of an exception that is not one of attnwatch
_SPREAD_OF_WEIGHTS, _SPREAD_OF_VECTORS = 0.2, 0.1


@dataclass(frozen=True)
class Architecture:
    """An architecture that is measured.

    Attributes:
        model: name of the model class in transformers.
        features: what is special about its attention.
        options: of its configuration, beside the sizes that all have.
        batch: makes the arguments of the model.
    """

    model: str
    features: str
    options: Mapping[str, Any] = field(default_factory=dict)
    batch: Callable[[nn.Module], Batch] = text

    @property
    def name(self) -> str:
        """Name of the model type in transformers' configurations."""
        return getattr(hf, self.model).config_class.model_type

    def build(self, implementation: str | None = None) -> nn.Module:
        """Return a model in train mode, with the same weights every time.

        Args:
            implementation: attention implementation of transformers; None takes its default.
        """
        model_class = getattr(hf, self.model)
        config = small_config(model_class.config_class, self.options)
        chosen = {} if implementation is None else {"attn_implementation": implementation}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = model_class._from_config(config, **chosen).train()
            _spread(model)
        return model


@torch.no_grad()
def _spread(model: nn.Module) -> None:
    """Draw weights so wide that attention is far from uniform, and biases that are not zero, so that errors show."""
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.normal_(std=_SPREAD_OF_WEIGHTS)
        else:
            parameter += _SPREAD_OF_VECTORS * torch.randn_like(parameter)


def outputs_of(model: nn.Module, batch: Batch) -> list[Tensor]:
    """Return the floating-point tensors of one forward, in their order."""
    return list(_tensors(model(**batch.inputs)))


def loss_of(outputs: list[Tensor]) -> Tensor:
    """Return a number that depends on all outputs, whatever the model is for."""
    return sum(output.square().mean() for output in outputs if output.requires_grad)


def deviation_of(outputs: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest deviation relative to the largest entry of each output; infinite if shapes or nan differ."""
    largest = 0.0
    for got, wanted in zip(outputs, expected, strict=True):
        if got.shape != wanted.shape or (got.isfinite() != wanted.isfinite()).any():
            return float("inf")
        difference = (got - wanted).nan_to_num().abs().max() / wanted.nan_to_num().abs().max().clamp(min=1e-6)
        largest = max(largest, difference.item())
    return largest


def crash(error: Exception) -> str:
    """Return the description of an exception that attnwatch did not raise on purpose, with its place in the package."""
    frames = traceback.extract_tb(error.__traceback__)
    package = Path(attnwatch.__file__).parent
    ours = [frame for frame in frames if package in Path(frame.filename).parents]
    frame = (ours or frames)[-1]
    return f"{CRASHES} {type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping | tuple | list):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)
