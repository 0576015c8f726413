"""Base class of the criteria by which heads are removed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnwatch.errors import ConfigurationError
from attnwatch.plugins import Plugin, Registry

GRADIENTS, WEIGHTS = "gradients", "weights"


@dataclass(frozen=True)
class HeadData:
    """Values that a criterion reads from one attention module: `data[name]` for each name in its `reads`.

    Values have an entry for each head of the unpruned model; entries of removed heads have no meaning.

    Attributes:
        site: name of the attention module.
        num_heads: number of heads of the unpruned model.
        heads: numbers of the heads that the module still has, ascending.
        values: values by name.
        generator: random number generator, the same on all processes.
    """

    site: str
    num_heads: int
    heads: tuple[int, ...]
    values: Mapping[str, Tensor]
    generator: torch.Generator

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.values:
            raise KeyError(f"{name!r} is not in `reads`, which has: {', '.join(self.values) or 'nothing'}")
        return self.values[name]


class HeadCriterion(Plugin):
    """Criterion by which heads are removed, lowest scores first.

    A criterion has no state of its own. The values named in `reads` are collected, saved and shared between processes.

    Attributes:
        reads: names of the values from which scores are computed:

            - `"gradients"`: float32 [heads], the sum of what `of_step` returns over the optimizer steps since the last
              cut;
            - `"weights"`: float32 [heads, features, head_dim], each head's part of the output projection;
            - the name of a recorded statistic: float32 [heads], its mean over the last 20 observations. The criterion
              then needs a recorder's history; a trainer uses that of its `AttentionMonitor`.

    Example:
        >>> from torch import nn
        >>> from attnwatch import head_importance
        >>> class LargestWeight(HeadCriterion):
        ...     name = "largest_weight"
        ...     reads = ("weights",)
        ...     def scores(self, data: HeadData) -> Tensor:
        ...         return data["weights"].abs().amax((1, 2))
        >>> head_importance(nn.TransformerEncoderLayer(d_model=32, nhead=4), LargestWeight())["self_attn"].shape
        torch.Size([4])
    """

    registry: ClassVar[Registry["HeadCriterion"]] = Registry(
        "head criterion", "attnwatch.heads.criteria", as_instances=True
    )
    reads: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def check(cls, plugin: "HeadCriterion") -> None:
        """Raise a `ConfigurationError` if the criterion lacks a name or scores, or `reads` is invalid."""
        if not isinstance(getattr(plugin, "name", None), str):
            raise ConfigurationError(f"{plugin.described} must have a `name`.")
        if cls.scores is HeadCriterion.scores:
            raise ConfigurationError(f"{plugin.described} must have a method `scores(self, data)`.")
        if not isinstance(plugin.reads, tuple) or not all(isinstance(name, str) for name in plugin.reads):
            raise ConfigurationError(f"{plugin.described} must have a tuple of names `reads`, got {plugin.reads!r}.")

    @property
    def described(self) -> str:
        """Kind, name and class of the criterion, for messages."""
        return self.registry.describe(self)

    @property
    def reads_gradients(self) -> bool:
        """True if gradients are collected for this criterion."""
        return GRADIENTS in self.reads

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the recorded statistics that this criterion reads; empty if it needs no history."""
        return tuple(name for name in self.reads if name not in (GRADIENTS, WEIGHTS))

    def scores(self, data: HeadData) -> Tensor:
        """Return the importance of each head of one attention module: [heads of the unpruned model]."""
        raise NotImplementedError

    def of_step(self, gradients: Tensor) -> Tensor:
        """Return the contribution of one optimizer step to the gradients that the criterion reads.

        Args:
            gradients: float [heads], ∂L/∂ξ of a gate ξ = 1 on the output of each head, summed over the batch.

        Returns:
            [heads]; by default the absolute values.
        """
        return gradients.abs()
