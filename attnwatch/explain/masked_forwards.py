"""Effects of hiding tokens, in as few forwards as possible."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from attnwatch.explain.batches import Batch, check_batch
from attnwatch.explain.causality import check_causality
from attnwatch.explain.effects import check_outputs, make_effect
from attnwatch.explain.evaluated_model import EvaluatedModel
from attnwatch.explain.hiding import HidingOptions
from attnwatch.explain.masked_batch import MaskedBatch

Route = Literal["cached_prefix", "full"]

# Default numbers of tokens and outputs of one forward. A CPU gains nothing from more tokens, and above 32 MiB of
# outputs the C library requests new memory from the system each time.
_ON_CPU = (512, 2**23)
_ON_ACCELERATORS = (16384, 2**28)
_SECONDS_WITHOUT_PROGRESS_BAR = 2.0


class MaskedForwards:
    """Effects of hiding tokens of a batch. The model must be in `EvaluatedModel.evaluating`.

    Rows of a causal language model are computed from the first hidden token on, with the cached keys and values of the
    tokens before it. One row is computed with and without the cache first; if they differ, all rows are computed in
    full.

    Attributes:
        batch: batch with its masks.
        effect: measured effect.
        num_preparing: number of forwards during preparation.
        why_full: reason why rows are computed in full; empty if they are not.

    Raises:
        ConfigurationError: hiding tokens of this model or batch can't be measured this way.
    """

    def __init__(self, model: EvaluatedModel, batch: Batch, options: HidingOptions):
        check_batch(batch)
        check_outputs(model, options.effect)
        before = model.num_forwards
        self.batch = MaskedBatch(model, batch, options)
        logits, self._prefix, self.why_full = self.batch.unmasked_logits(keep_prefix=options.effect in (None, "loss"))
        check_outputs(model, options.effect, are_per_token=logits.ndim == 3)
        self.effect = make_effect(options.effect, logits, batch, self.batch.real, model.problem_type)
        self._budget = options.tokens_per_forward or _default_budget(logits)
        if self.effect.name == "loss":
            why_not = check_causality(self.batch, self.effect, logits, self._prefix)
            self.why_full = self.why_full or why_not
        else:
            self.why_full = f"the effect {self.effect.name!r} needs all outputs"
        if self.why_full:
            self._prefix = None
        self.num_preparing = model.num_forwards - before

    @property
    def route(self) -> Route:
        """Route by which rows are computed."""
        return "full" if self._prefix is None else "cached_prefix"

    def chunks(self, sequences: Tensor, hidden: Tensor) -> list[Tensor]:
        """Return the indices of the rows of each forward, int64 [rows]. For the arguments, see `effects`."""
        starts, ends = self._spans(sequences, hidden)
        order = torch.argsort(starts * hidden.shape[1] + ends, stable=True).tolist()
        start_of, end_of = starts.tolist(), ends.tolist()
        chunks: list[list[int]] = []
        widest = 0
        for row in order:
            end = max(widest, end_of[row])
            if chunks and (len(chunks[-1]) + 1) * (end - start_of[chunks[-1][0]]) <= self._budget:
                chunks[-1].append(row)
                widest = end
            else:
                chunks.append([row])
                widest = end_of[row]
        return [torch.tensor(chunk, device=hidden.device) for chunk in chunks]

    def effects(self, sequences: Tensor, hidden: Tensor, *, show_progress: bool = False) -> Tensor:
        """Return the effects [rows], or [rows, tokens] for models with one output per token, 0 if not computed.

        Args:
            sequences: index of the batch's sequence that each row comes from, int64 [rows].
            hidden: tokens to hide, bool [rows, tokens].
            show_progress: see `occlude`.
        """
        shape = (len(sequences),) if self.effect.outputs is None else hidden.shape
        effects = torch.zeros(shape, device=hidden.device)
        for chunk in _with_progress(self.chunks(sequences, hidden), show_progress):
            rows, here = sequences[chunk], hidden[chunk]
            starts, ends = self._spans(rows, here)
            start, end = int(starts.min()), int(ends.max())
            found = self.effect.measure(self.batch.logits(rows, here, start, end, self._prefix), rows, start)
            if found.ndim == 1:
                effects[chunk] = found
            else:
                effects[chunk, start : start + found.shape[1]] = found
        return effects

    def _spans(self, sequences: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first and the end of the tokens to compute in each row, int64 [rows]."""
        if self._prefix is None or self.effect.outputs is None:
            return torch.zeros_like(sequences), self.batch.ends(self.batch.real)[sequences]
        return hidden.int().argmax(1), self.batch.ends(self.effect.outputs)[sequences]


def _default_budget(logits: Tensor) -> int:
    """Return the default number of tokens per forward."""
    tokens, outputs = _ON_CPU if logits.device.type == "cpu" else _ON_ACCELERATORS
    return tokens if logits.ndim == 2 else min(tokens, max(1, outputs // logits.shape[-1]))


def _with_progress(steps: Sequence[Any], show_progress: bool) -> Any:
    if not show_progress:
        return steps
    try:
        from tqdm import tqdm
    except ImportError:
        return steps
    return tqdm(steps, delay=_SECONDS_WITHOUT_PROGRESS_BAR, leave=False, unit="forward")
