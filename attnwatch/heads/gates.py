"""Explicit gates: a factor of one on the output of each head, for its gradient."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.heads.site import HeadSite
from attnwatch.utils.hooks import Remove, put


class HeadGates:
    """Gates on the heads of some sites; outputs stay as they are, bit for bit."""

    def __init__(self) -> None:
        self._gates: dict[str, _Gate] = {}
        self._put: dict[str, Remove] = {}

    def __contains__(self, site: str) -> bool:
        return site in self._gates

    def put(self, sites: Mapping[str, HeadSite]) -> None:
        """Put gates on these sites, and on no others."""
        for name in self._gates.keys() - sites.keys():
            self._take_out(name)
        for name, site in sites.items():
            if name in self._gates:
                continue
            gate = (_InputGate if site.layout.calls_output else _WeightGate)(site)
            self._gates[name], self._put[name] = gate, gate.put(site)

    def take_gradient(self, site: str) -> Tensor | None:
        """Return the gradient since the last call, [heads]; None where there was no backward."""
        return self._gates[site].take_gradient()

    def close(self) -> None:
        """Take all gates out of the model."""
        for name in list(self._gates):
            self._take_out(name)

    def _take_out(self, site: str) -> None:
        del self._gates[site]
        self._put.pop(site)()


class _Gate:
    """A gate on each head of one site."""

    def __init__(self, site: HeadSite):
        self._head_dim = site.head_dim
        self._gate = _ones(site.num_heads, site.output.weight.device)

    def gated(self, features: Tensor) -> Tensor:
        """Return features [..., heads · head_dim] times the gates. A head may have been removed since, or put back."""
        num_heads = features.shape[-1] // self._head_dim
        if len(self._gate) != num_heads or self._gate.device != features.device:
            self._gate = _ones(num_heads, features.device)
        return features * self._gate.to(features.dtype).repeat_interleave(self._head_dim)

    def take_gradient(self) -> Tensor | None:
        """Return the gradient of the gates, and forget it."""
        gradient, self._gate.grad = self._gate.grad, None
        return gradient


class _InputGate(_Gate):
    """Gates on what the output projection takes."""

    def put(self, site: HeadSite) -> Remove:
        """Put the gates on a site."""
        return put(site.projection, handles=[site.projection.register_forward_pre_hook(self._multiply)])

    def _multiply(self, projection: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not torch.is_grad_enabled():
            return None
        mixed, *rest = args
        return (self.gated(mixed), *rest)


class _WeightGate(_Gate):
    """Gates on the weight of the output projection, where the module's forward reads it instead of calling that."""

    _weight: nn.Parameter | None = None

    def put(self, site: HeadSite) -> Remove:
        """Put the gates on a site."""
        self._projection = site.output
        # The last one of several gates is the first to put back what it has found.
        handles = [
            site.module.register_forward_pre_hook(self._multiply),
            site.module.register_forward_hook(self._put_back, prepend=True, always_call=True),
        ]
        return put(site.module, handles=handles)

    def _multiply(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled():
            self._weight = self._projection.weight
            self._projection._parameters["weight"] = self.gated(self._weight)

    def _put_back(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if self._weight is not None:
            self._projection._parameters["weight"], self._weight = self._weight, None


def _ones(num_heads: int, device: torch.device) -> Tensor:
    return torch.ones(num_heads, device=device, requires_grad=True)
