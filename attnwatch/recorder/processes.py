"""Communication between processes, so that all have the same history."""

import hashlib
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from attnwatch.attention import Accumulator
from attnwatch.errors import ConfigurationError
from attnwatch.layers import LayerStatistic
from attnwatch.recorder.layer_values import LayerValues
from attnwatch.recorder.steps import LOSS, StepSums
from attnwatch.utils.messages import listed

_FLOAT_BYTES = 4
# Integers below this number are exact as float32.
_EXACT = 2**24
# One for the sums and one for the maxima, which no single operation reduces together.
COLLECTIVES_PER_FLUSH = 2


def flush_bytes(*, num_steps: int, num_sites: int, num_heads: int) -> int:
    """Return the number of bytes that each process passes to the collectives of a flush.

    A ring all-reduce sends them nearly twice, however many processes there are. Nothing else is sent except 32 bytes
    before the first step, 12 before the first flush, and the names of sites if processes have found different ones.

    Args:
        num_steps: number of observed steps in the flush.
        num_sites: number of sites of the model.
        num_heads: number of heads of the largest site.
    """
    accumulator = Accumulator()
    layers = num_sites * len(LayerStatistic.registry) * 2
    sums = num_steps * (num_sites * len(accumulator) * 2 * num_heads + 2 + layers)
    maxima = num_steps * num_sites * len(accumulator.maxima) * num_heads + 1
    return (sums + maxima) * _FLOAT_BYTES


class Processes:
    """Processes of the default group. All call the same methods in the same order, whatever each has observed.

    Args:
        sites: names of the sites.
        accumulator: accumulator that computes the sums.
        settings: text that must be equal on all processes.
        adopt: function that is called once with the sites of all processes, if these have found different ones, and
            returns them in module order.
    """

    def __init__(
        self,
        sites: Sequence[str],
        accumulator: Accumulator,
        settings: str,
        adopt: Callable[[Sequence[str]], Sequence[str]],
    ):
        self._sites = tuple(sites)
        self._num_statistics, self._maxima = len(accumulator), accumulator.maxima
        self._layer_statistics = tuple(LayerStatistic.registry)
        self._settings = f"{settings}, {', '.join((*accumulator.names, *self._layer_statistics))}"
        self._adopt = adopt
        self._num_heads = 0
        self._is_checked = False
        self._device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")

    def check(self) -> None:
        """Check before the first step that all processes have the same sites and settings.

        Raises:
            ConfigurationError: they differ; raised on all processes.
        """
        if self._is_checked:
            return
        self._is_checked = True
        digests = [_digest("\n".join(self._sites)), _digest(self._settings)]
        lowest_and_highest = torch.tensor([*digests, *(-digest for digest in digests)], device=self._device)
        dist.all_reduce(lowest_and_highest, dist.ReduceOp.MIN)
        low, negative_high = lowest_and_highest.view(2, 2).tolist()
        if low != [-number for number in negative_high]:
            raise ConfigurationError(
                f"`model`: the processes differ in their attention sites or settings; create the same model and "
                f"recorder on all. This one has {self._settings}, {len(self._sites)} sites: "
                f"{listed(self._sites)}"
            )

    def combine(self, steps: Sequence[StepSums]) -> list[StepSums]:
        """Add up the sums of all processes for the same steps. Sites that no process called in a step are left out."""
        self._agree(steps)
        shape = (len(steps), len(self._sites), self._num_statistics, 2, self._num_heads)
        sums, losses = torch.zeros(shape, device=self._device), torch.zeros(len(steps), 2, device=self._device)
        for index, step in enumerate(steps):
            for site, of_site in step.sums.items():
                if site == LOSS:
                    losses[index] = of_site.to(self._device)
                elif of_site.shape[-1] <= self._num_heads:  # otherwise from the next flush on
                    sums[index, self._sites.index(site), ..., : of_site.shape[-1]] = of_site.to(self._device)
        layers = torch.stack([self._layer_sums(step.layers) for step in steps])
        largest = torch.where(sums[:, :, self._maxima, 1] > 0, sums[:, :, self._maxima, 0], -torch.inf)
        sums[:, :, self._maxima, 0] = 0.0
        packed = torch.cat([sums.flatten(), losses.flatten(), layers.flatten()])
        maxima = torch.cat([largest.flatten(), self._heads_seen(steps)])
        for work in (
            dist.all_reduce(packed, dist.ReduceOp.SUM, async_op=True),
            dist.all_reduce(maxima, dist.ReduceOp.MAX, async_op=True),
        ):
            work.wait()
        maxima = maxima.cpu()
        parts = packed.cpu().split([sums.numel(), losses.numel(), layers.numel()])
        sums, losses, layers = parts[0].view(shape), parts[1].view(-1, 2), parts[2].view(layers.shape)
        sums[:, :, self._maxima, 0] = maxima[:-1].view(largest.shape)
        self._num_heads = int(maxima[-1])
        return [self._unpacked(*each) for each in zip(steps, sums, losses, layers, strict=True)]

    def _layer_sums(self, layers: LayerValues) -> Tensor:
        """Return the sum of the values of each site and their number: [sites, layer statistics, 2]."""
        shape = (len(self._sites), len(self._layer_statistics), 2)
        sums, values = torch.zeros(shape, device=self._device), layers.packed()
        places = [(self._sites.index(site), self._layer_statistics.index(name)) for site, name in layers.keys]
        if values is not None:
            index = torch.tensor(places, device=self._device).T
            both = torch.stack([values.to(self._device), torch.ones(len(places), device=self._device)], dim=1)
            sums.index_put_((index[0], index[1]), both, accumulate=True)
        return sums

    def _unpacked(self, step: StepSums, sums: Tensor, losses: Tensor, layers: Tensor) -> StepSums:
        called = (sums[:, :, 1] > 0).any((1, 2)).tolist()
        by_site = {site: sums[index] for index, site in enumerate(self._sites) if called[index]}
        means = {
            (site, name): [layers[row, column, 0] / layers[row, column, 1]]
            for row, site in enumerate(self._sites)
            for column, name in enumerate(self._layer_statistics)
            if layers[row, column, 1] > 0
        }
        return StepSums(step.step, by_site | ({LOSS: losses} if losses[1] > 0 else {}), LayerValues(means))

    def _agree(self, steps: Sequence[StepSums]) -> None:
        """Agree once on the largest number of heads, which flushes keep up to date, and on the sites."""
        if self.has_agreed:
            return
        digest = _digest("\n".join(self._sites)) % _EXACT
        own = torch.tensor([digest, -digest], dtype=torch.float32, device=self._device)
        highest = torch.cat([self._heads_seen(steps), own])
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        heads, high, negative_low = highest.tolist()
        self._num_heads = int(heads)
        if high != -negative_low:
            everywhere: list[Sequence[str]] = [()] * dist.get_world_size()
            dist.all_gather_object(everywhere, self._sites)
            self.grow(self._adopt(sorted(set().union(*everywhere))))

    @property
    def has_agreed(self) -> bool:
        """True once the sites are settled, after the first flush with observations."""
        return bool(self._num_heads)

    def grow(self, sites: Sequence[str]) -> None:
        """Set the sites in order, including the earlier ones."""
        self._sites = tuple(sites)

    def _heads_seen(self, steps: Sequence[StepSums]) -> Tensor:
        seen = [of_site.shape[-1] for step in steps for site, of_site in step.sums.items() if site != LOSS]
        return torch.tensor([max([self._num_heads, *seen])], dtype=torch.float32, device=self._device)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
