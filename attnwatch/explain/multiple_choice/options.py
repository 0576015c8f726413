"""Options of a multiple-choice evaluation."""

from dataclasses import dataclass, field
from typing import Literal

from attnwatch.errors import ConfigurationError
from attnwatch.explain.multiple_choice.templates import Templates
from attnwatch.utils.arguments import require_choice, require_int

Stated = Literal["yes_no", "percentage"]
Score = Literal["sum", "mean"]

_PERCENTAGE_TOKENS = 8


@dataclass(frozen=True)
class EvaluationOptions:
    """Arguments of `ask` that define how the model is asked.

    Raises:
        ConfigurationError: one of them is invalid.
    """

    templates: Templates = field(default_factory=Templates)
    stated: Stated | None = "yes_no"
    reasons: bool = False
    score: Score = "sum"
    max_new_tokens: int = 32
    batch_size: int = 8
    max_length: int | None = None

    def __post_init__(self) -> None:
        require_choice("stated", self.stated, Stated, optional=True)
        require_choice("score", self.score, Score)
        require_int("max_new_tokens", self.max_new_tokens, minimum=1)
        require_int("batch_size", self.batch_size, minimum=1)
        require_int("max_length", self.max_length, minimum=1, optional=True)
        if not isinstance(self.templates, Templates):
            raise ConfigurationError(
                f"`templates` must be `attnwatch.explain.Templates` or None, got a {type(self.templates).__name__}: "
                "pass Templates(answer=…)."
            )

    @property
    def new_tokens(self) -> dict[str, int]:
        """Maximum number of tokens of each generated reply, by template name."""
        numbers = {"percentage": _PERCENTAGE_TOKENS, "reason": self.max_new_tokens}
        asked = (self.stated, "reason" if self.reasons else None)
        return {name: number for name, number in numbers.items() if name in asked}
