"""Evidence that the checks read: one training step."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

from torch import Tensor, nn
from torch.optim import Optimizer

from attnwatch.checkup.flow import Flow
from attnwatch.checkup.forward import CannotCheck, RecordedForward
from attnwatch.checkup.targets import Targets, targets_of
from attnwatch.checkup.tokens import Tokens, tokens_of
from attnwatch.checkup.updates import Update

NUM_UPDATES = 6
"""Steps of the optimizers after which their updates are judged."""

ScoredCall = tuple[Tensor, Tensor, int, Tensor]
"""Logits, classes, ignored class and loss of a cross-entropy."""


class StepEvidence:
    """One training step, as far as it has come.

    Attributes:
        model: model that trains.
        optimizers: optimizers that train it, or a part of it.
        global_step: number of the step.
        num_steps: number of steps that the checkup has seen before.
        steps_per_epoch: number of optimizer steps of an epoch; None if it is not known.
        updates: what each step of the optimizers has done so far, by name of the matrix.
        scored: calls of cross-entropy.
        stale_gradients: norms of the old gradients that the last step of an optimizer has used again, by name of the
            parameter; 0 if they were cleared.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        global_step: int,
        *,
        num_steps: int,
        steps_per_epoch: int | None,
        updates: Sequence[Mapping[str, Update]],
    ):
        self.model = model
        self.optimizers = optimizers
        self.global_step = global_step
        self.num_steps = num_steps
        self.steps_per_epoch = steps_per_epoch
        self.updates = updates
        self.scored: list[ScoredCall] = []
        self.stale_gradients: dict[str, Tensor] = {}
        self.recorded: RecordedForward | None = None

    @property
    def forward(self) -> RecordedForward:
        """First forward of the step that is trained on.

        Raises:
            CannotCheck: there was none.
        """
        if self.recorded is None:
            raise CannotCheck("no forward with gradients was seen")
        return self.recorded

    @cached_property
    def flow(self) -> Flow:
        """Answers about what moves in the output with which tokens.

        Raises:
            CannotCheck: the forward can't be repeated, or has no tokens.
        """
        return Flow(self.forward)

    @cached_property
    def tokens(self) -> Tokens:
        """Tokens of the whole batch.

        Raises:
            CannotCheck: the model was given no tokens.
        """
        return tokens_of(self.forward, self.forward.arguments)

    @cached_property
    def targets(self) -> Targets:
        """Targets that the predictions of the step were scored against.

        Raises:
            CannotCheck: the loss is another one than the cross-entropy of the tokens or sequences.
        """
        try:
            length = self.tokens.length
        except CannotCheck:  # images, of which each has one target
            length = 1
        shape = self.forward.num_sequences, length
        found = (targets_of(*call, shape) for call in self.scored)
        targets = next((each for each in found if each is not None), None)
        if targets is None:
            raise CannotCheck("no `torch.nn.functional.cross_entropy` of the tokens or the sequences was seen")
        return targets

    @cached_property
    def trainable(self) -> Mapping[str, nn.Parameter]:
        """Parameters that require a gradient, by name."""
        return {name: each for name, each in self.model.named_parameters() if each.requires_grad}

    @property
    def held(self) -> Mapping[nn.Parameter, Optimizer]:
        """Parameters that an optimizer holds.

        Raises:
            CannotCheck: no optimizer was given.
        """
        if not self.optimizers:
            raise CannotCheck("no optimizer was given: pass `optimizers`")
        return {
            parameter: optimizer
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    def updates_of_matrices(self) -> dict[str, list[Update]]:
        """Return the updates of each matrix so far, of steps with a learning rate that is not 0.

        Raises:
            CannotCheck: no optimizer was given, or too few of its steps were seen.
        """
        if not self.held or len(self.updates) < NUM_UPDATES:
            raise CannotCheck(f"{NUM_UPDATES} steps of an optimizer are needed")
        updates: dict[str, list[Update]] = {}
        for step in self.updates:
            for name, update in step.items():
                if update.schedule > 0:
                    updates.setdefault(name, []).append(update)
        if not updates:
            raise CannotCheck("no matrix had a gradient and a learning rate above 0 so far")
        return updates

    def update_ratios(self) -> dict[str, float]:
        """Return the largest ratio of update to weights of each matrix, for the rate that the schedule leads to.

        Raises:
            CannotCheck: as of `updates_of_matrices`, or all matrices begin at zero.
        """
        return _finite(
            {
                name: max(float(each.change / each.before) / each.schedule for each in updates)
                for name, updates in self.updates_of_matrices().items()
            }
        )

    def growths(self) -> dict[str, float]:
        """Return the factor by which the norm of each matrix has grown.

        Raises:
            CannotCheck: as of `updates_of_matrices`, or all matrices begin at zero.
        """
        updates = self.updates_of_matrices()
        return _finite({name: float(each[-1].after / each[0].before) for name, each in updates.items()})


def _finite(numbers: Mapping[str, float]) -> dict[str, float]:
    known = {name: number for name, number in numbers.items() if math.isfinite(number)}
    if not known:
        raise CannotCheck("all matrices begin at zero")
    return known
