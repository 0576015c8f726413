"""Oddities of sound models and batches of a third blind set, for `odd_third`."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.checkup import changes
from benchmarks.checkup.data import IGNORED, Batch, Batches
from benchmarks.checkup.edits import replace_batches
from benchmarks.checkup.nets import BEGIN, CLASSES, FIRST_WORD, MASK, TOKENS, Net, TorchEncoder
from benchmarks.checkup.scripts import Script, circle
from benchmarks.checkup.third import with_lazy_layer

OUTPUTS = r".*\.(attention\.out|o_proj|mlp\.2|down_proj|mlp\.fc2|fc2)"
_NOISE, _FEW = 5.0, 4


class FirstOfTransposed(TorchEncoder):
    """Encoder that puts tokens first, and reads the class from the first state."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states = self.tokens(input_ids) + self.positions_of(input_ids.shape[1])
        states = self.encoder(states, src_key_padding_mask=self.key_padding_mask(attention_mask))
        return self.head(states.transpose(0, 1)[0])


def own_first_of_transposed(model: nn.Module) -> None:
    """Read the class from the first state, with tokens first."""
    model.pooled = lambda input_ids, attention_mask=None: model.encode(
        model.embed(input_ids), attention_mask
    ).transpose(0, 1)[0]


def lazy_layer_made(model: nn.Module) -> None:
    """Make a layer by a first forward, before the optimizer."""
    with_lazy_layer(model)
    batch = (
        {"pixel_values": torch.zeros(1, 3, 16, 16)}
        if hasattr(model, "vit")
        else {"input_ids": torch.full((1, 4), FIRST_WORD)}
    )
    with torch.no_grad():
        model(**batch)


class _Scaled(nn.Module):
    """Layer with a learned scale for each output."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.scale = nn.Parameter(torch.full((layer.out_features,), 0.1))

    def forward(self, states: Tensor) -> Tensor:
        return self.layer(states) * self.scale


def scale_branches(model: nn.Module) -> None:
    """Multiply what each branch adds by a learned scale, which starts at a tenth."""
    layers = set(changes.named(model, OUTPUTS))
    for name, module in [(name, module) for name, module in model.named_modules() if module in layers]:
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, _Scaled(module))


def gated_by_earlier(states: Tensor) -> Tensor:
    """Multiply by gates of the largest values so far."""
    return states * F.layer_norm(states, states.shape[-1:]).cummax(1).values.sigmoid()


def normed_over_image(states: Tensor) -> Tensor:
    """Normalise over the tokens and the width of an image, which has no padding."""
    return F.layer_norm(states, states.shape[1:])


def normed_over_real(model: nn.Module) -> None:
    """Normalise the first block's states over real tokens, told by the mask of the keys."""
    block = model.blocks[0]

    def hook(module: nn.Module, inputs: tuple, states: Tensor) -> Tensor:
        real = 1.0 if inputs[1] is None else inputs[1][:, 0, 0, :, None].float()
        count = states.shape[1] if inputs[1] is None else real.sum(1, keepdim=True)
        mean = (states * real).sum(1, keepdim=True) / count
        variance = ((states - mean).square() * real).sum(1, keepdim=True) / count
        return (states - mean) * (variance + 1e-5).rsqrt()

    block.register_forward_hook(hook)


def queries_and_keys_masked(batch: Batch) -> Batch:
    """Let real tokens see real ones, and padding see itself."""
    mask = batch["attention_mask"].bool()
    seen = mask[:, :, None] & mask[:, None, :] | torch.eye(mask.shape[1], dtype=torch.bool)
    return batch | {"attention_mask": seen[:, None]}


def own_queries_and_keys_masked(model: nn.Module) -> None:
    """Make such a mask within an own net."""
    model.make_mask = lambda mask, tokens: (
        None if mask is None else queries_and_keys_masked({"attention_mask": mask})["attention_mask"]
    )


def true_where_seen(batch: Batch) -> Batch:
    """Give a mask of four axes that is True where a key is seen."""
    mask = batch["attention_mask"].bool()
    return batch | {"attention_mask": mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1)}


def two_documents(batch: Batch) -> Batch:
    """Put two short texts into each row, each of which begins anew and sees itself alone."""
    ids, rows = batch["input_ids"], batch["input_ids"].roll(1, 0)
    half = TOKENS // 2
    ids = torch.cat([ids[:, :half], rows[:, :half]], 1)
    is_real = torch.cat([batch["attention_mask"][:, :half], batch["attention_mask"].roll(1, 0)[:, :half]], 1).bool()
    documents = (ids == BEGIN).cumsum(1)
    same = (documents[:, :, None] == documents[:, None, :]) & is_real[:, None, :]
    mask = same.tril() | torch.eye(TOKENS, dtype=torch.bool)
    labels = ids.masked_fill(~is_real | (ids == BEGIN), IGNORED)
    return {"input_ids": ids, "attention_mask": mask[:, None], "labels": labels}


def positions_from_the_end(batch: Batch) -> Batch:
    """Count positions from the end of the row."""
    tokens = batch["input_ids"].shape[1]
    return batch | {"position_ids": torch.arange(tokens - 1, -1, -1).expand_as(batch["input_ids"])}


def logarithms_of_shares(layer: nn.Module) -> None:
    """Set the bias to the logarithms of the classes' shares."""
    shares = torch.linspace(1, 2, len(layer.bias))
    with torch.no_grad():
        layer.bias.copy_((shares / shares.sum()).log())


def noisy_embeddings(model: nn.Module) -> None:
    """Add uniform noise to embeddings in training, as NEFTune does."""

    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        if not module.training:
            return output
        size = 0.02 * _NOISE / (output.shape[1] * output.shape[2]) ** 0.5
        return output + size * torch.empty_like(output).uniform_(-1, 1)

    for module in changes.named(model, changes.EMBEDDING):
        module.register_forward_hook(hook)


def squared_relu(model: nn.Module) -> None:
    """Square what a ReLU leaves, in the feed-forward nets of own blocks."""
    if not isinstance(model, Net):
        raise TypeError("Not an own net.")
    for block in model.blocks:
        first, _, last = block.mlp
        block.mlp = nn.Sequential(first, nn.ReLU(), _Square(), last)


class _Square(nn.Module):
    def forward(self, states: Tensor) -> Tensor:
        return states.square()


def backwards(batch: Batch) -> Batch:
    """Read real tokens from the last to the first."""
    lengths = batch["attention_mask"].sum(1, keepdim=True)
    places = torch.arange(batch["input_ids"].shape[1])
    order = torch.where(places < lengths, lengths - 1 - places, places)
    return batch | {name: batch[name].gather(1, order) for name in ("input_ids", "labels")}


def some_words_hidden(batch: Batch) -> Batch:
    """Hide a tenth of the words a model reads, and let it predict them all the same."""
    ids = batch["input_ids"]
    return batch | {"input_ids": ids.masked_fill((torch.rand(ids.shape) < 0.1) & (ids >= FIRST_WORD), MASK)}


def half_without_labels(batch: Batch) -> Batch:
    """Leave half of the texts without labels."""
    labels = batch["labels"].clone()
    labels[: len(labels) // 2] = IGNORED
    return batch | {"labels": labels}


def padded_by_last_word(batch: Batch) -> Batch:
    """Pad by the last word, which is neither seen nor labelled there."""
    last = batch["input_ids"].gather(1, batch["attention_mask"].sum(1, keepdim=True) - 1)
    return batch | {"input_ids": torch.where(batch["attention_mask"] == 1, batch["input_ids"], last)}


def all_classes_alike(batches: Batches) -> Batches:
    """Give as many samples of each class in each batch."""

    def balanced(seed: int) -> Iterator[Batch]:
        source = batches(seed)
        while True:
            parts = list(itertools.islice(source, 8))
            whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            rows = [(whole["labels"] == label).nonzero().flatten()[:2] for label in range(CLASSES)]
            yield {name: value[torch.cat(rows)] for name, value in whole.items()}

    return balanced


def few_with_noise(script: Script) -> Script:
    """Take four batches of data in each epoch, as is told, with other noise in each."""

    def noisy(batches: Batches) -> Batches:
        def anew(seed: int) -> Iterator[Batch]:
            for batch in circle(batches, _FEW)(seed):
                if "pixel_values" in batch:
                    images = batch["pixel_values"]
                    yield batch | {"pixel_values": images + 0.2 * torch.randn_like(images)}
                else:
                    yield some_words_hidden(batch)

        return anew

    return replace(replace_batches(script, noisy), steps_per_epoch=_FEW)
