"""Entries of a state dict that belong to one attention module."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attnwatch.capture import KEPT_HEADS
from attnwatch.errors import ConfigurationError
from attnwatch.heads.projections import ParameterCut
from attnwatch.heads.removed import Heads, RemovedHeads
from attnwatch.heads.site import HeadSite
from attnwatch.utils.messages import listed

_SHOWN = 3


@dataclass
class SiteState:
    """Entries of a state dict that belong to one site, and the changes needed to load them.

    Attributes:
        site: site in the model that loads the state dict.
        state: the state dict.
        path: path of the module in the state dict.
        named: numbers of the heads that the state dict names; None if it names none.
        heads: heads that the site gets; if they are unknown, empty and `missing` is not.
        names: names of the entries of the state dict that belong to the site.
        missing: names of entries that the heads need, and that neither the state dict nor the model has.
        values: values of parameters whose size changes, until the state dict is loaded.
    """

    site: HeadSite
    state: Mapping[str, Any]
    path: str
    named: tuple[int, ...] | None = None
    heads: tuple[int, ...] = ()
    names: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    values: list[tuple[ParameterCut, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._present = self._find_present()
        self._kept_name = f"{self.path}.{KEPT_HEADS}".removeprefix(".")
        self._is_known = False
        if self._kept_name in self.state:
            self.named = self._checked(self.state[self._kept_name])

    @property
    def changes_heads(self) -> bool:
        """True if the heads of the site change."""
        return self.heads != self.site.kept

    @property
    def has_only_adapters(self) -> bool:
        """True if the state dict has only adapters of the site; a checkpoint contains all of them together."""
        return bool(self._present) and all(".lora_" in name for name, _ in self._present.values())

    @property
    def is_cut(self) -> bool:
        """True if the model already has all heads that the site gets."""
        return self._is_known and {*self.heads} <= {*self.site.kept}

    def fits(self, heads: Sequence[int]) -> bool:
        """Return whether the sizes in the state dict match this many heads."""
        shapes = {}
        for cut in self.site.cuts_of(heads):
            shapes[cut.key] = list(cut.parameter.shape)
            shapes[cut.key][cut.dim] = len(cut.kept)
        return all(shapes[key] == list(value.shape) for key, (_, value) in self._present.items())

    def fits_stage(self, stage: Heads) -> bool:
        """Return whether the state dict may date from a stage when the model had these heads."""
        return self.site.name not in stage or self.fits(stage[self.site.name])

    def choose(self, stage: Heads | None) -> None:
        """Choose the heads: the named ones, or the first that fit among a stage's, the model's and all heads."""
        of_stage = [] if stage is None or self.site.name not in stage else [stage[self.site.name]]
        unpruned = tuple(range(self.site.num_unpruned_heads))
        known = [self.named] if self.named is not None else [*of_stage, self.site.kept, unpruned]
        fitting = next((tuple(heads) for heads in known if self.fits(heads)), None)
        self._is_known, self.heads = fitting is not None, fitting or ()

    def plan(
        self, parameters: Mapping[int, str], prefix: str, removed: RemovedHeads | None, loaded: Collection[str]
    ) -> None:
        """Determine the changes needed to get the heads, without making them.

        Args:
            parameters: names of the model's parameters by identity.
            prefix: prefix of the names in the state dict.
            removed: weights that cuts removed from the model.
            loaded: names of the entries of earlier parts of the state dict.
        """
        self.names = [name for name, _ in self._present.values()]
        self.names += [self._kept_name] if self.named is not None else []
        if not self._is_known:
            self.missing = [self._kept_name]
        if not self.changes_heads or self.is_cut or not self._is_known:
            return
        before = {cut.key: cut for cut in self.site.cuts_of(self.site.kept)}
        for cut in self.site.cuts_of(self.heads):
            old = cut.parameter
            name = parameters[id(old)]
            is_same = torch.equal(cut.kept, before[cut.key].kept) and cut.scale is None
            is_loaded = f"{prefix}{name}" in loaded and old.shape[cut.dim] == len(cut.kept)
            if cut.key in self._present:
                self.values.append((cut, old.new_zeros(self._present[cut.key][1].shape)))
            elif not is_same and not is_loaded:
                value = None if removed is None else removed.value(name, cut)
                if value is None:
                    self.missing.append(f"{prefix}{name}")
                else:
                    self.values.append((cut, value))

    def why_not(self) -> str:
        """Return why the state dict can't be loaded, with the remedy."""
        name, has = self.site.name, list(self.site.kept)
        if not self._is_known:
            shown = list(self._present.values())[:_SHOWN]
            sizes = ", ".join(f"{name} {list(value.shape)}" for name, value in shown)
            return (
                f"the state dict does not say which heads of {name!r} it has: {self._kept_name!r} is missing, and its "
                f"sizes ({sizes}) do not match the model's heads {has}. Nothing was changed. First remove the heads "
                "that the checkpoint's model did not have, as with attnwatch.PruningPlan.load("
                "'checkpoint/pruning_plan.json').apply(model), or load a state dict of the whole model."
            )
        back = sorted({*self.heads} - {*has})
        return (
            f"the state dict has the heads {list(self.heads)} of {name!r}, the model {has}, and the weights of "
            f"{back} are neither in the state dict nor in the model: missing are {listed(self.missing)}. Nothing "
            "was changed. Load a state dict of the whole model in one call; load adapters onto an unpruned base model "
            "after removing the heads that the checkpoint's model did not have, with attnwatch.PruningPlan."
        )

    def _find_present(self) -> dict[tuple[int, str], tuple[str, Tensor]]:
        """Return the entries of the state dict for parameters that depend on heads, with their names there."""
        site = self.site
        roots = [(self.path, site.module)]
        if site.is_output_outside:
            outside = site.layout.output.removeprefix("../")
            roots.append((_joined(self.path.rpartition(".")[0], outside), site.projection))
        depends = {cut.key for cut in site.cuts_of(site.kept)}
        found = {}
        for path, root in roots:
            for within, module in root.named_modules():
                for name in module._parameters:
                    full = _joined(path, within, name)
                    if (id(module), name) in depends and full in self.state:
                        found[(id(module), name)] = (full, self.state[full])
        return found

    def _checked(self, kept: Tensor) -> tuple[int, ...]:
        heads = tuple(kept.round().long().tolist())
        if list(heads) != sorted({*heads}) or not {*heads} <= {*range(self.site.num_unpruned_heads)}:
            raise ConfigurationError(
                f"the state dict names the heads {list(heads)} at {self.site.name!r}; the unpruned model has 0 to "
                f"{self.site.num_unpruned_heads - 1} there. Is it from another model? Nothing was changed."
            )
        return heads


def _joined(*parts: str) -> str:
    return ".".join(filter(None, parts))
