"""Oddities of sound models and batches of a fourth blind set, for `odd_fourth`."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from benchmarks.checkup import changes, data
from benchmarks.checkup.architectures import class_loss
from benchmarks.checkup.blind_data import logits_of
from benchmarks.checkup.data import IGNORED, Batch, Batches
from benchmarks.checkup.edits import replace_batches
from benchmarks.checkup.fourth_flow import ExpertsThatChoose
from benchmarks.checkup.nets import FIRST_WORD, MASK, Net
from benchmarks.checkup.own_models import Experts
from benchmarks.checkup.scripts import Script, each_batch

_SHARE, _WINDOW, _DROPPED = 0.25, 3, 0.1
_SHORTEST, _LONGEST, _TURN = 6, 16, 4
BALANCE = 0.01


class ExpertsPerText(ExpertsThatChoose):
    """Feed-forward nets, each of which takes the tokens of each text that fit it best."""

    within_text = True


class BalancedExperts(Experts):
    """Feed-forward nets of the best shares, with a loss that is smallest where all are given as much."""

    def __init__(self) -> None:
        super().__init__(4)

    def forward(self, states: Tensor) -> Tensor:
        shares = self.router(states).softmax(-1).flatten(0, -2)
        given = F.one_hot(shares.argmax(-1), shares.shape[-1]).float().mean(0)
        self.balance = shares.shape[-1] * (given * shares.mean(0)).sum()
        return super().forward(states)


def with_balance(script: Script) -> Script:
    """Add what the experts' balance costs to the loss."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        plain = script.loss(model, batch)
        balances = [each.balance for each in model.modules() if isinstance(each, BalancedExperts)]
        return plain + BALANCE * torch.stack(balances).sum()

    return replace(script, loss=loss)


class _Scale(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 0.02 * weight


def scaled_head(model: nn.Module) -> None:
    """Let the head's weight be a parameter times a number, told to PyTorch."""
    (head,) = changes.named(model, "head|lm_head|classifier")
    nn.init.normal_(head.weight)
    parametrize.register_parametrization(head, "weight", _Scale(), unsafe=True)


def dropout_by_function(model: nn.Module) -> None:
    """Let dropout act by a function, in evaluations too."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.forward = lambda states, rate=module.p: F.dropout(states, rate, training=True)


def paths_dropped(model: nn.Module) -> None:
    """Drop what layers add for some of the samples in training, and scale it up for the others."""

    def hook(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
        states = output[0] if isinstance(output, tuple) else output
        if module.training:
            kept = (torch.rand(len(states), 1, 1) >= _DROPPED) / (1 - _DROPPED)
            states = inputs[0] + kept * (states - inputs[0])
        return (states, *output[1:]) if isinstance(output, tuple) else states

    for layer in changes.named(model, changes.LAYER):
        layer.register_forward_hook(hook)


def convolved_real(model: nn.Module) -> None:
    """Add a convolution over the real tokens to the first layer's states, with zeros at padding."""
    found: dict[str, Tensor | None] = {}

    def remember(module: nn.Module, inputs: tuple, named: dict[str, Tensor]) -> None:
        found["mask"] = named.get("attention_mask", inputs[1] if len(inputs) > 1 else None)

    def convolve(states: Tensor) -> Tensor:
        mask = found["mask"]
        real = states if mask is None else states * mask[:, :, None]
        return states + F.avg_pool1d(real.mT, 3, stride=1, padding=1).mT

    model.register_forward_pre_hook(remember, with_kwargs=True)
    changes.on_outputs(changes.LAYER, convolve, first_only=True)(model)


def positions_in_each_layer(model: nn.Module) -> None:
    """Add the positions again to what each layer reads."""
    table = model.positions if isinstance(model, Net) else next(changes.named(model, r".*position_embeddings"))

    def hook(module: nn.Module, inputs: tuple) -> tuple:
        return inputs[0] + table.weight[: inputs[0].shape[1]], *inputs[1:]

    for layer in changes.named(model, changes.LAYER):
        layer.register_forward_pre_hook(hook)


def half_of_patches(model: nn.Module) -> None:
    """Drop half of the patches in training."""

    def hook(module: nn.Module, inputs: tuple, states: Tensor) -> Tensor:
        if not module.training:
            return states
        patches = states.shape[1] - 1
        kept = 1 + torch.randperm(patches)[: patches // 2]
        return torch.cat([states[:, :1], states[:, kept]], 1)

    model.vit.embeddings.register_forward_hook(hook)


def first_and_near(tokens: int) -> Tensor:
    """Return the mask in which each token sees the first one and the last few."""
    places = torch.arange(tokens)
    distances = places[:, None] - places
    return (distances >= 0) & ((distances < _WINDOW) | (places == 0))


def kaiming_in_layers(model: nn.Module) -> None:
    """Start the matrices of the layers with Kaiming's weights."""
    for layer in changes.named(model, changes.LAYER):
        changes.on_matrices(nn.init.kaiming_normal_)(layer)


def without_padding(script: Script) -> Script:
    """Let all texts be as long as a row."""
    return replace(script, batches=data.classified_texts(shortest=_LONGEST))


def sorted_by_length(batch: Batch) -> Batch:
    """Sort texts, masks and labels by length."""
    order = batch["attention_mask"].sum(1).argsort(descending=True)
    return {name: value[order] for name, value in batch.items()}


def of_random_length(batches: Batches) -> Batches:
    """Cut each batch to another length."""

    def cut(seed: int) -> Iterator[Batch]:
        random = torch.Generator().manual_seed(seed)
        for batch in batches(seed):
            length = int(torch.randint(_SHORTEST, _LONGEST + 1, (), generator=random))
            yield {name: value[:, :length].contiguous() for name, value in batch.items()}

    return cut


def growing_texts(batches: Batches) -> Batches:
    """Begin with short texts, which grow by a word at each batch."""

    def cut(seed: int) -> Iterator[Batch]:
        for number, batch in enumerate(batches(seed)):
            length = min(_SHORTEST + number, _LONGEST)
            yield {name: value[:, :length].contiguous() for name, value in batch.items()}

    return cut


def end_first(batch: Batch) -> Batch:
    """Put the end of each text before its start."""
    words = batch["attention_mask"].sum(1, keepdim=True) - 1
    places = torch.arange(batch["input_ids"].shape[1])
    order = torch.where((places >= 1) & (places <= words), (places - 1 + _TURN) % words + 1, places)
    return batch | {name: batch[name].gather(1, order) for name in ("input_ids", "labels")}


def one_word_hidden(batch: Batch) -> Batch:
    """Hide one word of each text, which is to be found."""
    ids = _as_written(batch)
    lengths = batch["attention_mask"].sum(1)
    chosen = 1 + (torch.rand(len(ids)) * (lengths - 1)).long()
    is_hidden = torch.arange(ids.shape[1]) == chosen[:, None]
    return batch | {"input_ids": ids.masked_fill(is_hidden, MASK), "labels": ids.masked_fill(~is_hidden, IGNORED)}


def own_one_word_hidden(script: Script) -> Script:
    """Do so for an own net that has outputs for each token."""
    return each_batch(replace(script, build=lambda: Net(is_causal=False), loss=class_loss), one_word_hidden)


def _as_written(batch: Batch) -> Tensor:
    """Return the ids with all hidden words shown."""
    ids, labels = batch["input_ids"], batch["labels"]
    return ids if labels.dim() == 1 else torch.where(labels == IGNORED, ids, labels)


def _hidden_by_own_shares(batch: Batch) -> Batch:
    """Hide another share of each text."""
    ids = _as_written(batch)
    is_hidden = (torch.rand(ids.shape) < torch.rand(len(ids), 1)) & (ids >= FIRST_WORD)
    is_hidden[:, 2] = True
    return batch | {"input_ids": ids.masked_fill(is_hidden, MASK), "labels": ids.masked_fill(~is_hidden, IGNORED)}


def _weighed_by_shares(model: nn.Module, batch: Batch) -> Tensor:
    """Weigh the words of each text by one over the share that is hidden."""
    losses = F.cross_entropy(logits_of(model, batch).mT, batch["labels"], reduction="none")
    words = batch["attention_mask"].sum(1)
    shares = (batch["labels"] != IGNORED).sum(1) / words
    return (losses.sum(1) / shares).sum() / words.sum()


def masked_diffusion(script: Script) -> Script:
    """Find hidden words, of which each text has another share."""
    return replace(each_batch(script, _hidden_by_own_shares), loss=_weighed_by_shares)


def own_masked_diffusion(script: Script) -> Script:
    """Do so with an own net that has outputs for each token."""
    return masked_diffusion(replace(script, build=lambda: Net(is_causal=False)))


def partly_predicted(script: Script) -> Script:
    """Replace some of the words that the model reads by those it predicts there."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        ids = batch["input_ids"]
        with torch.no_grad():
            predicted = logits_of(model, {name: batch[name] for name in ("input_ids", "attention_mask")}).argmax(-1)
        is_replaced = (torch.rand(ids.shape) < _SHARE) & (ids >= FIRST_WORD)
        return script.loss(model, batch | {"input_ids": torch.where(is_replaced, predicted.roll(1, 1), ids)})

    return replace(script, loss=loss)


def lengths_in_turns(script: Script) -> Script:
    """Return the script whose batches have other lengths."""
    return replace_batches(script, of_random_length)
