"""What cuts have taken from a model, as far as nothing but memory has it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from attnwatch.heads.heads import HeadSite, head_sites
from attnwatch.heads.projections import ParameterCut

Heads = Mapping[str, tuple[int, ...]]
"""Those that each site has, as in the unpruned model."""


@dataclass(frozen=True)
class _Stored:
    value: Tensor
    cut: ParameterCut


class RemovedHeads:
    """Frozen weights of heads that are gone, and which heads the model has had.

    A checkpoint of adapters has nothing of the weights that they are on. To go back to one from before a cut, these
    must be kept, in the memory of the host: the frozen weights of each attention module that was cut, once.

    Attributes:
        stages: the heads that the model had before each change, in the order of the changes.
    """

    def __init__(self):
        self.stages: list[Heads] = []
        self._stored: dict[str, _Stored] = {}

    def note(self, model: nn.Module) -> None:
        """Before heads go or come back: what there is."""
        sites, _ = head_sites(model)
        stage = {name: site.kept for name, site in sites.items()}
        if stage not in self.stages:
            self.stages.append(stage)
        names = names_of_parameters(model)
        for site in sites.values():
            for cut in cuts_of(site, site.kept):
                if not cut.parameter.requires_grad and names[id(cut.parameter)] not in self._stored:
                    value = cut.parameter.detach().to("cpu", copy=True)
                    self._stored[names[id(cut.parameter)]] = _Stored(value, cut)

    def value(self, name: str, cut: ParameterCut) -> Tensor | None:
        """The entries of a frozen parameter that `cut` leaves; None where not all of them are known."""
        stored = self._stored.get(name)
        if stored is None or not torch.isin(cut.kept, stored.cut.kept).all():
            return None
        return stored.value.index_select(cut.dim, torch.searchsorted(stored.cut.kept, cut.kept))


def cuts_of(site: HeadSite, heads: tuple[int, ...]) -> list[ParameterCut]:
    """What of each parameter of the unpruned module belongs to these heads."""
    unpruned = replace(
        site, kept=tuple(range(site.num_unpruned_heads)), num_key_value_heads=site.num_unpruned_key_value_heads
    )
    return unpruned.keep(heads)[0]


def names_of_parameters(model: nn.Module) -> dict[int, str]:
    """Names by the identities of the parameters."""
    return {id(parameter): name for name, parameter in model.named_parameters()}
