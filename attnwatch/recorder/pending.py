"""Observations on the device, before they come to the host."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnwatch.attention import Accumulator
from attnwatch.capture import ForwardPass
from attnwatch.recorder.buffer import Observation
from attnwatch.recorder.processes import Processes
from attnwatch.recorder.steps import LOSS, StepSums


class PendingSteps:
    """Sums per step and site on the device, which come to the host in one transfer.

    Args:
        sites: names of the sites.
        accumulator: computes the sums.
        processes: processes whose sums are added up; None if there is only this one.
    """

    def __init__(self, sites: Sequence[str], accumulator: Accumulator, processes: Processes | None = None):
        self._sites = tuple(sites)
        self._accumulator = accumulator
        self._processes = processes
        self._finished: list[StepSums] = []
        self._open: dict[str, Tensor] = {}
        self._passes: dict[str, ForwardPass] = {}
        self.step: int | None = None

    def __len__(self) -> int:
        """Number of finished steps."""
        return len(self._finished)

    def grow(self, sites: Sequence[str]) -> None:
        """Take more sites, in this order."""
        self._sites = tuple(sites)

    def open(self, step: int) -> None:
        """Open a step, to which sums are added from now on. An earlier step is finished."""
        if step != self.step:
            self.finish()
            self.step = step

    def finish(self) -> None:
        """Finish the open step."""
        # Where there are other processes, they may have seen something in it.
        if self.step is not None and (self._open or self._processes is not None):
            self._finished.append((self.step, self._open))
        self.step, self._open, self._passes = None, {}, {}

    def remember(self) -> Callable[[], None]:
        """Return a function that undoes what is added to the open step from now on, until it is finished."""
        step, sums, passes = self.step, dict(self._open), dict(self._passes)

        def take_back() -> None:
            if self.step == step:
                self._open, self._passes = sums, passes

        return take_back

    def expects(self, site: str, of: ForwardPass) -> bool:
        """Return whether a call of this pass counts. If so, earlier calls of lesser passes in the open step do not."""
        greatest = self._passes.get(site, of)
        if of > greatest:
            self._open.pop(site, None)
        self._passes[site] = max(of, greatest)
        return of >= greatest

    def add(self, site: str, sums: Tensor, of: ForwardPass) -> None:
        """Add the sums of one call [statistics, 2, heads], if it counts, to those of its site in the open step."""
        if not self.expects(site, of):
            return
        if site in self._open:
            sums = self._accumulator.merge(self._open[site].to(sums.device), sums)
        self._open[site] = sums

    def add_loss(self, loss: Tensor | float) -> None:
        """Add a loss to the open step, which keeps the mean of all."""
        loss = torch.as_tensor(loss).detach().float().mean()
        entry = torch.stack([loss, torch.ones_like(loss)])
        self._open[LOSS] = self._open[LOSS].to(entry.device) + entry if LOSS in self._open else entry

    @property
    def has_seen_sites(self) -> bool:
        """True if sums of a site were added to the open step."""
        return bool(self._open.keys() - {LOSS})

    def take(self) -> list[Observation]:
        """Return the finished steps, and forget them."""
        finished, self._finished = self._finished, []
        if self._processes is not None and finished:
            finished = [step for step in self._processes.combine(finished) if step[1]]
        return self._to_host(finished)

    def peek(self) -> list[Observation]:
        """Return the open step as it is now; empty if it has no sums, or if other processes have a part of them."""
        if self.step is None or not self._open or self._processes is not None:
            return []
        return self._to_host([(self.step, self._open)])

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "sums": {name: sums.cpu() for name, sums in self._open.items()},
            "passes": {site: list(of) for site, of in self._passes.items()},
        }

    def load_state_dict(self, state: dict[str, Any], statistics: Sequence[str]) -> None:
        """Go on where `state_dict` was taken, by a recorder of these statistics."""
        self._finished.clear()
        self.step = state["step"]
        self._open = {
            site: sums if site == LOSS else self._accumulator.reordered(sums, statistics)
            for site, sums in state["sums"].items()
        }
        self._passes = {site: ForwardPass(*of) for site, of in state.get("passes", {}).items()}

    def _to_host(self, steps: Sequence[StepSums]) -> list[Observation]:
        steps = steps if self._sites else []  # where no attention is known, there is nothing to tell
        packed = [sums for _, sums_by_site in steps for sums in sums_by_site.values()]
        if not packed:
            return []
        device = packed[0].device
        flat = torch.cat([sums.to(device).flatten().float() for sums in packed]).cpu()
        parts = iter(flat.split([sums.numel() for sums in packed]))
        observations = []
        for step, sums_by_site in steps:
            sums = {name: next(parts).reshape(sums.shape) for name, sums in sums_by_site.items()}
            loss = sums.pop(LOSS, None)
            observations.append(
                Observation(step, self._values(sums), float("nan") if loss is None else float(loss[0] / loss[1]))
            )
        return observations

    def _values(self, sums: dict[str, Tensor]) -> np.ndarray:
        """Return values [statistics, sites, heads], nan where a site was not called or has fewer heads."""
        heads = max((site_sums.shape[-1] for site_sums in sums.values()), default=0)
        values = np.full((len(self._accumulator), len(self._sites), heads), np.nan, dtype=np.float32)
        for site, site_sums in sums.items():
            values[:, self._sites.index(site), : site_sums.shape[-1]] = self._accumulator.values(site_sums).numpy()
        return values
