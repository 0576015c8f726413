"""Weights that cuts removed from a model and that no checkpoint holds."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnwatch.heads.head_map import HeadMap
from attnwatch.heads.projections import ParameterCut

Heads = Mapping[str, tuple[int, ...]]
"""Heads of each site, numbered as in the unpruned model."""


@dataclass(frozen=True)
class _Stored:
    value: Tensor
    cut: ParameterCut


class RemovedHeads:
    """Frozen weights of removed heads, and the heads that the model had over time.

    A checkpoint of adapters does not hold the base weights. To return to a checkpoint from before a cut, the frozen
    weights of each cut attention module are kept once, in host memory.

    Attributes:
        stages: heads of the model before each change, in order.
    """

    def __init__(self) -> None:
        self.stages: list[Heads] = []
        self._stored: dict[str, _Stored] = {}

    def note(self, model: nn.Module | HeadMap) -> None:
        """Store the frozen weights and heads before heads are removed or restored."""
        heads = HeadMap.of(model)
        if heads.kept not in self.stages:
            self.stages.append(heads.kept)
        for site in heads.sites.values():
            for cut in site.cuts_of(site.kept):
                name = heads.parameter_names[id(cut.parameter)]
                if not cut.parameter.requires_grad and name not in self._stored:
                    self._stored[name] = _Stored(cut.parameter.detach().to("cpu", copy=True), cut)

    def value(self, name: str, cut: ParameterCut) -> Tensor | None:
        """Return the entries of a frozen parameter that `cut` keeps; None if not all of them are known."""
        stored = self._stored.get(name)
        if stored is None or not torch.isin(cut.kept, stored.cut.kept).all():
            return None
        return stored.value.index_select(cut.dim, torch.searchsorted(stored.cut.kept, cut.kept))
