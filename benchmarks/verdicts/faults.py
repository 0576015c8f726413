"""Setups of trainings, and the faults that people make in them."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.verdicts.tasks import Batch

_QUERY_KEY = r"q_proj|k_proj|query|key|c_attn"
_POSITIONS = r"wpe|position_embeddings|embed_positions"


@dataclass(frozen=True)
class Setup:
    """Options of a run beside task, architecture and seed.

    Attributes:
        learning_rate: of AdamW, after the warm-up.
        warm_up: share of the run.
        schedule: share of the run that is over, to a factor of the learning rate.
        weight_decay, betas, clip: of AdamW, and of the gradient's norm (None: not clipped).
        batch_size: in sequences.
        left_out: pattern of parameters' names that are not in the optimizer.
        half: parameters and all are float16.
        one_batch: each step sees the same one.
        prepare: changes the new model.
        corrupt: changes a batch; in training, and what is no label also when the run is measured.
    """

    learning_rate: float
    batch_size: int
    warm_up: float = 0.05
    schedule: Callable[[float], float] = lambda progress: 1.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float | None = 1.0
    left_out: str = ""
    half: bool = False
    one_batch: bool = False
    prepare: Callable[[nn.Module], None] = lambda model: None
    corrupt: Callable[[Batch], Batch] = lambda batch: batch


Change = Callable[[Setup], Setup]


def _cosine(progress: float) -> float:
    return 0.05 + 0.95 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item()) / 2


SOUND: dict[str, Change] = {
    "plain": lambda setup: setup,
    "slow": lambda setup: replace(setup, learning_rate=setup.learning_rate * 0.5),
    "fast": lambda setup: replace(setup, learning_rate=setup.learning_rate * 1.6),
    "decay": lambda setup: replace(setup, weight_decay=0.1),
    "cosine": lambda setup: replace(setup, schedule=_cosine, warm_up=0.1, learning_rate=1.5 * setup.learning_rate),
    "big batches": lambda setup: replace(setup, batch_size=setup.batch_size * 3 // 2),
    "not clipped": lambda setup: replace(setup, clip=None, betas=(0.9, 0.999)),
}


def _shuffled(batch: Batch) -> Batch:
    """Return the batch with the labels of other sequences."""
    return {**batch, "labels": batch["labels"].roll(1, 0)}


def _inverted(batch: Batch) -> Batch:
    return {**batch, "attention_mask": 1 - batch["attention_mask"]}


def _ignored(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name != "attention_mask"}


def _scaled(factor: float) -> Callable[[nn.Module], None]:
    """Return the change that multiplies the scale of attention."""

    def prepare(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(getattr(module, "scaling", None), float):
                module.scaling *= factor

    return prepare


def _without_positions(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(getattr(module, "inv_freq", None), Tensor):
            module.inv_freq.zero_()
    for name, parameter in model.named_parameters():
        if re.search(_POSITIONS, name):
            parameter.data.zero_()
            parameter.requires_grad_(False)


def _weights_times(factor: float) -> Callable[[nn.Module], None]:
    """Return the change that multiplies all matrices."""

    def prepare(model: nn.Module) -> None:
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data.mul_(factor)

    return prepare


def _rising(factor: float) -> Callable[[float], float]:
    """Return the schedule that rises exponentially to `factor` at the end."""
    return lambda progress: factor**progress


FAULTS: dict[str, Change] = {
    "rate too high": lambda setup: replace(setup, learning_rate=setup.learning_rate * 50),
    "rate far too high": lambda setup: replace(setup, learning_rate=setup.learning_rate * 300, clip=None),
    "rate too low": lambda setup: replace(setup, learning_rate=setup.learning_rate / 30),
    "rate far too low": lambda setup: replace(setup, learning_rate=setup.learning_rate / 300),
    "no warm-up": lambda setup: replace(
        setup, warm_up=0.0, learning_rate=setup.learning_rate * 8, clip=None, betas=(0.9, 0.999)
    ),
    "rate that rises": lambda setup: replace(setup, schedule=_rising(3e4)),
    "queries and keys left out": lambda setup: replace(setup, left_out=_QUERY_KEY),
    "scale too small": lambda setup: replace(setup, prepare=_scaled(0.005)),
    "scale too large": lambda setup: replace(setup, prepare=_scaled(64.0)),
    "mask inverted": lambda setup: replace(setup, corrupt=_inverted),
    "mask ignored": lambda setup: replace(setup, corrupt=_ignored),
    "positions missing": lambda setup: replace(setup, prepare=_without_positions),
    "labels shuffled": lambda setup: replace(setup, corrupt=_shuffled),
    "weights decayed": lambda setup: replace(setup, weight_decay=0.05 / setup.learning_rate),
    "weights too large": lambda setup: replace(setup, prepare=_weights_times(12.0)),
    "weights too small": lambda setup: replace(setup, prepare=_weights_times(0.01)),
    "float16": lambda setup: replace(setup, half=True),
    "one batch": lambda setup: replace(setup, one_batch=True),
}
