"""Dropping of tokens: stacks of layers that allow it, and comparison with the model whose tokens are masked."""

import inspect
import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch import AttnwatchError, AttnwatchWarning, TokenBatch, TokenDropper
from attnwatch.tokens.stacks import Stack, find_stacks
from benchmarks.coverage.architecture import crash, deviation_of, loss_of, outputs_of
from benchmarks.coverage.batches import Batch

_EVERY = slice(None, None, 2)  # the tokens that stay when routing is compared: half of them, the first one included


def dropping_of(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Drop half of the tokens in all layers of each stack, and require finite gradients.

    `deviation`: the largest of the stacks, see `_deviation`; None where none can be compared.
    """
    stacks, refused = find_stacks(model)
    reasons, deviations = Counter(refused.values()), []
    for stack in stacks.values():
        try:
            _drop(model, batch, stack)
            deviations.append(_deviation(model, batch, stack))
        except AttnwatchError as reason:
            reasons[str(reason)] += 1
        except Exception as error:
            reasons[crash(error)] += 1
    if not stacks and not refused:
        reasons["it has no stack of layers with attention"] += 1
    return {
        "stacks": len(stacks) + len(refused),
        "droppable": len(deviations),
        "deviation": max((deviation for deviation in deviations if deviation is not None), default=None),
        "reasons": dict(reasons),
    }


def _drop(model: nn.Module, batch: Batch, stack: Stack) -> None:
    """Run one training step.

    Raises:
        AttnwatchError: it is refused, or does not compute fewer tokens, or its gradients are not finite.
    """
    model.zero_grad()
    with warnings.catch_warnings(record=True) as caught, _dropper(model, stack) as dropper:
        warnings.simplefilter("always", AttnwatchWarning)
        loss_of(outputs_of(model, batch)).backward()
    if not 0 < dropper.layer_tokens < dropper.all_layer_tokens:
        said = [str(each.message) for each in caught if issubclass(each.category, AttnwatchWarning)]
        raise AttnwatchError("; ".join(said) or "no token was dropped")
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if not gradients or not all(gradient.isfinite().all() for gradient in gradients):
        raise AttnwatchError("gradients are not finite")


def _dropper(model: nn.Module, stack: Stack, **options: Any) -> TokenDropper:
    return TokenDropper(model, keep_ratio=0.5, min_tokens=2, first_layer=0, last_layer=-1, stack=stack.name, **options)


def _deviation(model: nn.Module, batch: Batch, stack: Stack) -> float | None:
    """Return how far the states of kept tokens are from those of the whole model with the other tokens masked.

    Relative to the largest state; None where a mask can't say that.
    """
    ids, mask, positions = (
        f"{stack.argument_prefix}{name}" for name in ("input_ids", "attention_mask", "position_ids")
    )
    parameters = inspect.signature(model.forward).parameters
    if ids not in batch.inputs or mask not in batch.inputs or mask not in parameters:
        return None
    shape = batch.inputs[ids].shape
    scores = torch.zeros(shape)
    scores[:, _EVERY] = 1
    inputs = dict(batch.inputs) | {mask: torch.ones(shape, dtype=torch.long)}
    if positions in parameters:
        inputs[positions] = torch.arange(shape[1]).expand(shape).contiguous()
    seen: set[torch.Size] = set()

    def every_other(tokens: TokenBatch) -> Tensor:
        seen.add(tokens.states.shape[:2])
        return scores if tokens.states.shape[:2] == shape else torch.zeros(tokens.states.shape[:2])

    with _dropper(model, stack, criterion=every_other):
        routed = _states(model, inputs, stack, shape)
    if seen != {shape} or routed is None:  # it is other tokens that go through this stack
        return None
    masked = _states(model, inputs | {mask: scores.long()}, stack, shape)
    return deviation_of([routed[:, _EVERY]], [masked[:, _EVERY]])


def _states(model: nn.Module, inputs: dict[str, Tensor], stack: Stack, shape: torch.Size) -> Tensor | None:
    """Return the output of the model that has a token axis for the stack's tokens."""
    output = model(**inputs)
    is_of_two = getattr(model.config, "is_encoder_decoder", False)
    names = ("logits", "last_hidden_state")
    if is_of_two and not stack.argument_prefix:
        names = ("encoder_last_hidden_state",)
    found = (getattr(output, name, None) for name in names)
    return next((states.detach() for states in found if states is not None and states.shape[:2] == shape), None)
