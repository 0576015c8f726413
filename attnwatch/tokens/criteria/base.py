"""Base class of the criteria by which tokens are kept."""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor

from attnwatch.errors import ConfigurationError
from attnwatch.plugins import Plugin, Registry
from attnwatch.tokens.batch import TokenBatch

TokenSource = Literal["attention", "losses"]
"""What a criterion may read beside the tokens themselves; it costs something, so that it must be asked for."""


class TokenCriterion(Plugin):
    """Criterion by which tokens are kept: those with the highest scores.

    Padding and protected tokens are seen to afterwards. A dropper makes an instance of its own, without arguments, of a
    criterion that is given by name; what `reads` names is kept up to date, saved and shared between processes.

    Attributes:
        reads: `"attention"` for `TokenBatch.received`, `"losses"` for `TokenBatch.losses`.

    Example:
        >>> import torch
        >>> class Outliers(TokenCriterion):
        ...     name = "outliers"
        ...     def scores(self, batch: TokenBatch) -> Tensor:
        ...         return (batch.states - batch.states.mean(1, keepdim=True)).norm(dim=-1)
        >>> states = torch.tensor([[[0.0], [0.0], [9.0]]])
        >>> Outliers().scores(TokenBatch.of(states, {}))
        tensor([[3., 3., 6.]])
    """

    registry: ClassVar[Registry["TokenCriterion | type[TokenCriterion]"]] = Registry(
        "token criterion", "attnwatch.tokens.criteria"
    )
    reads: ClassVar[tuple[TokenSource, ...]] = ()

    @classmethod
    def check(cls, plugin: "TokenCriterion | type[TokenCriterion]") -> None:
        described = cls.registry.describe(plugin)
        if cls.scores is TokenCriterion.scores:
            raise ConfigurationError(f"{described} must have a method `scores(self, batch)`.")
        if not isinstance(cls.reads, tuple) or not set(cls.reads) <= set(get_args(TokenSource)):
            choices = ", ".join(map(repr, get_args(TokenSource)))
            raise ConfigurationError(f"{described} must have a tuple `reads` of some of {choices}; got {cls.reads!r}.")
        if isinstance(plugin, type):
            try:
                inspect.signature(plugin).bind()
            except TypeError as error:
                raise ConfigurationError(
                    f"{described} can't be made without arguments ({error}); register an instance instead."
                ) from None

    def scores(self, batch: TokenBatch) -> Tensor:
        """Return a score for each token of one forward: [batch, tokens], the higher the sooner kept."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return what the scores to come depend on, beside what the criterion reads; the same on all processes."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
