"""Gradients of gates on the heads of a model during training, without an extra pass."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from attnwatch.capture import at_unpruned_heads
from attnwatch.errors import ConfigurationError
from attnwatch.heads.criteria.base import HeadCriterion
from attnwatch.heads.head_map import HeadMap
from attnwatch.heads.site import HeadSite
from attnwatch.plugins import named_errors
from attnwatch.utils.hooks import Remove, put
from attnwatch.utils.processes import gathered, has_other_processes


class GateGradients:
    """Sums of the gates' gradients over optimizer steps.

    For a gate ξ_h = 1 on the output of head h, ∂L/∂ξ_h = ⟨W_O[:, h], ∂L/∂W_O[:, h]⟩, which follows from the gradient
    of the output projection. If that is frozen or has an adapter (LoRA), gates are inserted before it; they leave the
    output bitwise unchanged.

    Args:
        model: the model.
        criterion: head criterion that determines what each step adds.

    Attributes:
        sums: float32 [heads of the unpruned model] by site, 0 for removed heads; of this process only.
    """

    def __init__(self, model: nn.Module, criterion: HeadCriterion):
        self.sums: dict[str, Tensor] = {}
        self._model, self._criterion = model, criterion
        self._gates: dict[str, _Gate] = {}
        self._sites: Mapping[str, HeadSite] = {}

    def follow(self, model: nn.Module | HeadMap) -> None:
        """Follow the model's current heads, with gates where needed."""
        self._sites = HeadMap.of(model).sites
        needed = {name: site for name, site in self._sites.items() if _needs_gate(site)}
        for name in self._gates.keys() - needed.keys():
            self._gates.pop(name).remove()
        for name, site in needed.items():
            if name not in self._gates:
                self._gates[name] = _InputGate(site) if site.layout.calls_output else _WeightGate(site)

    def update(self, optimizer: Optimizer | None = None) -> None:
        """Add the gradients of one step, without synchronizing with the device.

        Args:
            optimizer: optimizer of the output projections whose gradients are added; None adds all.
        """
        groups = [] if optimizer is None else optimizer.param_groups
        held = {parameter for group in groups for parameter in group["params"]}
        if not all(self._is_followed(name, site) for name, site in self._sites.items()):
            self.follow(self._model)
        for name, site in self._sites.items():
            is_due = optimizer is None or name in self._gates or site.output_parameter in held
            gradient = self._gradient(name, site) if is_due else None
            if gradient is None:
                continue
            if name not in self.sums:
                self.sums[name] = torch.zeros(site.num_unpruned_heads, device=gradient.device)
            self.sums[name] += at_unpruned_heads(self._added(gradient), site.module)

    def of_all_processes(self) -> dict[str, Tensor]:
        """Return the sums over all processes, as float32 [heads of the unpruned model] on the CPU; all must call it.

        Raises:
            ConfigurationError: a process has seen no gradients, or has different heads; raised on all processes.
        """
        heads = self._heads_with_gradients()
        device = next(iter(self.sums.values())).device
        packed = torch.cat([self.sums.get(name, torch.zeros(number)).to(device) for name, number in heads.items()])
        if has_other_processes():
            dist.all_reduce(packed)
        return dict(zip(heads, packed.cpu().split(list(heads.values())), strict=True))

    def close(self) -> None:
        """Remove the gates from the model."""
        while self._gates:
            self._gates.popitem()[1].remove()

    def _added(self, gradient: Tensor) -> Tensor:
        """Return a step's contribution to the sums; zero for nonfinite gradients, whose step is skipped."""
        with named_errors(self._criterion):
            added = self._criterion.of_step(gradient)
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
            return self._gates[name].take_gradient()
        weight = site.output_parameter
        if weight.grad is None:
            return None
        products = weight.detach().float() * weight.grad.float()
        products = products if weight is site.output_weight else products.t()
        return products.sum(0).unflatten(0, (site.num_heads, site.head_dim)).sum(1)

    def _heads_with_gradients(self) -> dict[str, int]:
        """Return the number of heads of each site that got gradients on some process. Errors are raised on all."""
        of_all = gathered({name: len(self.sums[name]) for name in sorted(self.sums)})
        without = [rank for rank, heads in enumerate(of_all) if not heads]
        if without:
            where = f" on process {', '.join(map(str, without))} of {len(of_all)}" if len(of_all) > 1 else ""
            raise ConfigurationError(
                f"`importance`: no gradients were seen yet{where}; call update() after backward. If the output "
                "projections are frozen, create the HeadImportance before the forward."
            )
        heads: dict[str, int] = {}
        for rank, of_rank in enumerate(of_all):
            for name, number in of_rank.items():
                if heads.setdefault(name, number) != number:
                    raise ConfigurationError(
                        f"`importance`: {name!r} has {number} heads on process {rank} and {heads[name]} on another; "
                        "build the same model on all processes."
                    )
        return dict(sorted(heads.items()))


class _Gate:
    """Gates on the heads of one site, inserted on construction."""

    remove: Remove

    def __init__(self, site: HeadSite):
        self._head_dim = site.head_dim
        self._gate = _ones(site.num_heads, site.output_parameter.device)

    def gated(self, features: Tensor) -> Tensor:
        """Return features [..., heads · head_dim] times the gates. Heads may have been removed or restored since."""
        num_heads = features.shape[-1] // self._head_dim
        if len(self._gate) != num_heads or self._gate.device != features.device:
            self._gate = _ones(num_heads, features.device)
        return features * self._gate.to(features.dtype).repeat_interleave(self._head_dim)

    def take_gradient(self) -> Tensor | None:
        """Return the gradient since the last call, [heads]; None if there was no backward."""
        gradient, self._gate.grad = self._gate.grad, None
        return gradient


class _InputGate(_Gate):
    """Gates on the input of the output projection."""

    def __init__(self, site: HeadSite):
        super().__init__(site)
        self.remove = put(site.projection, handles=[site.projection.register_forward_pre_hook(self._multiply)])

    def _multiply(self, projection: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not torch.is_grad_enabled():
            return None
        mixed, *rest = args
        return (self.gated(mixed), *rest)


class _WeightGate(_Gate):
    """Gates on the weight of the output projection, for modules that read the weight instead of calling it."""

    def __init__(self, site: HeadSite):
        super().__init__(site)
        self._parameters: dict[str, Any] = site.output._parameters
        self._weight: Any = None
        # With several gates, the last one is the first to restore what it found.
        handles = [
            site.module.register_forward_pre_hook(self._multiply),
            site.module.register_forward_hook(self._put_back, prepend=True, always_call=True),
        ]
        self.remove = put(site.module, handles=handles)

    def _multiply(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled():
            self._weight = self._parameters["weight"]
            self._parameters["weight"] = self.gated(self._weight)

    def _put_back(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if self._weight is not None:
            self._parameters["weight"], self._weight = self._weight, None


def _needs_gate(site: HeadSite) -> bool:
    """Return whether gates are needed because the gradient of the output projection's weight is not enough."""
    return not site.output_parameter.requires_grad or site.projection is not site.output


def _ones(num_heads: int, device: torch.device) -> Tensor:
    return torch.ones(num_heads, device=device, requires_grad=True)
