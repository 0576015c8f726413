"""Tokens whose outputs the loss reads, by the gradients at the outputs."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Number of sequences whose read tokens are known, number of tokens of each whose kind of loss is, and relative error of
# their gradients by dtype.
_NUM_READ, _NUM_CLASSIFIED = 8, 16
_ROUNDING = {torch.float16: 0.01, torch.bfloat16: 0.02}
# Names of outputs with an entry for each token, the most specific first.
_OUTPUTS_OF_TOKENS = ("logits", "last_hidden_state", "", "0")


@dataclass(frozen=True)
class ReadTokens:
    """Tokens whose outputs the loss reads, in the first 8 sequences of a batch.

    Attributes:
        has_gradient: mask of the outputs with a gradient, bool [sequences, tokens].
        has_class: mask of tokens whose gradient is that of a cross-entropy with one class, bool [sequences, tokens]; up
            to 31 evenly spaced tokens of each sequence are looked at.
    """

    has_gradient: Tensor
    has_class: Tensor


def some_of(outputs: Tensor) -> tuple[slice, slice]:
    """Return the first sequences and some tokens of outputs [batch, tokens, …]: enough to see padding."""
    return slice(_NUM_READ), slice(None, None, max(outputs.shape[1] // _NUM_CLASSIFIED, 1))


def read_tokens(some_outputs: Tensor, gradient: Tensor) -> ReadTokens:
    """Return the tokens that the loss reads.

    Args:
        some_outputs: outputs [sequences, tokens, classes] at `some_of` the tokens.
        gradient: gradient of all outputs, [batch, tokens, classes].
    """
    has_gradient = torch.linalg.vector_norm(gradient[:_NUM_READ], torch.inf, dim=-1) != 0
    # The gradient of a cross-entropy is softmax - one_hot, times a weight.
    some = some_of(gradient)
    slope, guess = gradient[some].float(), some_outputs.float().softmax(-1)
    lowest = slope.argmin(-1, keepdim=True)
    weight = -slope.gather(-1, lowest) / (1 - guess.gather(-1, lowest))
    error = (slope - weight * guess.scatter_add(-1, lowest, -torch.ones_like(weight))).abs().sum(-1)
    has_class = torch.zeros_like(has_gradient)
    has_class[some] = has_gradient[some] & (error <= _ROUNDING.get(gradient.dtype, 1e-3) * slope.abs().sum(-1))
    return ReadTokens(has_gradient, has_class)


def read_of(outputs: Mapping[str, ReadTokens], length: int) -> ReadTokens | None:
    """Return which tokens the loss reads, from the output that has one entry for each; None if there is none.

    Args:
        outputs: tokens that the loss reads, by the name of the output.
        length: number of tokens.
    """
    named = (outputs[name] for name in _OUTPUTS_OF_TOKENS if name in outputs)
    return next((each for each in named if each.has_gradient.shape[1] == length), None)
