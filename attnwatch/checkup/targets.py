"""Calls of `torch.nn.functional.cross_entropy` in a step: what predictions were scored against."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from attnwatch.capture import replace, shared_patch


@dataclass(frozen=True)
class Targets:
    """Targets that the predictions of a forward were scored against by `torch.nn.functional.cross_entropy`.

    Attributes:
        classes: int [batch, tokens], or [batch] with one for each sequence.
        is_scored: where there is a target, bool of the same shape.
        num_classes: number of classes.
        loss: mean loss, 0-dimensional.
    """

    classes: Tensor
    is_scored: Tensor
    num_classes: int
    loss: Tensor

    def shift(self, ids: Tensor) -> int | None:
        """Return by how many places the targets are ahead of the ids [batch, tokens]; None if they are not these ids.

        0: each token is scored against itself; 1: against the next one, as a language model is.
        """
        if self.classes.shape != ids.shape:
            return None
        for shift in (1, 2, 0):
            scored = self.is_scored[:, : ids.shape[1] - shift]
            is_same = self.classes[:, : ids.shape[1] - shift] == ids[:, shift:]
            number = int(scored.sum())
            if number >= 8 and int((is_same & scored).sum()) >= 0.95 * number:
                return shift
        return None


def targets_of(logits: Tensor, classes: Tensor, ignored: int, loss: Tensor, shape: tuple[int, int]) -> Targets | None:
    """Return the targets of a call of cross-entropy by sequence and token; None if they are not those of the tokens.

    Args:
        logits: [rows, classes] or [batch, classes, tokens].
        classes: int, one for each row, or [batch, tokens].
        ignored: class of rows without a target.
        loss: mean loss of the call.
        shape: numbers of sequences and of tokens. The last token of each sequence may have been left out.
    """
    num_sequences, num_tokens = shape
    num_classes = logits.shape[1] if logits.ndim > 1 else logits.shape[0]
    if classes.numel() == num_sequences:
        classes = classes.flatten()
    elif classes.numel() in (num_sequences * num_tokens, num_sequences * (num_tokens - 1)):
        classes = classes.reshape(num_sequences, -1)
        classes = F.pad(classes, (0, num_tokens - classes.shape[1]), value=ignored)
    else:
        return None
    return Targets(classes, classes != ignored, num_classes, loss)


@contextlib.contextmanager
def scored_calls(receive: Callable[[Tensor, Tensor, int, Tensor], None]) -> Iterator[None]:
    """Pass `receive` the detached logits, classes, ignored class and mean loss of each class-index cross-entropy."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        def cross_entropy(input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Any:
            loss = original(input, target, *args, **kwargs)
            if isinstance(target, Tensor) and not target.is_floating_point() and isinstance(loss, Tensor):
                given = signature.bind(input, target, *args, **kwargs)
                given.apply_defaults()
                ignored, reduction = given.arguments["ignore_index"], given.arguments["reduction"]
                number = (target != ignored).sum() if reduction != "mean" else 1
                receive(input.detach(), target.detach(), ignored, loss.detach().sum() / number)
            return loss

        return cross_entropy

    with shared_patch((F, receive), lambda: replace(vars(F), "cross_entropy", wrap)):
        yield
