"""Importance of the heads of a model."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attnwatch.errors import ConfigurationError
from attnwatch.heads.criteria.base import GRADIENTS, WEIGHTS, HeadCriterion, HeadData
from attnwatch.heads.gates import GateGradients
from attnwatch.heads.head_map import HeadMap
from attnwatch.heads.site import HeadSite
from attnwatch.plugins import named_errors
from attnwatch.recorder import AttentionHistory
from attnwatch.statistics import Statistic
from attnwatch.utils.states import check_format, with_format

Importance = dict[str, Tensor]
"""float32 [heads of the unpruned model] by site, on the CPU; nan for removed heads."""
ModelFunction = Callable[[nn.Module], Mapping[str, Any]]
"""Function from a model to a number for each head, {site: [heads of the unpruned model]}."""
Criterion = str | HeadCriterion | type[HeadCriterion] | ModelFunction
"""Name of a head criterion, an instance of one, or a function of the model."""

_STATE_FORMAT = 1
# Number of latest observations to average.
_OBSERVATIONS = 20


class HeadImportance:
    """Running importance of the heads of a model during training, without an extra pass.

    The gradients of the training itself are used. If output projections are frozen or have an adapter (LoRA), gates
    are inserted before them, and only forward passes after the creation of this object count. Updates with nonfinite
    gradients, which a gradient scaler skips, do not count; sites that never get gradients have no value.

    Args:
        model: any module that contains attention with a known layout.
        criterion: name of a file in `attnwatch/heads/criteria`, such as `"gate"`; a `HeadCriterion`; or a function of
            the model that returns a number for each head, {site: [heads of the unpruned model]}.
        history: method that returns a recorder's observations, `recorder.history`; for criteria that read statistics.
        seed: seed of the random numbers that a criterion draws.

    Raises:
        ConfigurationError: the criterion is unknown, the history is missing, or the model has no heads to remove.

    Example:
        >>> model = nn.TransformerEncoderLayer(d_model=32, nhead=4, dropout=0.0)
        >>> importance = HeadImportance(model)
        >>> model(torch.randn(10, 1, 32)).square().mean().backward()
        >>> importance.update()  # after gradients are unscaled, before they are clipped
        >>> importance.values()["self_attn"].shape
        torch.Size([4])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        criterion: Criterion = "gate",
        history: Callable[[], AttentionHistory] | None = None,
        seed: int = 0,
    ):
        self._criterion = find_criterion(criterion)
        if self._criterion.statistics and history is None:
            raise ConfigurationError(f"`history` must be a recorder's `history` for {self._criterion.described}.")
        heads = HeadMap.of(model)
        heads.require_sites("model")
        self._model, self._seed = model, seed
        self._history = cast(Callable[[], AttentionHistory], history)  # read only by criteria that need it
        self._gradients = GateGradients(model, self._criterion)
        if self._criterion.reads_gradients:
            self._gradients.follow(heads)

    def update(self, optimizer: Optimizer | None = None) -> None:
        """Add the gradients of one optimizer step, without synchronizing with the device.

        Args:
            optimizer: optimizer that is about to step, if several take turns; gradients of output projections that it
                does not hold belong to another step.

        Raises:
            ConfigurationError: the criterion does not turn the gradients into one number for each head.
        """
        if self._criterion.reads_gradients:
            self._gradients.update(optimizer)

    def values(self, heads: HeadMap | None = None) -> Importance:
        """Return the importance so far, the same on all processes; all must call it if the criterion reads gradients.

        Args:
            heads: map of the model's heads, if it is already known.

        Raises:
            ConfigurationError: a process has seen no gradients (raised on all processes), or the criterion fails or
                does not return one number for each head.
        """
        heads = HeadMap.of(self._model if heads is None else heads)
        if isinstance(self._criterion, FunctionOfModel):
            scores, described = _of_function(self._criterion.function(self._model), heads), "`criterion`"
        else:
            scores, described = self._scores(heads), self._criterion.described
        return {name: _checked(described, heads.sites[name], of_site) for name, of_site in scores.items()}

    def reset(self) -> None:
        """Discard the gradients so far."""
        self._gradients.sums.clear()

    def close(self) -> None:
        """Remove any gates from the model."""
        self._gradients.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the sums over the gradients so far."""
        sums = {name: of_site.cpu().clone() for name, of_site in self._gradients.sums.items()}
        return with_format(_STATE_FORMAT, {"criterion": self._criterion.described, "sums": sums})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state_dict` returned; sums of another criterion are ignored.

        Raises:
            ConfigurationError: `state` has another version.
        """
        check_format(state, _STATE_FORMAT, "HeadImportance")
        device = {name: site.output_parameter.device for name, site in HeadMap.of(self._model).sites.items()}
        sums = state["sums"] if state["criterion"] == self._criterion.described else {}
        self._gradients.sums = {
            name: of_site.to(device[name], copy=True) for name, of_site in sums.items() if name in device
        }

    def _scores(self, heads: HeadMap) -> dict[str, Any]:
        """Return the criterion's scores for each site, except sites that never get gradients."""
        sums = self._gradients.of_all_processes() if self._criterion.reads_gradients else None
        generator = torch.Generator().manual_seed(self._seed)
        scores = {}
        for name, site in heads.sites.items():
            if sums is not None and name not in sums:
                continue
            values = {} if sums is None else {GRADIENTS: sums[name]}
            if WEIGHTS in self._criterion.reads:
                values[WEIGHTS] = _by_head(site)
            for statistic in self._criterion.statistics:
                values[statistic] = self._observed(statistic, site)
            data = HeadData(name, site.num_unpruned_heads, site.kept, values, generator)
            with named_errors(self._criterion):
                scores[name] = self._criterion.scores(data)
        return scores

    def _observed(self, statistic: str, site: HeadSite) -> Tensor:
        """Return the mean over the latest observations of a statistic: float32 [heads of the unpruned model]."""
        history = self._history()
        if len(history) and site.name in history.sites:
            observed = history[statistic][-_OBSERVATIONS:, history.sites.index(site.name), : site.num_unpruned_heads]
            mean = torch.from_numpy(observed).nanmean(0)
            if not mean[list(site.kept)].isnan().any():
                return mean
        raise ConfigurationError(f"`history` has no observations of {site.name!r}; observe all sites.")


def head_importance(
    model: nn.Module,
    criterion: Criterion = "gate",
    *,
    history: Callable[[], AttentionHistory] | None = None,
    seed: int = 0,
) -> Importance:
    """Return the current importance of a model's heads, using the gradients stored in its parameters.

    Args:
        model, criterion, history, seed: see `HeadImportance`.

    Returns:
        {site: float32 [heads of the unpruned model]}, higher is more important; nan for removed heads.

    Example:
        >>> model = nn.TransformerEncoderLayer(d_model=32, nhead=4)
        >>> head_importance(model, "random", seed=1)
        {'self_attn': tensor([0.7576, 0.2793, 0.4031, 0.7347])}
    """
    importance = HeadImportance(model, criterion=criterion, history=history, seed=seed)
    try:
        importance.update()
        return importance.values()
    finally:
        importance.close()


class FunctionOfModel(HeadCriterion):
    """Criterion that wraps a function of the model. It may read anything; its return value is checked."""

    def __init__(self, function: ModelFunction):
        self.function = function
        self.name = getattr(function, "__qualname__", type(function).__qualname__)


def find_criterion(criterion: Criterion) -> HeadCriterion:
    """Return the requested criterion.

    Raises:
        ConfigurationError: no criterion has this name, or its declaration is invalid.
    """
    if isinstance(criterion, type) and issubclass(criterion, HeadCriterion):
        criterion = criterion()
    if isinstance(criterion, HeadCriterion):
        criterion.check(criterion)
    elif callable(criterion) and not isinstance(criterion, type):
        return FunctionOfModel(criterion)
    else:
        otherwise = "a HeadCriterion, or a function of the model"
        criterion = HeadCriterion.registry.choose("criterion", criterion, otherwise=otherwise)
    for name in criterion.statistics:
        if name not in Statistic.registry:
            raise ConfigurationError(
                f"{criterion.described} reads {name!r}; it must be one of {GRADIENTS!r}, {WEIGHTS!r}, "
                f"{', '.join(map(repr, Statistic.registry))}."
            )
    return criterion


def _of_function(values: object, heads: HeadMap) -> Mapping[str, Any]:
    """Return the values that a function of the model returned, after checking their sites."""
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"`criterion` must return numbers for the heads by site, got {type(values).__name__}.")
    if not values:
        raise ConfigurationError("`criterion` returned no numbers; the sites are: " + ", ".join(heads.sites) + ".")
    for name in values:
        if name not in heads.sites:
            raise ConfigurationError(f"`criterion` returned {name!r}, which is not a site whose heads can be removed.")
    return values


def _checked(described: str, site: HeadSite, scores: Any) -> Tensor:
    """Return scores as float32 [heads of the unpruned model] on the CPU, nan for removed heads."""
    try:
        numbers = torch.as_tensor(scores).detach().float().cpu()
    except Exception as error:
        raise ConfigurationError(f"{described} must return numbers for {site.name!r}, got {scores!r}.") from error
    if numbers.shape != (site.num_unpruned_heads,):
        raise ConfigurationError(
            f"{described} must return one number for each of the {site.num_unpruned_heads} heads of the unpruned "
            f"{site.name!r}, got shape {list(numbers.shape)}."
        )
    kept = list(site.kept)
    return torch.full_like(numbers, torch.nan).index_copy(0, torch.tensor(kept, dtype=torch.long), numbers[kept])


def _by_head(site: HeadSite) -> Tensor:
    """Return each head's part of the output projection: float32 [heads of the unpruned model, features, head_dim]."""
    by_head = site.output_weight.detach().float().unflatten(1, (site.num_heads, site.head_dim)).movedim(1, 0)
    whole = by_head.new_full((site.num_unpruned_heads, *by_head.shape[1:]), torch.nan)
    whole[list(site.kept)] = by_head
    return whole
