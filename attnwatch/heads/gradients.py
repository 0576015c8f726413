"""Gradients of gates on the heads of a model in training, without an extra pass."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from attnwatch.capture import at_unpruned_heads, has_processes
from attnwatch.errors import ConfigurationError
from attnwatch.heads.criteria.base import HeadCriterion
from attnwatch.heads.gates import HeadGates
from attnwatch.heads.head_map import HeadMap
from attnwatch.heads.site import HeadSite
from attnwatch.utils.processes import gathered


class GateGradients:
    """Sums over optimizer steps of what the gates' gradients say.

    For a gate ξ_h = 1 on the output of head h, ∂L/∂ξ_h = ⟨W_O[:, h], ∂L/∂W_O[:, h]⟩: it is read off the gradient of
    the output projection. Where that is frozen or has an adapter (LoRA), gates are put before it.

    Args:
        model: the model.
        criterion: says what a step adds.

    Attributes:
        sums: float32 [heads of the unpruned model] by site, 0 where a head is gone; of this process.
    """

    def __init__(self, model: nn.Module, criterion: HeadCriterion):
        self.sums: dict[str, Tensor] = {}
        self._model, self._criterion = model, criterion
        self._gates = HeadGates()
        self._sites: Mapping[str, HeadSite] = {}

    def follow(self, model: nn.Module | HeadMap) -> None:
        """Take up the heads that the model has now, with gates of their number."""
        self._sites = HeadMap.of(model).sites
        self._gates.put({name: site for name, site in self._sites.items() if _needs_gate(site)})

    def update(self, optimizer: Optimizer | None = None) -> None:
        """Add the gradients of one step. No synchronization with the device.

        Args:
            optimizer: gradients of output projections that it does not hold do not count; None: all count.
        """
        held = optimizer and {parameter for group in optimizer.param_groups for parameter in group["params"]}
        if not all(self._is_followed(name, site) for name, site in self._sites.items()):
            self.follow(self._model)
        for name, site in self._sites.items():
            is_due = held is None or name in self._gates or site.output.weight in held
            gradient = self._gradient(name, site) if is_due else None
            if gradient is None:
                continue
            if name not in self.sums:
                self.sums[name] = torch.zeros(site.num_unpruned_heads, device=gradient.device)
            self.sums[name] += at_unpruned_heads(self._added(gradient, name), site.module)

    def of_all_processes(self) -> dict[str, Tensor]:
        """Return the sums of all processes, which must all call it: float32 [heads of the unpruned model], on the CPU.

        Raises:
            ConfigurationError: a process has seen no gradients, or other heads; on all processes alike.
        """
        heads = self._heads_with_gradients()
        device = next(iter(self.sums.values())).device
        packed = torch.cat([self.sums.get(name, torch.zeros(number)).to(device) for name, number in heads.items()])
        if has_processes():
            dist.all_reduce(packed)
        return dict(zip(heads, packed.cpu().split(list(heads.values())), strict=True))

    def close(self) -> None:
        """Take the gates out of the model, where there are some."""
        self._gates.close()

    def _added(self, gradient: Tensor, site: str) -> Tensor:
        """Return what a step adds; nothing where gradients are not finite, as the step is skipped then."""
        try:
            added = self._criterion.of_step(gradient)
        except Exception as error:
            raise ConfigurationError(
                f"{self._criterion.described} failed at {site!r} with {type(error).__name__}: {error}"
            ) from error
        if not isinstance(added, Tensor) or added.shape != gradient.shape:
            got = list(added.shape) if isinstance(added, Tensor) else type(added).__name__
            raise ConfigurationError(
                f"`of_step` of {self._criterion.described} must return shape {list(gradient.shape)}, got {got}."
            )
        return torch.where(gradient.isfinite().all(), added, 0.0)

    def _is_followed(self, name: str, site: HeadSite) -> bool:
        has_heads = site.output_weight.shape[1] == site.num_heads * site.head_dim
        return has_heads and _needs_gate(site) == (name in self._gates)

    def _gradient(self, name: str, site: HeadSite) -> Tensor | None:
        if name in self._gates:
            return self._gates.take_gradient(name)
        weight = site.output.weight
        if weight.grad is None:
            return None
        products = weight.detach().float() * weight.grad.float()
        products = products if weight is site.output_weight else products.t()
        return products.sum(0).unflatten(0, (site.num_heads, site.head_dim)).sum(1)

    def _heads_with_gradients(self) -> dict[str, int]:
        """Return how many heads each site has that got gradients on some process. Raises alike on all processes."""
        of_all = gathered({name: len(self.sums[name]) for name in sorted(self.sums)})
        without = [rank for rank, heads in enumerate(of_all) if not heads]
        if without:
            where = f" on process {', '.join(map(str, without))} of {len(of_all)}" if len(of_all) > 1 else ""
            raise ConfigurationError(
                f"`importance`: no gradients were seen yet{where}; call update() after backward. Where the output "
                "projections are frozen, make the HeadImportance before the forward."
            )
        heads: dict[str, int] = {}
        for rank, of_rank in enumerate(of_all):
            for name, number in of_rank.items():
                if heads.setdefault(name, number) != number:
                    raise ConfigurationError(
                        f"`importance`: {name!r} has {number} heads on process {rank} and {heads[name]} on another; "
                        "make the same model on all."
                    )
        return dict(sorted(heads.items()))


def _needs_gate(site: HeadSite) -> bool:
    """Return whether the weight of the output projection has no gradient that tells."""
    return not site.output.weight.requires_grad or site.projection is not site.output
