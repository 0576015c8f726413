"""What a user asks probes for, checked."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from attnwatch.errors import ConfigurationError
from attnwatch.explain.checks import require_tokenizer
from attnwatch.explain.probing.targets import BUILT_IN, FOR_ALL, FOR_TEXT, LABEL, TEXT_TARGETS, OwnLabels
from attnwatch.explain.subject import Batch
from attnwatch.utils.arguments import require_int


@dataclass(frozen=True)
class ProbeOptions:
    """See `probe_layers`.

    Raises:
        ConfigurationError: one of them is wrong.
    """

    targets: Sequence[str] | None = None
    labels: Mapping[str, OwnLabels] | None = None
    tokenizer: Any | None = None
    max_tokens: int = 8192
    test_share: float = 0.3
    num_splits: int = 5
    seed: int = 0

    def __post_init__(self):
        require_int("max_tokens", self.max_tokens, minimum=1)
        require_int("num_splits", self.num_splits, minimum=2)
        require_int("seed", self.seed, minimum=0)
        if not isinstance(self.test_share, Real) or not 0 < self.test_share < 1:
            raise ConfigurationError(f"`test_share` must be a number between 0 and 1, got {self.test_share!r}.")
        require_tokenizer(self.tokenizer)
        self._check_labels()
        self._check_targets()

    def _check_labels(self) -> None:
        if not isinstance(self.labels, Mapping | None):
            raise ConfigurationError(
                "`labels` must be a dict with, for each name, a function of the batch or a list with a tensor for each "
                f"batch; got a {type(self.labels).__name__}."
            )
        for name, own in (self.labels or {}).items():
            if name in BUILT_IN:
                raise ConfigurationError(f"`labels`: {name!r} is a target that is built in; give yours another name.")
            if not callable(own) and not isinstance(own, list | tuple):
                raise ConfigurationError(
                    f"`labels`: for {name!r} a function of the batch or a list with a tensor for each batch "
                    f"expected; got a {type(own).__name__}."
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
                    f"`targets`: {name!r} is not known; it must be one of {', '.join(known)}, or a name in `labels`."
                )
            if name in TEXT_TARGETS and self.tokenizer is None:
                raise ConfigurationError(f"`targets`: {name!r} is read off the text: give `tokenizer`.")

    def chosen(self) -> list[str]:
        """Names of the targets."""
        if self.targets is not None:
            return list(dict.fromkeys(self.targets))
        return [LABEL, *(self.labels or ()), *FOR_ALL, *(FOR_TEXT if self.tokenizer is not None else ())]

    def own_labels(self, name: str, batches: Sequence[Batch], index: int) -> Tensor:
        """int64 [batch, tokens] or [batch], of the batch of this index.

        Raises:
            ConfigurationError: they are not of that shape, or there are too few.
        """
        own, batch = self.labels[name], batches[index]
        if not callable(own) and len(own) != len(batches):
            raise ConfigurationError(f"`labels`: {name!r} has {len(own)} tensors for {len(batches)} batches.")
        labels = own(batch) if callable(own) else own[index]
        shape = batch["input_ids"].shape
        is_int = isinstance(labels, Tensor) and not labels.is_floating_point() and not labels.is_complex()
        if not is_int or labels.shape not in (shape, shape[:1]):
            got = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
            raise ConfigurationError(
                f"`labels`: for {name!r} integers {list(shape)} or {list(shape[:1])} expected, as the batch has "
                f"sequences and tokens; got {got}."
            )
        return labels.detach().cpu().to(torch.int64)
