"""Weights that cuts have taken from a model and that no checkpoint has."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnwatch.heads.head_map import HeadMap
from attnwatch.heads.projections import ParameterCut

Heads = Mapping[str, tuple[int, ...]]
"""Numbers of the heads that each site has, as in the unpruned model."""


@dataclass(frozen=True)
class _Stored:
    value: Tensor
    cut: ParameterCut


class RemovedHeads:
    """Frozen weights of heads that are gone, and which heads the model has had.

    A checkpoint of adapters has nothing of the weights that they are on. To go back to one from before a cut, these
    must be kept, in the memory of the host: the frozen weights of each attention module that was cut, once.

    Attributes:
        stages: heads that the model had before each change, in the order of the changes.
    """

    def __init__(self) -> None:
        self.stages: list[Heads] = []
        self._stored: dict[str, _Stored] = {}

    def note(self, model: nn.Module | HeadMap) -> None:
        """Keep what there is before heads go or come back."""
        heads = HeadMap.of(model)
        if heads.kept not in self.stages:
            self.stages.append(heads.kept)
        for site in heads.sites.values():
            for cut in site.cuts_of(site.kept):
                name = heads.parameter_names[id(cut.parameter)]
                if not cut.parameter.requires_grad and name not in self._stored:
                    self._stored[name] = _Stored(cut.parameter.detach().to("cpu", copy=True), cut)

    def value(self, name: str, cut: ParameterCut) -> Tensor | None:
        """Return the entries of a frozen parameter that `cut` leaves; None where not all of them are known."""
        stored = self._stored.get(name)
        if stored is None or not torch.isin(cut.kept, stored.cut.kept).all():
            return None
        return stored.value.index_select(cut.dim, torch.searchsorted(stored.cut.kept, cut.kept))
