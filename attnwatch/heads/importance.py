"""How much each head matters."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from attnwatch.capture import at_unpruned_heads, has_processes
from attnwatch.errors import ConfigurationError
from attnwatch.heads.gates import HeadGates
from attnwatch.heads.heads import HeadSite, head_sites
from attnwatch.recorder import AttentionHistory
from attnwatch.utils.processes import gathered
from attnwatch.utils.states import check_format, with_format

Importance = dict[str, Tensor]
"""Per site float32 [heads of the unpruned model], on the CPU; nan where a head is gone."""

_STATE_FORMAT = 1
# Of attention statistics, the mean of the latest observations counts.
_OBSERVATIONS = 20


def _weight(site: HeadSite) -> Tensor:
    """Frobenius norm of the head's columns of the output projection."""
    return _by_head(site, site.output_weight.detach().float().square()).sqrt()


def _by_head(site: HeadSite, values: Tensor) -> Tensor:
    """Sums over the columns [features, heads · head_dim] of each head: [heads]."""
    return values.sum(0).unflatten(0, (site.num_heads, site.head_dim)).sum(1)


# Criteria that read a recorded history: the statistic, and the importance that follows from it.
_FROM_HISTORY = {
    "entropy": ("normalized_entropy", lambda entropy: 1 - entropy),
    "max_weight": ("max_weight", lambda weight: weight),
}
CRITERIA = ("gate", "entropy", "max_weight", "weight", "random")
Criterion = str | Callable[[nn.Module], Mapping[str, Tensor]]


class HeadImportance:
    """Running importance of the heads of a model in training, without an extra pass.

    ```python
    importance = HeadImportance(model)
    loss.backward()
    importance.update()  # before the gradients are clipped, and after they are unscaled
    optimizer.step()
    ```

    `"gate"` is the mean over updates of |∂L/∂ξ_h| for a gate ξ_h = 1 on the output of head h (Michel et al. 2019,
    arXiv 1905.10650, eq. 2), divided by the layer's L2 norm. It is read off the gradient that is already there:
    ∂L/∂ξ_h = ⟨W_O[:, h], ∂L/∂W_O[:, h]⟩. So the absolute value is that of the sum over the batch, not of each
    example's. Where W_O is frozen or has an adapter (LoRA), gates are put before it: there, only what is computed
    after this object was made counts. Updates with gradients that are not finite, which a gradient scaler skips, do
    not count; sites that never get gradients have no value.

    Args:
        model: any module with attention of a known layout.
        criterion: `"gate"`; `"entropy"` (1 - normalized entropy: heads that look anywhere go first) and
            `"max_weight"` (Voita et al. 2019, arXiv 1905.09418: mean of the largest attention weight), both from
            `history`; `"weight"` (norm of the head's output weights); `"random"`; or a function of the model
            that returns a number for each head, {site: [heads of the unpruned model]}.
        history: returns what a recorder has observed, `recorder.history`; for the criteria that need it.
        seed: of "random".

    Raises:
        ConfigurationError: an unknown criterion, a missing history, or a model without heads to remove.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        criterion: Criterion = "gate",
        history: Callable[[], AttentionHistory] | None = None,
        seed: int = 0,
    ):
        check_criterion(criterion)
        if needs_history(criterion) and history is None:
            raise ConfigurationError(f"`history` must be a recorder's `history` for the criterion {criterion!r}.")
        sites, refused = head_sites(model)
        if not sites:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(refused.items())[:3])
            raise ConfigurationError(
                f"`model` has no attention whose heads can be removed. {reasons or 'It has none.'}"
            )
        self._model = model
        self._criterion = criterion
        self._history = history
        self._seed = seed
        self._sums: dict[str, Tensor] = {}
        self._gates = HeadGates()
        self._sites: dict[str, HeadSite] = {}
        if criterion == "gate":
            self._follow_model()

    def update(self, optimizer: Optimizer | None = None) -> None:
        """Take the gradients of one optimizer step into account. No synchronization with the device.

        Args:
            optimizer: the one that is about to step, where several train the model in turn: gradients of output
                projections that it does not hold are those of another step.
        """
        if self._criterion != "gate":
            return
        held = optimizer and {parameter for group in optimizer.param_groups for parameter in group["params"]}
        if not all(self._is_followed(name, site) for name, site in self._sites.items()):
            self._follow_model()
        for name, site in self._sites.items():
            is_due = held is None or name in self._gates or site.output.weight in held
            gradient = self._gradient(name, site) if is_due else None
            if gradient is None:
                continue
            sums = self._sums.get(name)
            if sums is None:
                sums = self._sums[name] = torch.zeros(site.num_unpruned_heads, device=gradient.device)
            gradient = torch.where(gradient.isfinite().all(), gradient.abs(), 0.0)
            sums += at_unpruned_heads(gradient, site.module)

    def values(self) -> Importance:
        """What it comes to; the same on all processes, which must all call it for the criterion "gate".

        Raises:
            ConfigurationError: a process has seen no gradients, or the criterion can't be read; for "gate", on all
                processes alike.
        """
        sites, _ = head_sites(self._model)
        if callable(self._criterion):
            values = _checked(self._criterion(self._model), sites)
        elif self._criterion == "gate":
            values = self._mean_gates(sites)
        elif needs_history(self._criterion):
            values = self._from_history(sites)
        elif self._criterion == "weight":
            values = {name: _scattered(site, _weight(site).cpu()) for name, site in sites.items()}
        else:
            generator = torch.Generator().manual_seed(self._seed)
            values = {name: torch.rand(site.num_unpruned_heads, generator=generator) for name, site in sites.items()}
        return {name: _without_gone(sites[name], of_site) for name, of_site in values.items()}

    def reset(self) -> None:
        """Forget the gradients so far."""
        self._sums.clear()

    def close(self) -> None:
        """Take the gates out of the model, where there are some."""
        self._gates.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the sums over the gradients so far."""
        return with_format(_STATE_FORMAT, {"sums": {name: sums.cpu().clone() for name, sums in self._sums.items()}})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ConfigurationError: `state` is of another version.
        """
        check_format(state, _STATE_FORMAT, "HeadImportance")
        device = {name: site.output.weight.device for name, site in head_sites(self._model)[0].items()}
        self._sums = {name: sums.to(device[name], copy=True) for name, sums in state["sums"].items() if name in device}

    def _follow_model(self) -> None:
        """After heads were removed: what is left, and gates of its size."""
        self._sites, _ = head_sites(self._model)
        self._gates.put({name: site for name, site in self._sites.items() if _needs_gate(site)})

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
        return _by_head(site, products if weight is site.output_weight else products.t())

    def _mean_gates(self, sites: Mapping[str, HeadSite]) -> Importance:
        heads = self._heads_with_gradients()
        device = next(iter(self._sums.values())).device
        packed = torch.cat([self._sums.get(name, torch.zeros(number)).to(device) for name, number in heads.items()])
        if has_processes():
            dist.all_reduce(packed)
        values = dict(zip(heads, packed.cpu().split(list(heads.values())), strict=True))
        return {name: values[name] / values[name].norm().clamp(min=1e-30) for name in sites if name in values}

    def _heads_with_gradients(self) -> dict[str, int]:
        """How many heads each site has that got gradients on some process. Raises alike on all processes."""
        of_all = gathered({name: len(self._sums[name]) for name in sorted(self._sums)})
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

    def _from_history(self, sites: Mapping[str, HeadSite]) -> Importance:
        statistic, importance_of = _FROM_HISTORY[self._criterion]
        history = self._history()
        latest = importance_of(torch.from_numpy(history[statistic][-_OBSERVATIONS:]).nanmean(0))
        index = {name: i for i, name in enumerate(history.sites)}
        values = {}
        for name, site in sites.items():
            observed = latest[index[name], : site.num_unpruned_heads] if len(history) and name in index else None
            if observed is None or observed[list(site.kept)].isnan().any():
                raise ConfigurationError(f"`history` has no observations of {name!r}; watch all sites.")
            values[name] = observed
        return values


def head_importance(
    model: nn.Module,
    criterion: Criterion = "gate",
    *,
    history: Callable[[], AttentionHistory] | None = None,
    seed: int = 0,
) -> Importance:
    """Importance of the heads as the model is now; "gate" reads the gradients that its parameters have.

    Args:
        model, criterion, history, seed: see `HeadImportance`.

    Returns:
        {site: float32 [heads of the unpruned model]}, the higher the more important.
    """
    importance = HeadImportance(model, criterion=criterion, history=history, seed=seed)
    try:
        importance.update()
        return importance.values()
    finally:
        importance.close()


def check_criterion(criterion: Criterion) -> None:
    if not callable(criterion) and criterion not in CRITERIA:
        raise ConfigurationError(
            f"`criterion` must be one of {', '.join(map(repr, CRITERIA))}, or a function of the model; "
            f"got {criterion!r}."
        )


def needs_history(criterion: Criterion) -> bool:
    """Whether it reads what a recorder has observed."""
    return not callable(criterion) and criterion in _FROM_HISTORY


def _needs_gate(site: HeadSite) -> bool:
    """Whether the gradient of the output projection's weight does not tell."""
    return not site.output.weight.requires_grad or site.projection is not site.output


def _checked(values: Mapping[str, Tensor], sites: Mapping[str, HeadSite]) -> Importance:
    """What a function of the model has returned."""
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"`criterion` must return numbers for the heads by site, got {type(values).__name__}.")
    if not values:
        raise ConfigurationError("`criterion` returned no numbers; the sites are: " + ", ".join(sites) + ".")
    result = {}
    for name, of_site in values.items():
        if name not in sites:
            raise ConfigurationError(f"`criterion` returned {name!r}, which is no site whose heads can be removed.")
        result[name] = torch.as_tensor(of_site).detach().float().cpu()
        if result[name].shape != (sites[name].num_unpruned_heads,):
            raise ConfigurationError(
                f"`criterion` must return one number for each of the {sites[name].num_unpruned_heads} heads of "
                f"{name!r} unpruned, got shape {list(result[name].shape)}."
            )
    return result


def _scattered(site: HeadSite, values: Tensor) -> Tensor:
    """[heads] to [heads of the unpruned model]."""
    return torch.full((site.num_unpruned_heads,), torch.nan).index_copy(
        0, torch.tensor(site.kept, dtype=torch.long), values
    )


def _without_gone(site: HeadSite, values: Tensor) -> Tensor:
    return _scattered(site, values[list(site.kept)])
