"""Evidence that the checks read: one training step."""

from collections.abc import Mapping, Sequence
from functools import cached_property

from torch import Tensor, nn
from torch.optim import Optimizer

from attnwatch.checkup.flow import Flow
from attnwatch.checkup.forward import CannotCheck, RecordedForward
from attnwatch.checkup.targets import Targets, targets_of
from attnwatch.checkup.tokens import Tokens, tokens_of

ScoredCall = tuple[Tensor, Tensor, int, Tensor]
"""Logits, classes, ignored class and loss of a cross-entropy."""


class StepEvidence:
    """One training step, as far as it has come.

    Attributes:
        model: model that trains.
        optimizers: optimizers that train it, or a part of it.
        global_step: number of the step.
        num_steps: number of steps that the checkup has seen before.
        scored: calls of cross-entropy.
        stale_gradients: for each parameter that was looked at, the norm of the gradient that was there when the first
            gradient after a step of its optimizer came; 0-dimensional tensors.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], global_step: int, num_steps: int):
        self.model = model
        self.optimizers = optimizers
        self.global_step = global_step
        self.num_steps = num_steps
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
        """What moves in the output with which tokens.

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
        """What the predictions of the step were scored against.

        Raises:
            CannotCheck: the loss is another one than the cross-entropy of the tokens or sequences.
        """
        shape = self.forward.num_sequences, self.tokens.length
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
