"""Evidence from one training step, which the checks read."""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from attnwatch.checkup.decoder import decoder_tokens, shifts
from attnwatch.checkup.flow import Flow
from attnwatch.checkup.forward import CannotCheck, RecordedForward, is_encoder_decoder, known
from attnwatch.checkup.graph import Graph
from attnwatch.checkup.losses import LossCall
from attnwatch.checkup.read_tokens import ReadTokens
from attnwatch.checkup.repeats import Repeats
from attnwatch.checkup.series import Series, series_of
from attnwatch.checkup.targets import ScoredCall, Targets
from attnwatch.checkup.tokens import Tokens, tokens_of
from attnwatch.checkup.update_history import UpdateHistory
from attnwatch.checkup.updates import Update

# A model whose loss is above this share of the loss of a uniform guess has learned nothing.
_LOSS_OF_A_GUESS = 0.9
_LOGITS = "logits"
# Some loops count from 1. A training that is resumed begins later.
_LAST_FIRST_STEP = 1


NO_GRADIENTS = (
    "no parameter of the model has a gradient when the step ends: backward was not called inside the step, or the "
    "gradients were already cleared. Call backward inside the step and zero_grad() after it"
)
"""Reason why gradients can't be checked."""
# Layers that tell a network from an embedding, which has at most one of them.
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)


class StepEvidence:
    """Evidence from one training step so far.

    Attributes:
        model: model being trained.
        optimizers: optimizers that train it, or a part of it.
        global_step: number of the step.
        num_steps: number of earlier steps that the checkup has seen.
        steps_per_epoch: number of optimizer steps per epoch; None if unknown.
        total_steps: number of optimizer steps in the run; None if unknown.
        updates: updates by the optimizer steps so far, an `UpdateHistory`.
        scored: calls of cross-entropy.
        losses: calls of loss functions of any kind.
        stale_gradients: norms of the old gradients that the last optimizer step reused, by parameter name; 0 if they
            were cleared.
        recorded: first forward pass of the step that is trained on; None if there was none.
        received: names of the outputs of that forward pass that have received a gradient.
        read: tokens whose outputs the loss reads, by the name of the output.
        memo: results of checks that others use too, by name.
        unseen: reason why no forward pass is observed; empty if it is.
        cannot_repeat: reason why an earlier repeat of the forward pass failed; empty if none failed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        global_step: int,
        *,
        num_steps: int,
        steps_per_epoch: int | None,
        total_steps: int | None,
        updates: Sequence[Mapping[str, Update]],
    ):
        self.model = model
        self.optimizers = optimizers
        self.global_step = global_step
        self.num_steps = num_steps
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = total_steps
        self._steps = updates
        self.scored: list[ScoredCall] = []
        self.losses: list[LossCall] = []
        self.stale_gradients: dict[str, Tensor] = {}
        self.recorded: RecordedForward | None = None
        self.received: Set[str] = set()
        self.read: Mapping[str, ReadTokens] = {}
        self.memo: dict[str, Any] = {}
        self.unseen = self.cannot_repeat = ""
        self._known_forward: RecordedForward | None = None
        self._known_flow: Flow | None = None

    @property
    def forward(self) -> RecordedForward:
        """First forward pass of the step that is trained on.

        Raises:
            CannotCheck: there was none, or its inputs are empty or nested.
        """
        if self.recorded is None:
            raise CannotCheck(self.unseen or "no forward with gradients was seen")
        if self.recorded.why_not:
            raise CannotCheck(self.recorded.why_not)
        if self._known_forward is None:
            self._known_forward = self._arranged(self.recorded)
        return self._known_forward

    def _arranged(self, recorded: RecordedForward) -> RecordedForward:
        """Return the forward pass, marked as sequence-first if the targets show that it is."""
        ids = [value for value in recorded.arguments.values() if isinstance(value, Tensor) and value.ndim == 2]
        is_shown = bool(ids) and any(call.is_next_along_first_axis(ids[0]) for call in self.scored)
        return replace(recorded, has_tokens_first=recorded.has_tokens_first or is_shown)

    @property
    def repeats(self) -> Repeats:
        """Repeats of the forward pass.

        Raises:
            CannotCheck: the forward can't be repeated.
        """
        if self.cannot_repeat:
            raise CannotCheck(self.cannot_repeat)
        return self._repeats

    @cached_property
    def _repeats(self) -> Repeats:
        return Repeats(self.forward)

    @property
    def flow(self) -> Flow:
        """Dependence of the outputs on the tokens.

        Raises:
            CannotCheck: the forward can't be repeated, or has no tokens.
        """
        repeats = self.repeats
        if self._known_flow is None:
            flow = Flow(self.forward, repeats, self.tokens, is_of_outputs=self._decoder_tokens is None)
            if self.forward.is_followed and not flow.sees_others:
                part = self.forward.name or type(self.forward.module).__name__
                raise CannotCheck(
                    f"the step calls parts of the model in turn, and no token sees another in the first ({part}): "
                    "call the parts in the forward of one module"
                )
            self._known_flow = flow
        return self._known_flow

    @cached_property
    def flow_of_predictions(self) -> Flow:
        """Dependence of the outputs on the `predicted_tokens`.

        Raises:
            CannotCheck: the forward can't be repeated, or has no tokens.
        """
        if self._decoder_tokens is None:
            return self.flow
        return Flow(self.forward, self.repeats, self._decoder_tokens)

    @cached_property
    def series(self) -> Series | None:
        """Series of numbers whose next values, or own values, are the targets of the loss; None if there is none."""
        return series_of(self.forward, self.losses)

    @cached_property
    def flow_of_series(self) -> Flow:
        """Dependence of the outputs on the `series`.

        Raises:
            CannotCheck: there is no series, or the forward can't be repeated.
        """
        if self.series is None:
            raise CannotCheck("the targets are not among the inputs")
        return Flow(self.forward, self.repeats, self.series.tokens)

    @cached_property
    def tokens(self) -> Tokens:
        """Tokens of the whole batch.

        Raises:
            CannotCheck: the model received no tokens.
        """
        return tokens_of(self.forward)

    @property
    def predicted_tokens(self) -> Tokens:
        """Tokens whose next ones the model predicts: those of its decoder, if it receives ids for an encoder too.

        Raises:
            CannotCheck: the model received no tokens.
        """
        return self._decoder_tokens or self.tokens

    @cached_property
    def _decoder_tokens(self) -> Tokens | None:
        encoder = known(lambda: self.tokens, None)
        return None if encoder is None else decoder_tokens(self.forward, encoder, self.scored, self._read)

    @cached_property
    def targets(self) -> Targets:
        """Targets that the predictions of the step were scored against.

        Raises:
            CannotCheck: the loss is not a cross-entropy of the tokens or sequences.
        """
        if self.received and _LOGITS in self.forward.shapes and _LOGITS not in self.received:
            raise CannotCheck("the loss is computed from another forward pass")
        if not self._all_targets:
            raise CannotCheck(
                "no loss over the model's tokens or sequences was recognised: only `cross_entropy` and `nll_loss` of "
                "torch.nn.functional, with class indices as targets, can be read"
            )
        return self._all_targets[0]

    @property
    def predicts_several_tokens(self) -> bool:
        """True if tokens are scored against several later tokens, or may be, by several calls of cross-entropy."""
        sizes = {call.classes.numel() for call in self.scored}
        has_other_calls = len(sizes) > 1 and len(self._all_targets) < len(self.scored)
        return has_other_calls or len(shifts(self.forward, self.predicted_tokens.values, self.scored, self._read)) > 1

    @property
    def _read(self) -> list[Tensor]:
        return [each.has_gradient for each in self.read.values()]

    @cached_property
    def _all_targets(self) -> list[Targets]:
        size, first = (self.forward.num_sequences, self._num_outputs), self.forward.has_tokens_first
        found = (call.targets(*size, has_tokens_first=first, read=self._read) for call in self.scored)
        return [each for each in found if each is not None]

    @property
    def _num_outputs(self) -> int:
        """Number of tokens per sequence that may have targets: the decoder's, if there is one."""
        if is_encoder_decoder(self.forward.module):
            given = (self.forward.arguments.get(name) for name in ("decoder_input_ids", "labels"))
            return next((each.shape[1] for each in given if isinstance(each, Tensor) and each.ndim == 2), 1)
        return known(lambda: self.predicted_tokens.length, 1)  # otherwise one target per sequence

    @property
    def is_untrained(self) -> bool:
        """True if this is the first step and its loss is close to or above that of a uniform guess."""
        is_first = not self.num_steps and self.global_step <= _LAST_FIRST_STEP
        return is_first and known(
            lambda: float(self.targets.loss) > _LOSS_OF_A_GUESS * math.log(self.targets.num_classes), False
        )

    @cached_property
    def trainable(self) -> Mapping[str, nn.Parameter]:
        """Parameters that require a gradient, by name."""
        return {name: each for name, each in self.model.named_parameters() if each.requires_grad}

    @property
    def has_gradients(self) -> bool:
        """True if some parameter has a gradient when the step ends, so that those without one can be told."""
        return any(each.grad is not None for each in self.trainable.values())

    @property
    def graph(self) -> Graph:
        """Provenance of the outputs of the forward pass; empty if there was none."""
        return Graph() if self.recorded is None else self.recorded.graph

    @property
    def updates(self) -> UpdateHistory:
        """Updates by the optimizer steps so far.

        Raises:
            CannotCheck: no optimizer was given.
        """
        return UpdateHistory(self._steps, has_parameters=bool(self.held))

    @cached_property
    def teachers(self) -> tuple[str, ...]:
        """Names of submodules, not embeddings, that process the model's inputs without gradients, as teachers do."""
        modules = dict(self.model.named_modules())
        parts = {
            name: [each for each in modules[name].modules() if isinstance(each, _LAYERS)] for name in self.graph.apart
        }
        return tuple(name for name, layers in parts.items() if name and len(layers) > 1)

    def is_of_teacher(self, name: str) -> bool:
        """Return whether a module or parameter belongs to one of the `teachers`."""
        return any(f"{name}.".startswith(f"{teacher}.") for teacher in self.teachers)

    @cached_property
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
