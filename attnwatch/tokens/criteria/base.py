"""Base class of the criteria by which tokens are kept."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor

from attnwatch.errors import ConfigurationError
from attnwatch.plugins import Plugin, Registry
from attnwatch.tokens.batch import TokenBatch

TokenSource = Literal["attention", "losses"]
"""Field of a `TokenBatch` that costs something, so that it is there only if the criterion declares it."""


class TokenCriterion(Plugin):
    """Criterion by which tokens are kept: those with the highest scores.

    Scores need not care for padding and protected tokens. A dropper makes an instance of its own, without arguments, of
    a criterion that is given by name. The fields in `reads` are computed, saved and shared between processes.

    Attributes:
        reads: fields of `TokenBatch` that are None unless they are named here: "attention", "losses".

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
        """Raise a `ConfigurationError` if a criterion can't be used."""
        described, sources = cls.registry.describe(plugin), get_args(TokenSource)
        if cls.scores is TokenCriterion.scores:
            raise ConfigurationError(f"{described} must have a method `scores(self, batch)`.")
        if not isinstance(cls.reads, tuple) or not set(cls.reads) <= set(sources):
            raise ConfigurationError(
                f"{described} must have in `reads` a tuple with any of {sources}, got {cls.reads!r}."
            )
        if isinstance(plugin, type):
            try:
                plugin()
            except Exception as error:
                raise ConfigurationError(
                    f"{described} can't be made without arguments ({type(error).__name__}: {error}); give an instance."
                ) from error

    def scores(self, batch: TokenBatch) -> Tensor:
        """Return a score for each token of one forward: [batch, tokens], the higher the sooner kept."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the state on which later scores depend, beside what the criterion reads; the same on all processes."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; an empty dict means that there is no state of this criterion."""
