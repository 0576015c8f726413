"""Checked options of the probes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnwatch.errors import ConfigurationError
from attnwatch.explain.probing.targets import (
    BUILT_IN,
    DEFAULTS,
    DEFAULTS_WITH_TOKENIZER,
    LABEL,
    TEXT_TARGETS,
    OwnLabels,
)
from attnwatch.explain.token_text import require_tokenizer
from attnwatch.utils.arguments import require_between, require_int


@dataclass(frozen=True)
class ProbeOptions:
    """Arguments of `probe_layers`.

    Raises:
        ConfigurationError: one of them is invalid.
    """

    targets: Sequence[str] | None = None
    labels: Mapping[str, OwnLabels] | None = None
    tokenizer: Any | None = None
    max_tokens: int = 8192
    test_share: float = 0.3
    num_splits: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        require_int("max_tokens", self.max_tokens, minimum=1)
        require_int("num_splits", self.num_splits, minimum=2)
        require_int("seed", self.seed, minimum=0)
        require_between("test_share", self.test_share, 0, 1, inclusive=False)
        require_tokenizer(self.tokenizer, optional=True)
        self._check_labels()
        self._check_targets()

    def _check_labels(self) -> None:
        if not isinstance(self.labels, Mapping | None):
            raise ConfigurationError(
                "`labels` must map each name to a function of the batch or a list with a tensor for each batch; got a "
                f"{type(self.labels).__name__}."
            )
        for name, own in (self.labels or {}).items():
            if name in BUILT_IN:
                raise ConfigurationError(f"`labels`: {name!r} is a built-in target; choose another name.")
            if not callable(own) and not isinstance(own, list | tuple):
                raise ConfigurationError(
                    f"`labels`: {name!r} must be a function of the batch or a list with a tensor for each batch; "
                    f"got a {type(own).__name__}."
                )

    def _check_targets(self) -> None:
        if self.targets is None:
            return
        known = (*BUILT_IN, *(self.labels or ()))
        if isinstance(self.targets, str) or not isinstance(self.targets, Collection) or not self.targets:
            raise ConfigurationError(f"`targets` must be a list of names, got {self.targets!r}.")
        for name in self.targets:
            if name not in known:
                raise ConfigurationError(
                    f"`targets`: {name!r} is unknown; it must be one of {', '.join(known)}, or a name in `labels`."
                )
            if name in TEXT_TARGETS and self.tokenizer is None:
                raise ConfigurationError(f"`targets`: {name!r} is derived from the text: pass `tokenizer`.")

    def chosen_targets(self) -> list[str]:
        """Return the names of the targets."""
        if self.targets is not None:
            return list(dict.fromkeys(self.targets))
        from_text = DEFAULTS_WITH_TOKENIZER if self.tokenizer is not None else ()
        return [LABEL, *(self.labels or ()), *DEFAULTS, *from_text]
