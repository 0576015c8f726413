"""Oddities of sound losses and optimizers of a third blind set, for `odd_third`."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from benchmarks.checkup import changes
from benchmarks.checkup.blind_data import logits_of
from benchmarks.checkup.data import IGNORED, Batch
from benchmarks.checkup.edits import half
from benchmarks.checkup.optimizers import compensate, moved_by, trust
from benchmarks.checkup.scripts import Script
from benchmarks.checkup.second_data import next_tokens

_PROMPT, _LARGEST = 5, 0.01


def compensated(script: Script) -> Script:
    """Train bfloat16 weights, with what rounding leaves out kept aside."""
    script = half(torch.bfloat16, 1e-3)(script)
    return replace(script, optimizers=moved_by(1e-3, compensate))


def trusted(model: nn.Module) -> list[Optimizer]:
    """Return steps by shares of norms."""
    return moved_by(0.02, trust)(model)


def cleared_by_hand(script: Script) -> Script:
    """Clear gradients by hand before each step."""

    def clear(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        for parameter in model.parameters():
            parameter.grad = None

    return replace(script, clear="never", before_step=clear)


def clipped_by_value(script: Script) -> Script:
    """Clip each number of the gradients as it comes."""

    def prepare(model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.register_hook(lambda gradient: gradient.clamp(-_LARGEST, _LARGEST))

    return replace(script, prepare=(*script.prepare, prepare))


def flags_by_hand(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    """Set each module's flag of training."""
    for module in model.modules():
        module.training = True


def growing(step: int) -> float:
    """Return a factor that doubles at each of the first six steps, until it is 1."""
    return min(1.0, 2.0 ** (step - 6))


def to_a_tenth(step: int) -> float:
    """Return the factor of a linear decay that ends at a tenth."""
    return max(0.1, 1 - step / 20)


def prompts_weighed_by_a_tenth(model: nn.Module, batch: Batch) -> Tensor:
    """Weigh the prompt's words by a tenth."""
    logits, _ = next_tokens(model, batch)
    labels = batch["labels"][:, 1:]
    losses = F.cross_entropy(logits.mT, labels, reduction="none")
    weights = (labels != IGNORED).float()
    weights[:, :_PROMPT] *= 0.1
    return (losses * weights).sum() / weights.sum()


def by_script(model: nn.Module, batch: Batch) -> Tensor:
    """Return the cross entropy of a decoder whose inputs are one behind already."""
    return F.cross_entropy(logits_of(model, batch).flatten(0, 1), batch["labels"].flatten())


def with_small_sums(model: nn.Module, batch: Batch) -> Tensor:
    """Add the squares of the logarithms of the softmax's sums, which keeps logits small."""
    logits, labels = logits_of(model, batch), batch["labels"]
    if labels.dim() == 2:
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    is_labelled = labels != IGNORED
    return F.cross_entropy(logits, labels, ignore_index=IGNORED) + 1e-4 * (
        logits.logsumexp(-1).square()[is_labelled].mean()
    )


def margins(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss by which the right class is to lead by 1."""
    return F.multi_margin_loss(logits_of(model, batch), batch["labels"])


def freeze_segments(model: nn.Module) -> None:
    """Freeze the table of segments, of which there is one."""
    changes.freeze(r".*token_type_embeddings.*")(model)
