"""Models that ignore the order of the tokens."""

import torch
from torch import Tensor, nn

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, known, register
from attnwatch.checkup.checks.future_leak import leaking_predictions
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.forward import POSITIONS
from attnwatch.checkup.padding import sees_only_padding
from attnwatch.checkup.weights import require_weights

# Position tables with smaller entries have little effect, such as relative biases that start at zero.
_LEAST_POSITION = 0.02
_NUMBERED = "Pass positions that number the tokens of each sequence from 0, or leave `position_ids` out."
_ALONG_TOKENS = (
    "Add the positions along the axis of the tokens: for inputs [batch, tokens, features], the tutorial's "
    "`pe[: x.size(0)]` is wrong, because it is for [tokens, batch, features]."
)
_INTEGERS = (torch.int32, torch.int64)


@register
class OrderIgnored(Check):
    """The order of the tokens makes no difference.

    The tokens are reversed; the outputs must not be the original ones in reverse. If there is one output per sequence,
    only the tokens between the first and the last are reversed. The finding is a note for models without position
    modules, which may be meant to ignore order. A causal mask alone makes outputs depend on the order, so causal models
    without positions are not reported. Position ids that are the same for all tokens, or equal the token ids or the
    mask, are reported. So are position embeddings whose outputs are unused, and positions along the batch: outputs that
    change with the place of a sequence in the batch.
    """

    name = "order_ignored"
    decides = True
    severity = 0.7
    remedy = "Add positions to the token embeddings, or apply rotary embeddings to queries and keys before attention."

    def look(self, step: StepEvidence) -> Fault | None:
        for name, ids in step.forward.positions.items():
            if fault := _fault_of(ids, step):
                return Fault(f"{name} received {fault}", (name.strip("`"),), remedy=_NUMBERED)
        for name, table in step.forward.module.named_parameters():
            is_empty = table.ndim > 1 and not table.requires_grad and not table.any()
            if is_empty and POSITIONS.search(name) and "relative" not in name and not _are_given_times(step):
                what = f"{name} is zero and frozen, so all positions are the same"
                return Fault(
                    what, (name,), remedy="Initialise the positions, and train them unless they are sinusoids."
                )
        if name := _unused_positions(step):
            what = f"the output of the position embedding {name} is unused"
            return Fault(what, (name,), remedy="Add it to the token embeddings.")
        for name, table in step.forward.module.named_parameters():
            if POSITIONS.search(name) and table.ndim > 1 and float(table.detach().abs().max()) < _LEAST_POSITION:
                raise CannotCheck(f"{name} is almost zero, so positions make little difference")
        flow = step.flow
        is_batch = flow.tokens.grid is None or flow.tokens.grid.is_batched
        if is_batch and known(lambda: flow.depends_on_place, False):
            what = "outputs change with the place of a sequence in the batch, as if positions ran along the batch"
            return Fault(what, remedy=_ALONG_TOKENS)
        if not (flow.tokens.are_ids or (flow.tokens.grid is not None and flow.tokens.grid.is_known)):
            raise CannotCheck("the model receives features, which may contain positions")
        require_weights(step.forward.module)
        if sees_only_padding(step):
            raise CannotCheck("attention sees only the padding")
        if _is_causal(step) or flow.reordered.any():
            return None
        modules = step.forward.module.named_modules()
        names = [name for name, part in modules if not isinstance(part, nn.Dropout | nn.Identity)]
        names += [name for name, _ in step.forward.module.named_parameters()]
        unused = next((name for name in names if POSITIONS.search(name)), None)
        where = "" if unused is None else f", although the model has {unused}"
        what = f"reversing the tokens changes nothing but the order of the outputs{where}"
        return Fault(what, sites=(unused,) if unused else (), is_note=unused is None)


def _fault_of(ids: Tensor, step: StepEvidence) -> str:
    """Return what is wrong with position ids that are all equal or copy another argument; else an empty string."""
    if not ids.ndim or ids.shape[-1] < 2 or _are_given_times(step):
        return ""
    if bool((ids == ids[..., :1]).all()):
        return f"position {int(ids.flatten()[0])} for all tokens"
    others = {name: value for name, value in step.forward.arguments.items() if not POSITIONS.search(name)}
    same = [name for name, value in others.items() if isinstance(value, Tensor) and _are_equal(value, ids)]
    return f"the values of `{same[0]}` instead of positions" if same else ""


def _are_equal(value: Tensor, ids: Tensor) -> bool:
    return value.shape == ids.shape and value.device == ids.device and bool((value == ids).all())


def _unused_positions(step: StepEvidence) -> str:
    """Return the name of a position embedding whose output is unused, although that of another embedding is used."""
    called = {name: step.model.get_submodule(name) for name in step.forward.called}
    tables = [name for name, part in called.items() if isinstance(part, nn.Embedding | nn.Conv2d)]
    unused = [name for name in tables if name in step.graph.unused]
    are_others_used = any(not POSITIONS.search(name) for name in set(tables) - set(unused))
    return next((name for name in unused if POSITIONS.search(name)), "") if are_others_used else ""


def _are_given_times(step: StepEvidence) -> bool:
    """Return whether another argument numbers the tokens, as the time steps of Decision Transformers do."""
    given = [
        value
        for name, value in step.forward.arguments.items()
        if isinstance(value, Tensor) and value.dtype in _INTEGERS and not (POSITIONS.search(name) or "mask" in name)
    ]
    steps = [value.diff() for value in given if value.ndim > 1 and value.shape[-1] > 1]
    return any(bool((each >= 0).all() and (each > 0).any()) for each in steps)  # padding may repeat a number


def _is_causal(step: StepEvidence) -> bool:
    """Return whether predictions do not change with later tokens, so that the order of the tokens matters."""
    return known(lambda: not bool(leaking_predictions(step).any()), False)
