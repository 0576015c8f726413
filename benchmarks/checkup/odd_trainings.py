"""Oddities of sound trainings of usual models."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Muon, Optimizer

from benchmarks.checkup import changes
from benchmarks.checkup.architectures import EVERY_ARCHITECTURE, pretrained
from benchmarks.checkup.data import Batch, Batches
from benchmarks.checkup.edits import optimized, prepared
from benchmarks.checkup.scripts import Change, Prepare, Script, changed

_LATE = 6


def fine_tuned(change: Change) -> Change:
    """Return the change of a script that starts with a model that has learned something."""
    return lambda script: change(pretrained(name_of(script)))


def name_of(script: Script) -> str:
    """Return the name of the architecture of a plain script."""
    return next(name for name, plain in EVERY_ARCHITECTURE.items() if plain is script)


def with_adapters(config: Callable[..., object], **options: object) -> Prepare:
    """Return the change that adds adapters of peft to a model."""
    return lambda model: get_peft_model(model, config(**options))


def with_lora(*targets: str, **options: object) -> Change:
    """Return the change of scripts that trains LoRA on a model that has learned something."""
    return fine_tuned(prepared(with_adapters(LoraConfig, r=4, target_modules=list(targets), **options)))


def keep_in_eval(pattern: str) -> Callable[[Script], Script]:
    """Return the change of scripts that keeps a part of the model in eval mode."""

    def keep(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        for module in changes.named(model, pattern):
            module.eval()

    return lambda script: replace(script, before_step=keep)


def _epochs(count: int) -> Callable[[Batches], Batches]:
    """Return batches of a data set so small that it is seen many times, in a new order each time."""

    def of(batches: Batches) -> Batches:
        def shuffled(seed: int) -> Iterator[Batch]:
            random = torch.Generator().manual_seed(seed)
            parts = list(itertools.islice(batches(seed), count))
            whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            size = len(next(iter(parts[0].values())))
            while True:
                order = torch.randperm(count * size, generator=random).split(size)
                yield from ({name: value[rows] for name, value in whole.items()} for rows in order)

        return shuffled

    return of


def tiny_data(count: int, *, is_told: bool) -> Change:
    """Return the change of scripts to a data set of a few batches."""

    def change(script: Script) -> Script:
        return replace(script, batches=_epochs(count)(script.batches), steps_per_epoch=count if is_told else None)

    return change


def with_batches(**batches: Batches) -> Mapping[tuple[str, ...], Change]:
    """Return the change of the batches of architectures, whose names have `_` for a space."""
    return {
        (name.replace("_", " "),): lambda script, of=of: replace(script, batches=of) for name, of in batches.items()
    }


def muon(model: nn.Module) -> list[Optimizer]:
    """Return Muon for the inner matrices and AdamW for the other parameters."""
    is_inner = {name: each.ndim == 2 and "embed" not in name and "head" not in name for name, each in _named(model)}
    inner = [each for name, each in _named(model) if is_inner[name]]
    return [Muon(inner, 0.02), AdamW([each for name, each in _named(model) if not is_inner[name]], 1e-3)]


def _named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(model.named_parameters())


def optimized_by(kind: type[Optimizer], rate: float, **options: float) -> Change:
    """Return the change of scripts that trains with another optimizer."""
    return optimized(lambda model: [kind(model.parameters(), rate, **options)])


def rates_by_layer(model: nn.Module) -> list[Optimizer]:
    """Give the parameters rates from 1e-5 to 1e-3 in their order."""
    parameters = list(model.parameters())
    rates = torch.logspace(-5, -3, len(parameters)).tolist()
    return [AdamW([{"params": [each], "lr": rate} for each, rate in zip(parameters, rates, strict=True)])]


def decay_of_matrices(model: nn.Module) -> list[Optimizer]:
    """Return AdamW that decays matrices only."""
    groups = [
        {"params": [each for each in model.parameters() if (each.ndim > 1) == is_matrix], "weight_decay": decay}
        for is_matrix, decay in ((True, 0.1), (False, 0.0))
    ]
    return [AdamW(groups, 1e-3)]


def embeddings_apart(model: nn.Module) -> list[Optimizer]:
    """Return SGD for the first parameter and AdamW for the others."""
    first, *others = model.parameters()
    return [SGD([first], 0.5), AdamW(others, 1e-3)]


def wake_up(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    """Unfreeze all layers at a step."""
    if step == _LATE:
        model.requires_grad_(True)


def wake_up_new_group(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    """Unfreeze all layers at a step, and give them to the optimizer as a new group."""
    if step == _LATE:
        asleep = [each for each in model.parameters() if not each.requires_grad]
        optimizers[0].add_param_group({"params": asleep, "lr": 1e-4})
        model.requires_grad_(True)


def of_all(model: nn.Module) -> list[Optimizer]:
    """Return AdamW of all parameters, frozen ones too."""
    return [AdamW(model.parameters(), 1e-3)]


def zero_outputs(model: nn.Module) -> None:
    """Let each block return what it is given at the start."""
    pattern = r".*\.(attention\.out|mlp\.2|o_proj|down_proj|attn\.c_proj|mlp\.c_proj|mlp\.fc2)"
    for module in changes.named(model, pattern):
        for parameter in module.parameters():
            nn.init.zeros_(parameter)


def zero_head(model: nn.Module) -> None:
    """Let the first outputs be zero."""
    for module in changes.named(model, "head|classifier|lm_head"):
        nn.init.zeros_(module.weight)


def _evaluate(model: nn.Module, optimizers: Sequence[Optimizer], step: int, script: Script) -> None:
    """Evaluate after every third step, and leave the model in training mode."""
    if step % 3 == 2:
        model.eval()
        with torch.no_grad():
            script.loss(model, next(script.batches(100 + step)))
        model.train()


def with_evaluation(script: Script) -> Script:
    """Return the script with evaluations between its steps."""
    return replace(script, after_step=partial(_evaluate, script=script), mode=lambda step: True if step == 0 else None)


def checkpointed(model: nn.Module) -> None:
    """Compute activations anew in the backward."""
    model.gradient_checkpointing_enable()


def without_dropout(model: nn.Module) -> None:
    """Set the probability of dropout to 0 everywhere."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "attn_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def masters(script: Script) -> Script:
    """Train bfloat16 weights by a float32 copy, which the optimizer holds."""
    copies: list[nn.Parameter] = []

    def optimizers(model: nn.Module) -> list[Optimizer]:
        copies[:] = [nn.Parameter(each.detach().float()) for each in model.parameters()]
        return [AdamW(copies, 1e-3)]

    def before(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        model.zero_grad()
        if step == 0:
            for copy, each in zip(copies, model.parameters(), strict=True):
                each.register_hook(lambda gradient, copy=copy: setattr(copy, "grad", gradient.float()))

    def after(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
        with torch.no_grad():
            for copy, each in zip(copies, model.parameters(), strict=True):
                each.copy_(copy)

    script = replace(script, prepare=(lambda model: model.bfloat16(),), optimizers=optimizers)
    return replace(script, before_step=before, after_step=after)


def distilled(script: Script) -> Script:
    """Learn the outputs of a trained model."""
    name = name_of(script)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        with torch.no_grad():
            target = _logits(pretrained_model(name), inputs)
        return F.kl_div(_logits(model, inputs).log_softmax(-1), target.softmax(-1), reduction="batchmean")

    return replace(with_teacher(script), loss=loss)


def with_teacher(script: Script) -> Script:
    """Train the teacher before the first step, whose losses would be taken for the student's."""

    def train_teacher(model: nn.Module) -> None:
        pretrained_model(name_of(script))

    return changed(script, prepare=train_teacher)


@cache
def pretrained_model(architecture: str) -> nn.Module:
    """Return a frozen trained model in eval mode."""
    script = pretrained(architecture)
    model = script.build()
    script.prepare[0](model)
    return model.eval().requires_grad_(False)


def _logits(model: nn.Module, inputs: Batch) -> Tensor:
    output = model(**inputs)
    return getattr(output, "logits", output)


def policy_gradient(model: nn.Module, batch: Batch) -> Tensor:
    """Reinforce tokens by rewards of both signs."""
    logits = model(batch["input_ids"], batch["attention_mask"])[:, :-1]
    chosen = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    rewards = torch.linspace(-1, 1, len(chosen))[:, None]
    return -(rewards * chosen * batch["attention_mask"][:, 1:]).mean()


def slow_warm_up(step: int) -> float:
    """Return the factor of the rate in a linear warm-up of 1,000 steps."""
    return step / 1000
