"""Checkup of a training run, which searches its first steps for faults by facts and interventions."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn
from torch.optim import Optimizer

from attnwatch.capture.compilation import compiles_anything, is_compiled
from attnwatch.checkup.checks.base import Check, Fault
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.forward import CannotCheck
from attnwatch.checkup.forward_recorder import ForwardRecorder
from attnwatch.checkup.guard import Guard
from attnwatch.checkup.later_points import later_points
from attnwatch.checkup.loss_functions import LossFunctions
from attnwatch.checkup.losses import loss_calls
from attnwatch.checkup.repeats import CannotRepeat
from attnwatch.checkup.stale import StaleGradients
from attnwatch.checkup.targets import scored_calls
from attnwatch.checkup.updates import Updates
from attnwatch.diagnosis import Finding, FindingKind
from attnwatch.utils.arguments import as_optimizers, require_int, require_module
from attnwatch.utils.messages import warn
from attnwatch.utils.notebooks import as_html
from attnwatch.utils.processes import is_sharded

# Steps in which each check may look for an answer. Checks that watch look again whenever the step number has doubled,
# and in a few consecutive steps at the point where the model should have begun to learn.
_FIRST_STEPS, _LATER_STEPS = 10, 5
_SHARDED = "its parameters are sharded: check the model once in one process, with attnwatch.check_training"
_COMPILED = (
    "the forward of compiled models is not observed: check the model once before torch.compile, with "
    "attnwatch.check_training"
)
_ORDER = ("FOUND", "note", "ok", "not checked")


class TrainingCheckup:
    """Check the first steps of a training run for faults, by facts or by changing one thing in a real batch.

    ```python
    with attnwatch.TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step, batch in enumerate(batches):
            with checkup.step(step):
                loss = model(**batch).loss
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    print(checkup)
    ```

    The checkup reads the inputs of the model, the targets of its loss, the gradients at its outputs and the graph of
    autograd behind them as they pass. Some checks repeat the forward with up to 4 sequences of the batch, in eval mode
    and without gradients, after changing one thing in them. Random states, buffers, modes and gradients are restored,
    so the training run is not affected.

    Each check looks for an answer in up to 10 steps. Some checks continue: they look again whenever the number of steps
    has doubled, and in five steps after a tenth of the run (and at least 50 steps). All other steps cost nothing.

    Args:
        model: model being trained.
        optimizers: one optimizer or several; without any, the checks that concern optimizers are skipped.
        steps_per_epoch: number of optimizer steps per epoch; None if unknown.
        total_steps: number of optimizer steps in the run; None if unknown.

    Attributes:
        findings: faults, most severe first, notes last.
        skipped: reason why a check could not be done, by check name.

    Raises:
        ConfigurationError: an argument is invalid.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(torch.nn.Linear(4, 2).parameters())  # of another model
        >>> with TrainingCheckup(model, optimizers=optimizer) as checkup, checkup.step(0):
        ...     model(torch.randn(3, 4)).sum().backward()
        >>> [finding.kind.value for finding in checkup.findings]
        ['not_in_optimizer']
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizers: Optimizer | Sequence[Optimizer] = (),
        steps_per_epoch: int | None = None,
        total_steps: int | None = None,
    ):
        require_module("model", model)
        require_int("steps_per_epoch", steps_per_epoch, minimum=1, optional=True)
        require_int("total_steps", total_steps, minimum=1, optional=True)
        self._model = model
        self._steps_per_epoch, self._total_steps = steps_per_epoch, total_steps
        self._optimizers = as_optimizers("optimizers", optimizers)
        self._checks = {name: kind() for name, kind in Check.registry.items()}
        self._answers: dict[str, Finding | None] = {}
        self.skipped: dict[str, str] = {}
        self._failed: set[str] = set()
        self._steps_seen: set[int] = set()
        self._next_look = 0
        self._is_over = any(map(is_sharded, model.parameters()))
        if self._is_over:
            self.skipped = dict.fromkeys(self._checks, _SHARDED)
        # The trainer may hold the compiled model.
        self._unseen = _COMPILED if is_compiled(model) or compiles_anything() else ""
        watched = () if self._is_over else self._optimizers
        self._guard, self._cannot_repeat = Guard(), ""
        self._losses = LossFunctions(model, self._guard)
        self._stale = StaleGradients(model, () if self._unseen else watched, self._guard)
        self._recorder = ForwardRecorder(model, self._stale.begin_forward, self._stale.begin_backward, self._guard)
        self._updates = Updates(model, watched, self._guard)

    def __enter__(self) -> "TrainingCheckup":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextlib.contextmanager
    def step(self, global_step: int) -> Iterator[None]:
        """Observe the forward and backward of one training step. Call the optimizer and zero_grad() after the context.

        Args:
            global_step: number of the optimizer step.

        Raises:
            ConfigurationError: `global_step` is not an integer.
        """
        require_int("global_step", global_step, minimum=0)
        if self._is_over or not self._looks_at(global_step):
            yield
            return
        if not self._unseen and (is_compiled(self._model) or compiles_anything()):
            self._unseen = _COMPILED
        evidence = StepEvidence(
            self._model,
            self._optimizers,
            global_step,
            num_steps=len(self._steps_seen - {global_step}),
            steps_per_epoch=self._steps_per_epoch,
            total_steps=self._total_steps,
            updates=self._updates.steps,
        )
        with contextlib.nullcontext() if self._unseen else self._observed(evidence):
            yield
        if self._is_over:  # closed in the meantime
            return
        if self._guard.failure:
            self._recorder.release()
            self.skipped |= dict.fromkeys(self._open_checks, f"the checkup failed with {self._guard.failure}")
            self.close()
            return
        evidence.unseen, evidence.cannot_repeat = self._unseen, self._cannot_repeat
        evidence.recorded, evidence.read = self._recorder.forward, self._recorder.read
        evidence.received = self._recorder.received
        self._recorder.release()
        evidence.stale_gradients = self._stale.take()
        self._steps_seen.add(global_step)
        self._look(evidence)
        if not self._open_checks:
            self.close()

    @contextlib.contextmanager
    def _observed(self, evidence: StepEvidence) -> Iterator[None]:
        """Observe the forward pass and the losses."""
        self._recorder.open()
        try:
            with contextlib.ExitStack() as stack:
                if not compiles_anything():  # compiled code would be recompiled for each replacement of a loss
                    stack.enter_context(scored_calls(self._losses, evidence.scored.append))
                    stack.enter_context(loss_calls(self._losses, evidence.losses.append))
                yield
        finally:
            self._recorder.close()

    def _looks_at(self, step: int) -> bool:
        """Return whether to look at a step: at all of the first steps, then at a few."""
        if step in self._steps_seen or len(self._steps_seen) < _FIRST_STEPS:
            return True
        if not self._next_look:
            self._stale.close()
            self._updates.close()
            self._next_look = 2 * step
        if step >= self._next_look:
            self._next_look = 2 * step
            return True
        points = () if self._total_steps is None else later_points(self._total_steps)
        return any(0 <= step - point < _LATER_STEPS for point in points)

    @property
    def findings(self) -> list[Finding]:
        """Faults, most severe first, notes last."""
        found = [finding for finding in self._answers.values() if finding is not None]
        return sorted(found, key=lambda finding: (finding.is_note, -finding.severity))

    @property
    def answered(self) -> frozenset[str]:
        """Names of the checks that have an answer: a fault, or none."""
        return frozenset(self._answers)

    @property
    def ruled_out(self) -> frozenset[str]:
        """Names of the faults that the checkup rules out, for `attnwatch.diagnose`."""
        nothing_found = {name for name, finding in self._answers.items() if finding is None}
        return frozenset(name for name in nothing_found if self._checks[name].decides)

    @property
    def results(self) -> dict[str, str]:
        """Result of each check by name: faults and notes first, then "ok", then skipped checks with the reason."""
        rows = sorted(map(self._row, self._checks), key=lambda row: _ORDER.index(row[1].partition(":")[0]))
        return dict(rows)

    def close(self) -> None:
        """End the checkup and remove its hooks from the model and the optimizers. Its findings remain."""
        self._is_over = True
        self._recorder.close()
        self._stale.close()
        self._updates.close()

    def _repr_html_(self) -> str:
        return as_html(str(self))

    def __str__(self) -> str:
        """Return a table of the checks, in the order of `results`."""
        results = self.results
        width = max(map(len, results))
        return "\n".join(f"{name:{width}}  {result}" for name, result in results.items())

    @property
    def _open_checks(self) -> list[str]:
        """Names of the checks without an answer, of watching ones without a fault, and of those that look again."""
        are_first_steps = len(self._steps_seen) <= _FIRST_STEPS and not self._next_look
        return [
            name
            for name, check in self._checks.items()
            if name not in self._failed
            and (self._answers.get(name) is None or check.looks_again)
            and (check.watches or (are_first_steps and name not in self._answers))
        ]

    def _look(self, evidence: StepEvidence) -> None:
        for name in self._open_checks:
            check = self._checks[name]
            try:
                fault = check.look(evidence)
                finding = None if fault is None else _finding(check, fault, evidence.global_step)
            except CannotCheck as error:
                if isinstance(error, CannotRepeat):
                    self._cannot_repeat = evidence.cannot_repeat = str(error)
                if name not in self._answers:
                    self.skipped[name] = str(error)
            except Exception as error:  # a failing check must not end the training run
                self._failed.add(name)
                reason = f"failed with {type(error).__name__}: {error}"
                self.skipped[name] = f"the check {reason}"
                warn(f"{Check.registry.describe(type(check))} {reason}. The training run is no longer checked for it.")
            else:
                known = self._answers.get(name)
                if finding is not None and known is not None:
                    finding = replace(finding, step=known.step)
                self._answers[name] = finding
                self.skipped.pop(name, None)

    def _row(self, name: str) -> tuple[str, str]:
        if name not in self._answers:
            return name, f"not checked: {self.skipped.get(name, 'no step was seen')}"
        finding = self._answers[name]
        if finding is None:
            return name, "ok"
        return name, f"{'note' if finding.is_note else 'FOUND'}: {finding.message}"


def _finding(check: Check, fault: Fault, step: int) -> Finding:
    is_note = fault.is_note or check.status is None
    remedy = fault.remedy or check.remedy
    message = f"{fault.what}. {remedy}"
    numbers = {name: float(number) for name, number in fault.numbers.items()}
    severity = 0.0 if is_note else check.severity
    kind = FindingKind(check.name)
    return Finding(kind, tuple(fault.sites), step, severity, message, numbers, is_note, advice=remedy)
