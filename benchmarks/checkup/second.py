"""Faults of the second blind set: those of wiring, and all others."""

import copy
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Muon, Optimizer

from benchmarks.checkup import changes
from benchmarks.checkup.blind_data import logits_of
from benchmarks.checkup.data import Batch
from benchmarks.checkup.edits import optimized, prepared, prepared_late
from benchmarks.checkup.faults import CLASSIFIERS, MIXED, Fault
from benchmarks.checkup.odd_trainings import fine_tuned
from benchmarks.checkup.second_data import DATA
from benchmarks.checkup.second_flow import ATTENDED, FLOW, deep
from benchmarks.checkup.second_steps import STEPS

_INNER = r".*(mlp\.[02]|up_proj|down_proj|linear[12]|intermediate\.dense|DenseReluDense\.w[io]|fc[12])"
_FIRST_INNER = r".*(mlp\.0|up_proj|linear1|intermediate\.dense|DenseReluDense\.wi|fc1)"
_WITH_DROPOUT = ("own causal", "own encoder", "torch encoder", "gpt2", "bert", "t5")


def _spent(model: nn.Module) -> list[Optimizer]:
    """Make two groups of a generator, which the first one has used up."""
    named = model.named_parameters()
    plain = [each for name, each in named if each.ndim == 1 or name.endswith("bias")]
    decayed = [each for name, each in named if each.ndim > 1]
    return [AdamW([{"params": plain, "weight_decay": 0.0}, {"params": decayed}], 1e-3)]


def _matrices_only(model: nn.Module) -> list[Optimizer]:
    """Give Muon the inner matrices, and forget the optimizer of all else."""
    layers = [each for layer in changes.named(model, changes.LAYER) for each in layer.parameters()]
    return [Muon([each for each in layers if each.ndim == 2], 0.02)]


def _layer_of_teacher(model: nn.Module) -> None:
    """Take the upper layer from a frozen copy."""
    teacher = copy.deepcopy(model).requires_grad_(False)
    name = [name for name, module in model.named_modules() if module in list(changes.named(model, changes.LAYER))][-1]
    layers, _, index = name.rpartition(".")
    model.get_submodule(layers)[int(index)] = teacher.get_submodule(name)


def _given_embeddings(model: nn.Module) -> None:
    """Give what all layers but the last return to none."""
    for layer in list(changes.named(model, changes.LAYER))[:-1]:
        layer.register_forward_hook(
            lambda module, inputs, output: (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]
        )


def _by_data(module: nn.Module) -> None:
    module.forward = lambda states: F.linear(
        states, module.weight.data, None if module.bias is None else module.bias.data
    )


def _of_one_output(model: nn.Module, batch: Batch) -> Tensor:
    """Take the softmax over a single output, which is always 1."""
    probabilities = logits_of(model, batch)[:, :1].softmax(-1)
    return F.binary_cross_entropy(probabilities.squeeze(-1), (batch["labels"] % 2).float())


def _dropout_in_eval(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()


def _dropout_thrown_away(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda each, inputs, output: inputs[0])


SECOND = (
    # Wiring
    Fault(
        "groups of a generator that the first one used up", ("not_in_optimizer",), {(*MIXED, "gpt2"): optimized(_spent)}
    ),
    Fault(
        "Muon for matrices, no optimizer for all else",
        ("not_in_optimizer",),
        {("own causal", "own encoder", "llama", "bert", "t5", "vit"): optimized(_matrices_only)},
    ),
    Fault(
        "weight norm added after the optimizer was made",
        ("not_in_optimizer",),
        {
            ("own causal", "own encoder", "torch encoder", "llama", "bert", "t5", "vit"): prepared_late(
                changes.on_modules(_INNER, nn.utils.parametrizations.weight_norm)
            )
        },
    ),
    Fault(
        "layers frozen by the start of their numbers",
        ("frozen_parameters",),
        {ATTENDED: deep(prepared(changes.freeze(r"(.*\.)?(layers|blocks|h|layer)\.[01].*")))},
    ),
    Fault(
        "upper layer shared with a frozen teacher",
        ("frozen_parameters",),
        {(*ATTENDED, "bert classifier"): fine_tuned(prepared(_layer_of_teacher))},
    ),
    Fault(
        "each layer is given the embeddings",
        ("no_gradient",),
        {(*ATTENDED, "torch encoder"): prepared(_given_embeddings)},
    ),
    Fault(
        "weights used by their data",
        ("no_gradient",),
        {
            ("own causal", "own encoder", "torch encoder", "llama", "bert", "t5", "vit"): prepared(
                changes.on_modules(_FIRST_INNER, _by_data)
            )
        },
    ),
    Fault(
        "softmax over a single output",
        ("no_gradient",),
        {(*CLASSIFIERS, "roberta classifier"): lambda script: replace(script, loss=_of_one_output)},
    ),
    Fault(
        "dropout alone in eval mode",
        ("eval_mode",),
        {(*_WITH_DROPOUT, "bert classifier"): lambda script: replace(script, before_step=_dropout_in_eval)},
    ),
    Fault(
        "what dropout returns is thrown away",
        ("eval_mode",),
        {("own causal", "own encoder", "gpt2", "bert", "t5"): prepared(_dropout_thrown_away)},
    ),
    Fault(
        "training mode at every fourth step only",
        ("eval_mode",),
        {_WITH_DROPOUT: lambda script: replace(script, mode=lambda step: step % 4 == 0)},
    ),
    *FLOW,
    *DATA,
    *STEPS,
)
