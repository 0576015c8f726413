"""Calls of `cross_entropy` and `nll_loss` of `torch.nn.functional` in a step, and the targets of the predictions."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnwatch.checkup.loss_functions import OF_CLASSES, LossFunctions

# Number of rows of the logits whose gradients are read.
_NUM_ROWS = 64
_GOLDEN_RATIO = (1 + 5**0.5) / 2


@dataclass(frozen=True)
class Targets:
    """Targets that the predictions of a forward were scored against by `cross_entropy` or `nll_loss`.

    Attributes:
        classes: target classes, int [batch, tokens], or [batch] with one per sequence.
        is_scored: mask of the positions with a target, bool of the same shape.
        num_classes: number of classes.
        loss: mean loss, 0-dimensional.
        places: positions of the kept logits in `classes`, as int64 indices.
        logits: some of the predictions, [kept, classes].
    """

    classes: Tensor
    is_scored: Tensor
    num_classes: int
    loss: Tensor
    places: tuple[Tensor, ...]
    logits: Tensor

    def shift(self, ids: Tensor) -> int | None:
        """Return how many positions the targets are ahead of the ids [batch, tokens]; None if they do not match.

        0 means that each token is scored against itself; 1 against the next one, as in a language model; -1 against the
        one before. At most 3.
        """
        if self.classes.shape != ids.shape:
            return None
        length = ids.shape[1]
        for shift in (1, 2, 3, 0, -1):
            predicted = slice(max(-shift, 0), length - max(shift, 0))
            scored = self.is_scored[:, predicted]
            is_same = self.classes[:, predicted] == ids[:, max(shift, 0) : length + min(shift, 0)]
            number = int(scored.sum())
            least = 0.95 if shift > 0 else 1.0  # tokens that a model restores are mostly the targets themselves
            if number >= 8 and int((is_same & scored).sum()) >= least * number:
                return shift
        return None


@dataclass(frozen=True)
class ScoredCall:
    """Call of `cross_entropy` or `nll_loss` of `torch.nn.functional` with classes as targets.

    Only some rows of the logits are kept, because these may be the largest tensor of the training run.

    Attributes:
        rows: int64 [rows], the rows whose logits are kept, in ascending order.
        logits: kept logits, [rows, classes], detached.
        classes: target classes, int, one per row of the call, or [batch, tokens].
        ignored: class of rows without a target.
        loss: mean loss, 0-dimensional.
        label_smoothing: share of the target that is spread over all classes.
        gradients: gradients at the kept rows, one tensor per backward pass; empty for losses that are not reduced,
            because their rows may be weighted, and for logits with more than two dimensions.
    """

    rows: Tensor
    logits: Tensor
    classes: Tensor
    ignored: int
    loss: Tensor
    label_smoothing: float
    gradients: list[Tensor]

    @property
    def alignments(self) -> list[Tensor]:
        """Cosines between the gradients and the gradient of this loss: 1 if the loss is minimised, -1 if maximised."""
        classes, num_classes = self.classes.flatten()[self.rows], self.logits.shape[1]
        target = F.one_hot(classes.long().clamp(0, num_classes - 1), num_classes) * (1 - self.label_smoothing)
        slope = self.logits.float().softmax(-1) - target - self.label_smoothing / num_classes
        slope = slope * (classes != self.ignored)[:, None]
        return [F.cosine_similarity(each.float().flatten(), slope.flatten(), dim=0) for each in self.gradients]

    def is_next_along_first_axis(self, ids: Tensor) -> bool:
        """Return whether the targets are the next tokens along the first axis of the ids, and not along the second."""
        if self.classes.numel() != ids.numel() or min(ids.shape) < 2 or self.classes.device != ids.device:
            return False
        classes = self.classes.reshape(ids.shape)
        along_first, along_second = classes[:-1] == ids[1:], classes[:, :-1] == ids[:, 1:]
        return bool(along_first.all()) and not bool(along_second.all())

    def targets(
        self,
        num_sequences: int,
        num_tokens: int,
        *,
        has_tokens_first: bool = False,
        read: Sequence[Tensor] = (),
    ) -> Targets | None:
        """Return the targets by sequence and token, [batch] or [batch, tokens]; None if they do not fit the batch.

        The last token of each sequence may be missing. Which tokens other calls leave out is known from the outputs
        that the loss reads.

        Args:
            num_sequences, num_tokens: size of the batch.
            has_tokens_first: True if the rows of the call are a flattened [tokens, batch], not [batch, tokens].
            read: masks of the outputs that losses read in the first sequences, bool [sequences, tokens].
        """
        classes, number = self.classes, self.classes.numel() // num_sequences
        sizes = (number, num_sequences) if has_tokens_first else (num_sequences, number)
        if not number or number * num_sequences != classes.numel():
            return None
        places = torch.unravel_index(self.rows, sizes)
        if number == 1:
            classes, places = classes.flatten(), places[int(has_tokens_first) :][:1]
        elif number in (num_tokens, num_tokens - 1):
            classes = classes.reshape(sizes)
            classes, places = (classes.T, (places[1], places[0])) if has_tokens_first else (classes, places)
            classes = F.pad(classes, (0, num_tokens - number), value=self.ignored)
        elif not has_tokens_first and number < num_tokens:
            classes = classes.reshape(sizes)
            masks = [mask for mask in read if mask.shape[1] == num_tokens]
            first = _first_read(classes != self.ignored, masks)
            if first is None:
                return None
            classes = F.pad(classes, (first, num_tokens - number - first), value=self.ignored)
            places = (places[0], places[1] + first)
        else:
            return None
        return Targets(classes, classes != self.ignored, self.logits.shape[1], self.loss, places, self.logits)


def _first_read(is_scored: Tensor, masks: Sequence[Tensor]) -> int | None:
    """Return the first of the consecutive tokens that a loss reads; None unless just one choice fits.

    Args:
        is_scored: mask of the targets, bool [batch, targets].
        masks: masks of outputs with a gradient in the first sequences, bool [sequences, tokens].
    """
    fits = set()
    for mask in masks:
        scored = F.pad(is_scored[: len(mask)].to(mask.device), (0, mask.shape[1] - is_scored.shape[1]))
        fits |= {first for first in range(mask.shape[1]) if torch.equal(scored.roll(first, 1), mask)}
    return fits.pop() if len(fits) == 1 else None


def scored_calls(
    functions: LossFunctions, receive: Callable[[ScoredCall], None]
) -> contextlib.AbstractContextManager[None]:
    """Pass each call of cross-entropy, or of `nll_loss`, that has classes as targets to `receive`."""
    return functions.observed(OF_CLASSES, _scored_call, receive)


def _spread_rows(number: int) -> Tensor:
    """Return the indices of some rows of a call, int64: one row of each of 64 equal parts, at a varying offset.

    Evenly spaced rows could fall on the same position in all sequences, which may have no target.
    """
    if number <= _NUM_ROWS:
        return torch.arange(number)
    part = torch.arange(_NUM_ROWS, dtype=torch.float64)
    return ((part + (part * _GOLDEN_RATIO) % 1) * (number / _NUM_ROWS)).long()


def _scored_call(name: str, loss: Any, options: Mapping[str, Any]) -> ScoredCall | None:
    logits, classes = options["input"], options["target"]
    if not isinstance(classes, Tensor) or classes.is_floating_point() or not isinstance(loss, Tensor):
        return None
    ignored, reduction = options.get("ignore_index", -100), options.get("reduction", "mean")
    number = (classes != ignored).sum() if reduction != "mean" else 1
    rows = _spread_rows(classes.numel()).to(classes.device)
    by_class = logits.detach().reshape(1, -1) if logits.ndim == 1 else logits.detach().movedim(1, -1)
    kept = by_class[torch.unravel_index(rows, by_class.shape[:-1])]
    gradients: list[Tensor] = []
    if logits.requires_grad and logits.ndim == 2 and reduction != "none":
        logits.register_hook(lambda gradient: gradients.append(gradient.detach()[rows]))
    mean, smoothing = loss.detach().sum() / number, options.get("label_smoothing", 0.0)
    return ScoredCall(rows, kept, classes.detach(), ignored, mean, smoothing, gradients)
