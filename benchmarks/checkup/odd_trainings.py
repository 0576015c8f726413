"""What is odd about sound trainings of usual models."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Muon, Optimizer

from benchmarks.checkup import changes, data, nets
from benchmarks.checkup.architectures import ARCHITECTURES, pretrained
from benchmarks.checkup.data import Batch, Batches
from benchmarks.checkup.edits import optimized, prepared
from benchmarks.checkup.scripts import Change, Prepare, Script, each_batch

_LATE = 6


def fine_tuned(change: Change) -> Change:
    """Return the change of a script that starts with a model that has learned something."""
    return lambda script: change(pretrained(name_of(script)))


def name_of(script: Script) -> str:
    return next(name for name, plain in ARCHITECTURES.items() if plain is script)


def with_adapters(config: Callable[..., object], **options: object) -> Prepare:
    return lambda model: get_peft_model(model, config(**options))


def with_lora(*targets: str, **options: object) -> Change:
    return fine_tuned(prepared(with_adapters(LoraConfig, r=4, target_modules=list(targets), **options)))


def keep_in_eval(pattern: str) -> Callable[[Script], Script]:
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
    def change(script: Script) -> Script:
        return replace(script, batches=_epochs(count)(script.batches), steps_per_epoch=count if is_told else None)

    return change


def with_batches(**batches: Batches) -> Mapping[tuple[str, ...], Change]:
    """Return the change of the batches of architectures, whose names have `_` for a space."""
    return {
        (name.replace("_", " "),): lambda script, of=of: replace(script, batches=of) for name, of in batches.items()
    }


def muon(model: nn.Module) -> list[Optimizer]:
    is_inner = {name: each.ndim == 2 and "embed" not in name and "head" not in name for name, each in _named(model)}
    inner = [each for name, each in _named(model) if is_inner[name]]
    return [Muon(inner, 0.02), AdamW([each for name, each in _named(model) if not is_inner[name]], 1e-3)]


def _named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(model.named_parameters())


def optimized_by(kind: type[Optimizer], rate: float, **options: float) -> Change:
    return optimized(lambda model: [kind(model.parameters(), rate, **options)])


def rates_by_layer(model: nn.Module) -> list[Optimizer]:
    """Give the parameters rates from 1e-5 to 1e-3 in their order."""
    parameters = list(model.parameters())
    rates = torch.logspace(-5, -3, len(parameters)).tolist()
    return [AdamW([{"params": [each], "lr": rate} for each, rate in zip(parameters, rates, strict=True)])]


def decay_of_matrices(model: nn.Module) -> list[Optimizer]:
    groups = [
        {"params": [each for each in model.parameters() if (each.ndim > 1) == is_matrix], "weight_decay": decay}
        for is_matrix, decay in ((True, 0.1), (False, 0.0))
    ]
    return [AdamW(groups, 1e-3)]


def embeddings_apart(model: nn.Module) -> list[Optimizer]:
    first, *others = model.parameters()
    return [SGD([first], 0.5), AdamW(others, 1e-3)]


def wake_up(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    if step == _LATE:
        model.requires_grad_(True)


def wake_up_new_group(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    if step == _LATE:
        asleep = [each for each in model.parameters() if not each.requires_grad]
        optimizers[0].add_param_group({"params": asleep, "lr": 1e-4})
        model.requires_grad_(True)


def of_all(model: nn.Module) -> list[Optimizer]:
    return [AdamW(model.parameters(), 1e-3)]


def zero_outputs(model: nn.Module) -> None:
    """Let each block return what it is given at the start."""
    pattern = r".*\.(attention\.out|mlp\.2|o_proj|down_proj|attn\.c_proj|mlp\.c_proj|mlp\.fc2)"
    for module in changes.named(model, pattern):
        for parameter in module.parameters():
            nn.init.zeros_(parameter)


def zero_head(model: nn.Module) -> None:
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
    mode = lambda step: True if step == 0 else None  # noqa: E731
    return replace(script, after_step=partial(_evaluate, script=script), mode=mode)


def prefix(batch: Batch) -> Batch:
    """Let the first six tokens see one another, and predict the others."""
    tokens = batch["input_ids"].shape[1]
    allowed = changes.square(tokens).tril()
    allowed[:6, :6] = True
    labels = batch["labels"].clone()
    labels[:, :6] = data.IGNORED
    return changes.with_mask(lambda tokens: allowed)(batch) | {"labels": labels}


def packed(batch: Batch) -> Batch:
    """Put two texts into one sequence, apart by mask and positions."""
    size, tokens = batch["input_ids"].shape
    half = tokens // 2
    allowed = torch.block_diag(changes.square(half), changes.square(half)).bool().tril()
    ids = torch.cat([batch["input_ids"][:, :half], batch["input_ids"].roll(1, 0)[:, :half]], 1)
    labels = ids.clone()
    labels[:, half] = data.IGNORED
    positions = torch.arange(half).repeat(2).expand(size, tokens)
    mask = allowed.expand(size, 1, tokens, tokens)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "position_ids": positions}


def cut_to_longest(batch: Batch) -> Batch:
    """Leave the longest text out, and cut the others to the length of the next one."""
    batch = {name: value[1:] for name, value in batch.items()}
    longest = int(batch["attention_mask"].sum(1).max())
    return {name: value[:, :longest].contiguous() if value.dim() == 2 else value for name, value in batch.items()}


def answers_only(batch: Batch) -> Batch:
    labels = batch["labels"].clone()
    labels[:, :5] = data.IGNORED
    return batch | {"labels": labels}


def padded_with_end(batch: Batch) -> Batch:
    """Pad with the token of the end, of which the first one has a label."""
    ids, mask = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, nets.END), batch["attention_mask"]
    labels, rows = batch["labels"].clone(), torch.arange(len(ids))
    lengths = mask.sum(1)
    at = lengths.clamp(max=ids.shape[1] - 1)
    labels[rows, at] = torch.where(lengths < ids.shape[1], nets.END, labels[rows, at])
    mask = mask.clone()
    mask[rows, at] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def rare_class(batch: Batch) -> Batch:
    """Three texts, of which most have the common class."""
    few = {name: value[:3] for name, value in batch.items()}
    return few | {"labels": (few["labels"] == 3).long()}


def packed_texts(script: Script) -> Script:
    """Return the script with two whole texts in each sequence."""
    return each_batch(replace(script, batches=data.language(shortest=nets.TOKENS)), packed)


def checkpointed(model: nn.Module) -> None:
    model.gradient_checkpointing_enable()


def _left_positions(batch: Batch) -> Batch:
    return changes.true_positions(batch)


def left_padded(script: Script) -> Script:
    script = replace(script, batches=data.language(side="left"))
    return script if isinstance(script.build(), nets.Net) else each_batch(script, _left_positions)


def without_dropout(model: nn.Module) -> None:
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
        for copy, each in zip(copies, model.parameters(), strict=True):
            each.register_hook(
                lambda gradient, copy=copy: setattr(copy, "grad", gradient.float())
            ) if step == 0 else None

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

    return replace(script, loss=loss)


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
    return step / 1000
