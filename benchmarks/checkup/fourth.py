"""Faults of a fourth blind set, for which the checks were not read: wiring, optimizers, schedules, and all others."""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from benchmarks.checkup import changes
from benchmarks.checkup.blind_data import logits_of
from benchmarks.checkup.data import BATCH_SIZE, Batch
from benchmarks.checkup.edits import half, loss_with, optimized, prepared, prepared_late, sgd
from benchmarks.checkup.faults import MIXED, Fault
from benchmarks.checkup.fourth_data import DATA
from benchmarks.checkup.fourth_flow import FLOW, replaced
from benchmarks.checkup.nets import TOKENS
from benchmarks.checkup.odd_trainings import fine_tuned
from benchmarks.checkup.optimizers import moved_by
from benchmarks.checkup.own_models import Experts
from benchmarks.checkup.scripts import MakeOptimizers, Script, adamw

TIED = ("gpt2", "bert", "t5", "bart", "opt")
LOSS_SCALE = 65536.0
_MOST = ("own causal", "own encoder", "llama", "gpt2", "bert", "vit")
_WITH_DROPOUT = ("own causal", "own encoder", "torch encoder", "gpt2", "bert")
_SMALL = ("own causal", "torch encoder", "llama", "bert classifier", "vit")
_HEAD = r"head|lm_head|classifier"


class _HardExperts(Experts):
    """Feed-forward nets, of which each token is given to the best one, with no regard to how good it is."""

    def forward(self, states: Tensor) -> Tensor:
        chosen = self.router(states).argmax(-1)
        result = torch.zeros_like(states)
        for index, expert in enumerate(self.experts):
            result[chosen == index] = expert(states[chosen == index])
        return result


def _by_short_names(model: nn.Module) -> list[Optimizer]:
    """Keep parameters by names without numbers, so that each layer takes the place of the one before."""
    kept = {re.sub(r"\.\d+(?=\.)", "", name): each for name, each in model.named_parameters()}
    return [AdamW(kept.values(), 1e-3)]


def _of_one_or_two_axes(model: nn.Module) -> list[Optimizer]:
    """Let matrices decay and vectors not, and forget what has more axes."""
    matrices, vectors = ([each for each in model.parameters() if each.ndim == axes] for axes in (2, 1))
    return [AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], 1e-3)]


def untie(model: nn.Module) -> None:
    """Give the head weights of its own."""
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())


def _head_of_cast(model: nn.Module) -> None:
    """Make float64 numbers a parameter of the head and cast it, which leaves a tensor that is no parameter."""
    (head,) = changes.named(model, _HEAD)
    weight = nn.Parameter(head.weight.detach().double())
    del head.weight
    head.weight = weight.float()


def _frozen_for_a_look(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    """Freeze the layers at one step, to look at the gradients of inputs, and leave them frozen."""
    if step == 2:
        changes.freeze(changes.LAYER + r"\..*")(model)


def _all_but_six_tensors(model: nn.Module) -> None:
    """Freeze all but the last six tensors, where six layers were meant."""
    for parameter in list(model.parameters())[:-6]:
        parameter.requires_grad_(False)


def _flag_of_its_own(model: nn.Module) -> None:
    """Let dropout act by a flag that nobody ever sets."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.forward = lambda states, rate=module.p: F.dropout(states, rate, training=False)


def _agreeing_with_shallow_copy(script: Script) -> Script:
    """Agree with a teacher in eval mode, whose layers are those of the model itself."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        teacher = copy.copy(model)
        teacher.eval()
        with torch.no_grad():
            targets = logits_of(teacher, batch)
        return script.loss(model, batch) + 0.1 * F.mse_loss(logits_of(model, batch), targets)

    return replace(script, loss=loss)


def with_pre_hook(make: MakeOptimizers, hook: Callable[[list[nn.Parameter]], object]) -> MakeOptimizers:
    """Return optimizers that give the parameters with gradients to a function before a step."""

    def before(optimizer: Optimizer, args: object, options: object) -> None:
        hook([each for group in optimizer.param_groups for each in group["params"] if each.grad is not None])

    def optimizers(model: nn.Module) -> Sequence[Optimizer]:
        made = make(model)
        for optimizer in made:
            optimizer.register_step_pre_hook(before)
        return made

    return optimizers


def unscale(parameters: list[nn.Parameter]) -> None:
    """Divide gradients by the scale of the loss."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.div_(LOSS_SCALE)


def scaled_loss(script: Script) -> Script:
    """Multiply the loss by a large number."""
    return loss_with(script, lambda model, loss: LOSS_SCALE * loss)


def sharpness_aware(script: Script, size: float, *, comes_back: bool) -> Script:
    """Take the gradient where the loss is higher nearby, and go back there before the step, or forget to."""
    moves: list[tuple[nn.Parameter, Tensor]] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        parameters = [each for each in model.parameters() if each.requires_grad]
        gradients = torch.autograd.grad(script.loss(model, batch), parameters, allow_unused=True)
        found = [(each, gradient) for each, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
        norm = torch.stack([gradient.norm() for _, gradient in found]).norm()
        moves[:] = [(each, size * gradient / norm) for each, gradient in found]
        with torch.no_grad():
            for parameter, move in moves:
                parameter.add_(move)
        return script.loss(model, batch)

    @torch.no_grad()
    def back(parameters: list[nn.Parameter]) -> None:
        for parameter, move in moves if comes_back else ():
            parameter.sub_(move)

    return replace(script, loss=loss, optimizers=with_pre_hook(script.optimizers, back))


def _through_new_masters(parameter: nn.Parameter, rate: float, state: dict[str, object]) -> None:
    """Step by signs in a float32 copy, which is made anew from the bfloat16 weights at each step."""
    if parameter.grad is not None:
        master = parameter.float() - rate * parameter.grad.float().sign()
        parameter.copy_(master)


def _with_gradients_of_validation(script: Script) -> Script:
    """Look at the gradients of other batches after each step, and leave them."""
    sources: list[Iterator[Batch]] = []

    def look(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        if step == 0:
            sources[:] = [script.batches(1000)]
        script.loss(model, next(sources[0])).backward()

    return replace(script, after_step=look)


def decayed_by_hooks(model: nn.Module, factor: float) -> None:
    """Add a share of each weight to its gradient by a hook."""
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient, weight=parameter: gradient + factor * weight.detach())


def _decayed_ever_more(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    decayed_by_hooks(model, 0.2)


FOURTH = (
    # Wiring
    Fault(
        "parameters kept by names without the number of the layer",
        ("not_in_optimizer",),
        {("own causal", "torch encoder", "llama", "gpt2", "bert", "vit"): optimized(_by_short_names)},
    ),
    Fault("head untied after the optimizer was made", ("not_in_optimizer",), {TIED: prepared_late(untie)}),
    Fault(
        "tensors of three axes or more in no group",
        ("not_in_optimizer",),
        {("torch encoder", "vit"): optimized(_of_one_or_two_axes)},
    ),
    Fault(
        "head's weight cast after it was made a parameter",
        ("not_in_optimizer",),
        {("own causal", "own encoder", "torch encoder", "llama", "bert classifier", "vit"): prepared(_head_of_cast)},
    ),
    Fault(
        "layers frozen for a look at gradients, never thawed",
        ("frozen_parameters",),
        {MIXED: lambda script: replace(script, before_step=_frozen_for_a_look)},
    ),
    Fault(
        "tensors counted as layers to freeze",
        ("frozen_parameters",),
        {("own causal", "own encoder", "llama", "qwen2", "vit"): fine_tuned(prepared(_all_but_six_tensors))},
    ),
    Fault(
        "router whose choice counts, not its shares",
        ("no_gradient",),
        {
            ("own causal", "own encoder", "llama", "gpt2", "qwen2", "vit"): prepared(
                replaced(r".*\.mlp", lambda: _HardExperts(4))
            )
        },
    ),
    Fault(
        "loss made anew as a leaf",
        ("no_gradient", "broken_gradient_path"),
        {_MOST: lambda script: loss_with(script, lambda model, loss: loss.detach().clone().requires_grad_())},
    ),
    Fault("dropout by a flag of its own", ("eval_mode",), {_WITH_DROPOUT: prepared(_flag_of_its_own)}),
    Fault(
        "shallow copy as a teacher in eval mode",
        ("eval_mode",),
        {(*_WITH_DROPOUT, "t5"): _agreeing_with_shallow_copy},
    ),
    # Optimization
    Fault(
        "ascent of SAM that is never taken back",
        ("loss_rises",),
        {_MOST: lambda script: sharpness_aware(script, 0.5, comes_back=False)},
    ),
    Fault(
        "rate multiplied by the tokens of a batch",
        ("rate_too_high", "loss_rises"),
        {MIXED: optimized(adamw(1e-3 * BATCH_SIZE * TOKENS))},
    ),
    Fault(
        "rate of zero that a schedule multiplies",
        ("rate_too_low",),
        {MIXED: optimized(adamw(0.0), schedule=lambda step: min(1.0, (step + 1) / 4))},
    ),
    Fault(
        "gradients clipped before they are unscaled",
        ("rate_too_low",),
        {MIXED: lambda script: replace(scaled_loss(script), clip=1.0, optimizers=with_pre_hook(sgd(0.1), unscale))},
    ),
    Fault(
        "float32 masters made anew at each step",
        ("lost_updates",),
        {
            MIXED: lambda script: replace(
                half(torch.bfloat16, 1e-3)(script), optimizers=moved_by(1e-5, _through_new_masters)
            )
        },
    ),
    Fault("gradients of a validation batch left", ("gradients_not_cleared",), {_MOST: _with_gradients_of_validation}),
    Fault(
        "hooks of the decay added again at each step",
        ("weights_shrink",),
        {_SMALL: optimized(sgd(0.1), before_step=_decayed_ever_more)},
    ),
    *FLOW,
    *DATA,
)
