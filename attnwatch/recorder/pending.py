"""Observations on the device that have not been transferred to the host."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnwatch.attention import Accumulator
from attnwatch.capture import ForwardPass
from attnwatch.layers import LayerStatistic
from attnwatch.recorder.buffer import Observation
from attnwatch.recorder.layer_values import LayerValues, columns
from attnwatch.recorder.processes import Processes
from attnwatch.recorder.steps import LOSS, StepSums


class PendingSteps:
    """Sums per step and site on the device, which reach the host in one transfer.

    Args:
        sites: names of the sites.
        accumulator: accumulator that computes the sums.
        processes: processes whose sums are combined; None if there is only one.

    Attributes:
        step: the open step; None if there is none.
        layers: layer statistics of the open step.
    """

    def __init__(self, sites: Sequence[str], accumulator: Accumulator, processes: Processes | None = None):
        self._sites = tuple(sites)
        self._accumulator = accumulator
        self._processes = processes
        self._finished: list[StepSums] = []
        self._open: dict[str, Tensor] = {}
        self._passes: dict[str, ForwardPass] = {}
        self._layer_statistics = tuple(LayerStatistic.registry)
        self.step: int | None = None
        self.layers = LayerValues()

    def __len__(self) -> int:
        """Number of finished steps."""
        return len(self._finished)

    def grow(self, sites: Sequence[str]) -> None:
        """Set the sites in order, including the earlier ones."""
        self._sites = tuple(sites)

    def open(self, step: int) -> None:
        """Open a step, to which sums can then be added. The open step, if any, is finished first."""
        if step != self.step:
            self.finish()
            self.step = step

    def finish(self) -> None:
        """Finish the open step."""
        # Other processes may have observed something in this step.
        if self.step is not None and (self._open or self._processes is not None):
            self._finished.append(StepSums(self.step, self._open, self.layers))
        self.step, self._open, self._passes, self.layers = None, {}, {}, LayerValues()

    def remember(self) -> Callable[[], None]:
        """Return a function that undoes later additions to the open step, until that is finished."""
        step, sums, passes = self.step, dict(self._open), dict(self._passes)
        take_back_layers = self.layers.remember()

        def take_back() -> None:
            if self.step == step:
                self._open, self._passes = sums, passes
                take_back_layers()

        return take_back

    def expects(self, site: str, of: ForwardPass) -> bool:
        """Return whether a call of this pass counts. If so, discard earlier calls of lesser passes in the open step."""
        greatest = self._passes.get(site, of)
        if of > greatest:
            self._open.pop(site, None)
        self._passes[site] = max(of, greatest)
        return of >= greatest

    def add(self, site: str, sums: Tensor, of: ForwardPass) -> None:
        """Add the sums of one call [statistics, 2, heads] to those of its site in the open step, if the call counts."""
        if not self.expects(site, of):
            return
        if site in self._open:
            sums = self._accumulator.merge(self._open[site].to(sums.device), sums)
        self._open[site] = sums

    def add_loss(self, loss: Tensor | float) -> None:
        """Add a loss to the open step, which keeps the mean of its losses."""
        loss = torch.as_tensor(loss).detach().float().mean()
        entry = torch.stack([loss, torch.ones_like(loss)])
        self._open[LOSS] = self._open[LOSS].to(entry.device) + entry if LOSS in self._open else entry

    @property
    def has_seen_sites(self) -> bool:
        """True if sums of a site were added to the open step."""
        return bool(self._open.keys() - {LOSS})

    def take(self) -> list[Observation]:
        """Return the finished steps and remove them."""
        finished, self._finished = self._finished, []
        if self._processes is not None and finished:
            finished = [step for step in self._processes.combine(finished) if step.sums]
        return self._to_host(finished)

    def peek(self) -> list[Observation]:
        """Return the open step so far; empty if it has no sums, or if other processes hold part of them."""
        if self.step is None or not self._open or self._processes is not None:
            return []
        return self._to_host([StepSums(self.step, self._open, self.layers)])

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "sums": {name: sums.cpu() for name, sums in self._open.items()},
            "passes": {site: list(of) for site, of in self._passes.items()},
            "layers": self.layers.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], statistics: Sequence[str]) -> None:
        """Continue from a state that `state_dict` of a recorder with these statistics returned."""
        self._finished.clear()
        self.step = state["step"]
        self._open = {
            site: sums if site == LOSS else self._accumulator.reordered(sums, statistics)
            for site, sums in state["sums"].items()
        }
        self._passes = {site: ForwardPass(*of) for site, of in state.get("passes", {}).items()}
        layers = state.get("layers")  # older versions had none
        self.layers = LayerValues() if layers is None else LayerValues.of_state(layers, self._layer_statistics)

    def _to_host(self, steps: Sequence[StepSums]) -> list[Observation]:
        packed = [sums for step in steps for sums in (*step.sums.values(), step.layers.packed()) if sums is not None]
        if not packed:
            return []
        device = packed[0].device
        flat = torch.cat([sums.to(device).flatten().float() for sums in packed]).cpu()
        parts = iter(flat.split([sums.numel() for sums in packed]))
        return [self._observation(step, parts) for step in steps]

    def _observation(self, step: StepSums, parts: Iterator[Tensor]) -> Observation:
        """Return the observation of a step from its packed parts on the host."""
        sums = {name: next(parts).reshape(sums.shape) for name, sums in step.sums.items()}
        loss, keys = sums.pop(LOSS, None), step.layers.keys
        layers = columns(keys, next(parts) if keys else torch.empty(0), self._layer_statistics, self._sites)
        mean_loss = float("nan") if loss is None else float(loss[0] / loss[1])
        return Observation(step.step, self._values(sums), mean_loss, layers)

    def _values(self, sums: dict[str, Tensor]) -> np.ndarray:
        """Return values [statistics, sites, heads]; nan where a site was not called or has fewer heads."""
        heads = max((site_sums.shape[-1] for site_sums in sums.values()), default=0)
        values = np.full((len(self._accumulator), len(self._sites), heads), np.nan, dtype=np.float32)
        for site, site_sums in sums.items():
            values[:, self._sites.index(site), : site_sums.shape[-1]] = self._accumulator.values(site_sums).numpy()
        return values
