"""Base class of the criteria by which tokens are kept."""

from collections.abc import Mapping
from typing import Any, ClassVar, get_args

from torch import Tensor

from attnwatch.errors import ConfigurationError
from attnwatch.plugins import Plugin, Registry
from attnwatch.tokens.batch import TokenBatch, TokenSource


class TokenCriterion(Plugin):
    """Criterion by which tokens are kept, highest scores first.

    Scores need not account for padding and protected tokens. If a criterion is passed by name, the dropper creates its
    own instance, without arguments. The values named in `reads` are computed, saved and shared between processes.

    Attributes:
        reads: attributes of a `TokenBatch` that the criterion reads, among `attention` and `losses`.

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
            raise ConfigurationError(f"{described}: `reads` must be a tuple with any of {sources}, got {cls.reads!r}.")
        if isinstance(plugin, type):
            try:
                plugin()
            except Exception as error:
                raise ConfigurationError(
                    f"{described} can't be created without arguments ({type(error).__name__}: {error}); pass an "
                    "instance."
                ) from error

    def scores(self, batch: TokenBatch) -> Tensor:
        """Return a score for each token of one forward pass: [batch, tokens]; the highest are kept."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the state that later scores depend on, besides the values in `reads`; the same on all processes."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned; an empty dict means that there is none."""
