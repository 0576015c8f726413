"""Scores of the tokens by a criterion, with the attention and losses that it reads."""

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.errors import ConfigurationError
from attnwatch.models.base import first_answer
from attnwatch.tokens.batch import TokenBatch, TokenSource
from attnwatch.tokens.criteria import TokenCriterion
from attnwatch.tokens.losses import TokenLosses
from attnwatch.tokens.received import ReceivedAttention

Criterion = str | TokenCriterion | type[TokenCriterion] | Callable[[TokenBatch], Tensor]
"""Name of a token criterion, a class or instance of one, or a function that returns scores [batch, tokens]."""


class _Function(TokenCriterion):
    """Criterion that wraps a user's function."""

    def __init__(self, function: Callable[[TokenBatch], Tensor]):
        self.name = getattr(function, "__name__", type(function).__name__)
        self._function = function

    def scores(self, batch: TokenBatch) -> Tensor:
        return self._function(batch)


class Scoring:
    """Scores of the tokens by the criterion of one dropper, with the attention and losses that it reads.

    Args:
        criterion: token criterion, see `Criterion`.
        layer_before: the layer before the first that drops tokens; None if there is none.

    Attributes:
        name: name of the criterion.
        described: description of the criterion, for messages.

    Raises:
        ConfigurationError: the criterion is unknown, or can't read what it needs.
    """

    def __init__(self, criterion: Criterion, layer_before: nn.Module | None):
        self._criterion = make_criterion(criterion)
        self.name = self._criterion.name
        self.described = (
            f"the function {self.name}"
            if isinstance(self._criterion, _Function)
            else TokenCriterion.registry.describe(self._criterion)
        )
        reads = self._criterion.reads
        self._attention = ReceivedAttention(self.name, layer_before) if "attention" in reads else None
        self._losses = TokenLosses(self.name) if "losses" in reads else None
        self._states_of_others: dict[str, Any] = {}

    def scores(self, batch: TokenBatch) -> Tensor:
        """Return scores, float32 [batch, tokens]; the highest are kept.

        Raises:
            ConfigurationError: the criterion can't read what it needs, or does not return such scores.
        """
        read: dict[TokenSource, Tensor] = {}
        if self._attention is not None:
            read["attention"] = self._attention.of(batch)
        if self._losses is not None:
            read["losses"] = self._losses.of(batch)
        batch = replace(batch, read=read)
        scores, expected = self._criterion.scores(batch), batch.states.shape[:2]
        if not isinstance(scores, Tensor) or scores.shape != expected:
            got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ConfigurationError(
                f"`criterion` {self.name!r} must return scores of shape {list(expected)}, got {got}."
            )
        return scores.to(batch.states.device, torch.float32)

    def observed(
        self, is_dropping: Callable[[], bool], generator: Callable[[], torch.Generator]
    ) -> contextlib.AbstractContextManager[None]:
        """Observe the model while the context is open, as needed by the criterion."""
        return contextlib.nullcontext() if self._attention is None else self._attention.observed(is_dropping, generator)

    def learn(self, model: nn.Module, given: Mapping[str, Any], output: Any, generator: torch.Generator) -> None:
        """Learn from a training forward pass, given the model's arguments by name and its output."""
        if self._losses is None:
            return
        predictions = first_answer(lambda family: family.token_predictions(model, given, output))
        if predictions is not None:
            self._losses.learn(predictions, generator)

    def synchronize(self, num_peers: int, device: torch.device) -> None:
        """Share what was learned between processes; each token was seen by `num_peers` of them."""
        if self._losses is not None:
            self._losses.synchronize(num_peers, device)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the criterion and its inputs, by its name, along with the states of earlier criteria."""
        own = {"criterion": self._criterion.state_dict()}
        if self._losses is not None:
            own["losses"] = self._losses.state_dict()
        return {**self._states_of_others, self.name: own}

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned. States of other criteria are kept unchanged."""
        self._states_of_others = {name: state for name, state in states.items() if name != self.name}
        own = states.get(self.name, {})
        self._criterion.load_state_dict(own.get("criterion", {}))
        if self._losses is not None:
            self._losses.load_state_dict(own.get("losses", {}))


def make_criterion(criterion: Criterion) -> TokenCriterion:
    """Return the requested criterion."""
    found: TokenCriterion | type[TokenCriterion]
    if isinstance(criterion, TokenCriterion) or (isinstance(criterion, type) and issubclass(criterion, TokenCriterion)):
        found = criterion
    elif callable(criterion) and not isinstance(criterion, type):
        return _Function(criterion)
    else:
        registered = TokenCriterion.registry.choose("criterion", criterion, otherwise="a function of a TokenBatch")
        found = copy.deepcopy(registered)  # droppers must not share an instance
    found.check(found)
    return found() if isinstance(found, type) else found
