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

# Tokens and outputs of one forward by default. A CPU gains nothing from more tokens, and beyond 32 MiB of outputs the C
# library asks the system for memory anew each time.
_ON_CPU = (512, 2**23)
_ON_ACCELERATORS = (16384, 2**28)
_SECONDS_WITHOUT_PROGRESS_BAR = 2.0


class MaskedForwards:
    """Measures what hiding tokens of a batch changes. Used while `model.evaluating()` is open.

    Rows of a causal language model are computed from the first hidden token on only, with the keys and values of the
    whole sequence before it. One row is computed both ways first; where they disagree, rows are computed in full.

    Args: see `occlude`.

    Attributes:
        batch: the batch with its masks.
        effect: what is measured.
        num_preparing: forwards that preparing took.
        why_full: why rows are computed in full; empty if they are not.

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
        """Route that the rows take."""
        return "full" if self._prefix is None else "cached_prefix"

    def chunks(self, sequences: Tensor, hidden: Tensor) -> list[Tensor]:
        """Return the indices of the rows of each forward, int64 [rows]. For the arguments see `effects`."""
        starts, ends = self._spans(sequences, hidden)
        order = torch.argsort(starts * hidden.shape[1] + ends, stable=True).tolist()
        starts, ends = starts.tolist(), ends.tolist()
        chunks: list[list[int]] = []
        widest = 0
        for row in order:
            end = max(widest, ends[row])
            if chunks and (len(chunks[-1]) + 1) * (end - starts[chunks[-1][0]]) <= self._budget:
                chunks[-1].append(row)
                widest = end
            else:
                chunks.append([row])
                widest = ends[row]
        return [torch.tensor(chunk, device=hidden.device) for chunk in chunks]

    def effects(self, sequences: Tensor, hidden: Tensor, *, show_progress: bool = False) -> Tensor:
        """Return the effects [rows], or [rows, tokens] for models with an output per token: 0 where not computed.

        Args:
            sequences: int64 [rows], of the batch.
            hidden: bool [rows, tokens].
            show_progress: show a progress bar, if tqdm is installed and it takes more than two seconds.
        """
        shape = (len(sequences),) if self.effect.outputs is None else hidden.shape
        effects = torch.zeros(shape, device=hidden.device)
        for chunk in _with_progress(self.chunks(sequences, hidden), show_progress):
            start, found = self._measure(sequences[chunk], hidden[chunk])
            if found.ndim == 1:
                effects[chunk] = found
            else:
                effects[chunk, start : start + found.shape[1]] = found
        return effects

    def _spans(self, sequences: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first token of each row that must be computed, and the end, int64 [rows]."""
        if self._prefix is None:
            return torch.zeros_like(sequences), self.batch.ends(self.batch.real)[sequences]
        return hidden.int().argmax(1), self.batch.ends(self.effect.outputs)[sequences]

    def _measure(self, sequences: Tensor, hidden: Tensor) -> tuple[int, Tensor]:
        """Return the first token that was computed, and the effects of the rows from there on."""
        starts, ends = self._spans(sequences, hidden)
        start = int(starts.min())
        logits = self.batch.logits(sequences, hidden, start, int(ends.max()), self._prefix)
        return start, self.effect.measure(logits, sequences, start)


def _default_budget(logits: Tensor) -> int:
    """Return the number of tokens of one forward."""
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
