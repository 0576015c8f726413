"""Losses of a fifth blind set, with faults for `fifth_data` and sound for `odd_fifth`."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.checkup import changes
from benchmarks.checkup.blind_data import logits_of
from benchmarks.checkup.data import IGNORED, Batch
from benchmarks.checkup.nets import CLASSES, FIRST_WORD, VOCABULARY, WIDTH, Net
from benchmarks.checkup.odd_trainings import name_of, pretrained_model, with_teacher
from benchmarks.checkup.scripts import Script
from benchmarks.checkup.second_data import next_tokens

Loss = Callable[[nn.Module, Batch], Tensor]
_SHARPER = 3.0


def aligned(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits and labels of sequences, or of all tokens that have one, in rows."""
    logits, labels = logits_of(model, batch), batch["labels"]
    if labels.dim() == 1:
        return logits, labels
    name = type(model).__name__
    if model.is_causal if isinstance(model, Net) else name.endswith(("CausalLM", "LMHeadModel")):
        logits, labels = logits[:, :-1], labels[:, 1:]
    return logits[labels != IGNORED], labels[labels != IGNORED]


def with_second_head(model: nn.Module) -> None:
    """Add a second head beside the first, and keep what it returns."""
    model.second, model.seconds = nn.Linear(WIDTH, CLASSES), []
    (head,) = changes.named(model, "head|classifier")
    head.register_forward_pre_hook(lambda module, inputs: model.seconds.append(model.second(inputs[0])))


def of_two_heads(*, uses_both: bool) -> Loss:
    """Return the loss of a class and another, or that of the class twice, as the line was copied."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        model.seconds.clear()
        first, labels = logits_of(model, batch), batch["labels"]
        second = F.cross_entropy(model.seconds[0], labels // 2) if uses_both else F.cross_entropy(first, labels)
        return (F.cross_entropy(first, labels) + second) / 2

    return loss


def preferring(*, over_padding: bool) -> Loss:
    """Return the loss by which a text is more likely than a shorter one of random words."""

    def sums(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        logits, labels = next_tokens(model, {"input_ids": ids, "attention_mask": mask})
        chosen = logits.log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
        return chosen.sum(1) if over_padding else (chosen * mask[:, 1:]).sum(1)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        shorter = mask * (torch.arange(ids.shape[1]) < mask.sum(1, keepdim=True) // 2 + 1)
        random = torch.where(ids >= FIRST_WORD, torch.randint_like(ids, FIRST_WORD, VOCABULARY), ids) * shorter
        difference = sums(model, ids, mask) - sums(model, random, shorter)
        return -F.logsigmoid(0.1 * difference).mean()

    return loss


def two_views(*, in_same_order: bool) -> Loss:
    """Return the loss of two views of each sample, with labels in the order of the views or in another one."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs = {name: value.repeat_interleave(2, 0) for name, value in batch.items() if name != "labels"}
        labels = batch["labels"]
        labels = labels.repeat_interleave(2) if in_same_order else labels.repeat(2)
        return F.cross_entropy(logits_of(model, inputs), labels)

    return loss


def as_score(target: Callable[[Tensor], Tensor]) -> Loss:
    """Return the squared error of the first output, and what a function makes of the classes."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.mse_loss(logits_of(model, batch)[:, 0], target(batch["labels"]))

    return loss


def taught(*, of_logits: bool) -> Callable[[Script], Script]:
    """Return the change by which a teacher's sharpened probabilities are learned, by logits or by probabilities."""

    def change(script: Script) -> Script:
        name = name_of(script)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            with torch.no_grad():
                targets = (_SHARPER * aligned(pretrained_model(name), batch)[0]).softmax(-1)
            logits, _ = aligned(model, batch)
            return F.cross_entropy(logits if of_logits else logits.softmax(-1), targets)

        return replace(with_teacher(script), loss=loss)

    return change
