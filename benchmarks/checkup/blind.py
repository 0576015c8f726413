"""Faults of wiring and optimization of the first blind set; with those of `blind_flow` and `blind_data`.

Each has another mechanism than the faults of the same kind in `faults` and `held_out`, and was written without having
read the checks.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.checkpoint import checkpoint

from benchmarks.checkup import attentions, changes
from benchmarks.checkup.blind_data import DATA_FAULTS
from benchmarks.checkup.blind_flow import FLOW_FAULTS
from benchmarks.checkup.edits import optimized, prepared, prepared_late, sgd
from benchmarks.checkup.faults import MIXED, Fault
from benchmarks.checkup.nets import VOCABULARY, WIDTH, Net
from benchmarks.checkup.odd_trainings import fine_tuned, with_adapters
from benchmarks.checkup.scripts import Change, Script, adamw

_FIRST_ATTENTION = (
    r".*(layers|blocks|h|encoder\.layer)\.0\.(attention|self_attn|attn)\..*|.*block\.0\.layer\.0\.SelfAttention\..*"
)
_ATTENDED = ("own causal", "own encoder", "llama", "gpt2", "bert", "vit")


def _late_lora(*targets: str) -> Change:
    return prepared_late(with_adapters(LoraConfig, r=4, target_modules=list(targets)))


def _unlisted_adapters(model: nn.Module) -> None:
    """Freeze all but the head, and add adapters that no module holds."""
    changes.freeze(changes.HEAD, all_but=True)(model)
    for layer in changes.named(model, changes.LAYER):
        adapter = nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, WIDTH))

        def adapted(
            module: nn.Module, inputs: object, output: Tensor | tuple, adapter: nn.Module = adapter
        ) -> Tensor | tuple:
            if isinstance(output, tuple):
                return output[0] + adapter(output[0]), *output[1:]
            return output + adapter(output)

        layer.register_forward_hook(adapted)


def resized(model: nn.Module) -> None:
    """Resize the embeddings; transformers changes those that are tied to the head in place."""
    model.resize_token_embeddings(VOCABULARY + 1, mean_resizing=False)


def _wrapped_again(module: nn.Module) -> None:
    module.weight = nn.Parameter(module.weight.data, requires_grad=False)


def _rounded(states: Tensor) -> Tensor:
    return (states * 16).round() / 16


def checkpointed(model: nn.Module) -> None:
    """Freeze the embeddings, and checkpoint the layers in the way that needs inputs with gradients.

    Models of transformers give their embeddings' outputs gradients for that.
    """
    changes.freeze(changes.EMBEDDINGS)(model)
    if not isinstance(model, Net):
        model.gradient_checkpointing_enable({"use_reentrant": True})
        return
    for block in model.blocks:
        block.forward = lambda *inputs, forward=block.forward: checkpoint(forward, *inputs, use_reentrant=True)


def _evaluated_in_loss(script: Script) -> Script:
    """Compute a metric within the loss, which leaves the model in eval mode."""

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        model.eval()
        with torch.no_grad():
            script.loss(model, batch)
        return script.loss(model, batch)

    return replace(script, loss=loss)


def _noam(step: int) -> float:
    return WIDTH**-0.5 * min((step + 1) ** -0.5, step + 1)


def _fast_head(model: nn.Module) -> list[Optimizer]:
    head = {id(each) for module in changes.named(model, changes.HEAD) for each in module.parameters()}
    groups = [
        {"params": [each for each in model.parameters() if (id(each) in head) == is_head], "lr": rate}
        for is_head, rate in ((True, 3.0), (False, 1e-3))
    ]
    return [AdamW(groups)]


@torch.no_grad()
def _to_grid(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    for parameter in model.parameters():
        parameter.mul_(256).round_().div_(256)


@torch.no_grad()
def _decay(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    for parameter in model.parameters():
        parameter.mul_(0.9)


def _restored(script: Script) -> Script:
    """Write back the weights of the start after each step."""
    first: dict[str, Tensor] = {}

    def keep(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        if step == 0:
            first.update({name: each.detach().clone() for name, each in model.named_parameters()})

    @torch.no_grad()
    def restore(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        for name, parameter in model.named_parameters():
            parameter.copy_(first[name])

    return replace(script, before_step=keep, after_step=restore)


def _clear_at_times(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    if step % 4 == 0:
        for optimizer in optimizers:
            optimizer.zero_grad()


BLIND = (
    # Wiring
    Fault(
        "LoRA added after the optimizer was made",
        ("not_in_optimizer",),
        {
            ("llama", "vit", "qwen2"): _late_lora("q_proj", "v_proj"),
            ("own causal", "t5"): _late_lora("q", "v"),
            ("gpt2",): _late_lora("c_attn"),
            ("bert classifier",): _late_lora("query", "value"),
        },
    ),
    Fault(
        "adapters kept in a Python list",
        ("not_in_optimizer",),
        {
            ("own causal", "own encoder", "llama", "bert classifier", "vit"): fine_tuned(prepared(_unlisted_adapters)),
        },
    ),
    Fault(
        "embeddings resized after the optimizer was made",
        ("not_in_optimizer",),
        {("llama", "qwen2"): prepared_late(resized)},
    ),
    Fault(
        "attention of the first layer frozen",
        ("frozen_parameters",),
        {(*MIXED, "gpt2", "sentence encoder"): prepared(changes.freeze(_FIRST_ATTENTION))},
    ),
    Fault(
        "keys wrapped again without gradients",
        ("frozen_parameters",),
        {
            ("own causal", "own encoder", "llama", "bert", "t5", "vit", "opt"): prepared(
                changes.on_modules(r".*\.(k|k_proj|key)", _wrapped_again)
            )
        },
    ),
    Fault(
        "attention made hard by argmax",
        ("no_gradient", "broken_gradient_path"),
        {_ATTENDED: prepared(attentions.by_hand(attentions.hard))},
    ),
    Fault(
        "states rounded without a straight-through gradient",
        ("no_gradient", "broken_gradient_path"),
        {(*_ATTENDED, "t5"): prepared(changes.on_outputs(changes.LAYER, _rounded, first_only=True))},
    ),
    Fault(
        "reentrant checkpointing behind frozen embeddings",
        ("no_gradient", "broken_gradient_path"),
        {("own causal", "own encoder"): prepared(checkpointed)},
    ),
    Fault(
        "metric within the loss leaves eval mode",
        ("eval_mode",),
        {("own causal", "gpt2", "bert", "t5", "vit", "sentence encoder"): _evaluated_in_loss},
    ),
    *FLOW_FAULTS,
    *DATA_FAULTS,
    # Optimization
    Fault("optimizer set to maximise", ("loss_rises",), {(*MIXED, "opt"): optimized(adamw(maximize=True))}),
    Fault(
        "schedule of Noam without warm-up",
        ("rate_too_high", "loss_rises"),
        {MIXED: optimized(adamw(1.0), schedule=_noam)},
    ),
    Fault(
        "rate of the head's group in percent",
        ("rate_too_high", "loss_rises"),
        {("own causal", "own encoder", "llama", "bert classifier", "vit"): optimized(_fast_head)},
    ),
    Fault(
        "decay over epochs, stepped at each batch",
        ("rate_too_low",),
        {MIXED: lambda script: replace(script, schedule=lambda step: max(0.0, 1 - step / 3))},
    ),
    Fault("SGD clipped to a thousandth", ("rate_too_low",), {MIXED: optimized(sgd(0.01), clip=1e-3)}),
    Fault(
        "weights rounded to a grid after each step",
        ("lost_updates", "rate_too_low"),
        {MIXED: lambda script: replace(script, after_step=_to_grid)},
    ),
    Fault("weights restored from a copy after each step", ("lost_updates", "rate_too_low"), {MIXED: _restored}),
    Fault(
        "gradients cleared at every fourth step",
        ("gradients_not_cleared",),
        {MIXED: lambda script: replace(script, clear="never", before_step=_clear_at_times)},
    ),
    Fault(
        "decay by hand of a tenth at each step",
        ("weights_shrink",),
        {MIXED: lambda script: replace(script, after_step=_decay)},
    ),
)
