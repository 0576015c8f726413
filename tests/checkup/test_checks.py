"""Each check finds its fault, and nothing in the nearest sound script."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import attnwatch

VOCABULARY, WIDTH = 40, 32
SIZES = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


class Net(nn.Module):
    """Small pre-norm transformer with learned positions, whose parts the faults replace."""

    def __init__(self, *, causal: bool = True, positions: bool = True, layers: int = 2):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.positions = nn.Embedding(64, WIDTH) if positions else None
        self.layers = nn.ModuleList(Layer(causal) for _ in range(layers))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.shape[1]))
        for layer in self.layers:
            x = layer(x, attention_mask)
        return self.head(x)


class Layer(nn.Module):
    scale: float | None = None  # of the dot products

    def __init__(self, causal: bool):
        super().__init__()
        self.causal, self.norm = causal, nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def visible(self, attention_mask: Tensor | None, length: int) -> Tensor:
        visible = torch.ones(length, length, dtype=torch.bool)
        visible = visible.tril() if self.causal else visible
        return visible if attention_mask is None else visible & attention_mask.bool()[:, None, None]

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        heads = (part(y).unflatten(-1, (4, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        mask = self.visible(attention_mask, x.shape[1])
        y = F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=self.scale)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


def next_token(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(**{name: value for name, value in batch.items() if name != "labels"})
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def same_token(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(**{name: value for name, value in batch.items() if name != "labels"})
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())


def of_probabilities(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    shares = model(batch["tokens"]).softmax(-1)
    return F.cross_entropy(shares[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def of_logarithms(model: nn.Module, batch: dict[str, Tensor], log: Callable[[Tensor], Tensor] = torch.log) -> Tensor:
    shares = model(batch["tokens"]).softmax(-1)
    return F.nll_loss(log(shares)[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def class_of_first(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch["tokens"])[:, 0], batch["labels"])


def two_and_three_ahead(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of heads that predict tokens further on, as in Medusa."""
    logits, labels = model(batch["tokens"]), batch["labels"]
    losses = [
        F.cross_entropy(logits[:, :-ahead].flatten(0, 1), F.pad(labels[:, ahead:], (0, 0)).flatten())
        for ahead in (2, 3)
    ]
    return sum(losses, torch.zeros(()))


def class_at_the_end(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch["tokens"], batch["attention_mask"])[:, -1], batch["labels"])


def class_at_the_last_token(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    last = batch["attention_mask"].sum(1) - 1
    logits = model(batch["tokens"], batch["attention_mask"])[torch.arange(len(last)), last]
    return F.cross_entropy(logits, batch["labels"])


def by_hand(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return _negative_log(model, batch).mean()


def by_hand_without_padding(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    is_real = batch["attention_mask"][:, 1:]
    return (_negative_log(model, batch) * is_real).sum() / is_real.sum()


def weighed(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits, mask = model(batch["tokens"], batch["attention_mask"])[:, :-1], batch["attention_mask"][:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none")
    return (losses * mask.flatten()).sum() / mask.sum()


def second_half(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of the second half of the tokens, given the cache of the first."""
    first, second = batch["input_ids"].chunk(2, dim=1)
    cache = model(input_ids=first, use_cache=True).past_key_values
    logits = model(input_ids=second, past_key_values=cache).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), second[:, 1:].flatten())


def distilled(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(batch["tokens"], batch["attention_mask"])
    return F.kl_div(logits.log_softmax(-1), torch.randn_like(logits).softmax(-1), reduction="batchmean")


def _negative_log(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(batch["tokens"], batch["attention_mask"])[:, :-1]
    return -logits.log_softmax(-1).gather(-1, batch["labels"][:, 1:, None]).squeeze(-1)


@dataclass
class Script:
    """One step of a training script."""

    model: nn.Module
    batch: dict[str, Tensor]
    forward: Callable[..., Tensor] | None = None
    optimizer: torch.optim.Optimizer | None = None
    notes: set[str] = field(default_factory=set)

    def check(self) -> attnwatch.TrainingCheckup:
        optimizer = self.optimizer or torch.optim.AdamW(self.model.parameters())
        return attnwatch.check_training(self.model, self.batch, optimizers=optimizer, forward=self.forward)


def ids(**changes: Any) -> dict[str, Tensor]:
    tokens = torch.randint(1, VOCABULARY, (5, 16))
    return {"tokens": tokens, "labels": tokens} | changes


def inputs() -> dict[str, Tensor]:
    tokens = torch.randint(1, VOCABULARY, (5, 16))
    return {"input_ids": tokens, "labels": tokens}


def padded(name: str = "tokens", *, ignored: int = -100) -> dict[str, Tensor]:
    mask = torch.ones(5, 16, dtype=torch.long)
    mask[1, 9:], mask[3, 12:] = 0, 0
    tokens = torch.randint(1, VOCABULARY, (5, 16)) * mask
    return {name: tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, ignored)}


def without(batch: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {each: value for each, value in batch.items() if each != name}


def bert() -> BertForMaskedLM:
    return BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, **SIZES)).train()


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **SIZES)).train()


def gpt2() -> GPT2LMHeadModel:
    sizes = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes)).train()


def vit() -> ViTForImageClassification:
    model = ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_labels=3, **SIZES)).train()
    nn.init.normal_(model.vit.embeddings.position_embeddings, std=0.5)
    return model


def t5() -> T5ForConditionalGeneration:
    config = T5Config(vocab_size=VOCABULARY, d_model=WIDTH, d_ff=48, num_layers=2, num_heads=4, d_kv=8)
    config.decoder_start_token_id = 0
    return T5ForConditionalGeneration(config).train()


def changed(model: nn.Module, change: Callable[[nn.Module], object]) -> nn.Module:
    change(model)
    return model


def with_epsilon(epsilon: float) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        for part in model.modules():
            if isinstance(part, nn.LayerNorm):
                part.eps = epsilon

    return change


class WithoutNorms(Layer):
    """Layer that calls its norms and uses what they were given."""

    def __init__(self, causal: bool):
        super().__init__(causal)
        for part in (self.norm, self.mlp[0]):
            part.register_forward_hook(lambda module, args, output: args[0])


class MixedBatch(Layer):
    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return super().forward(x.transpose(0, 1)).transpose(0, 1)


class Inverted(Layer):
    def visible(self, attention_mask: Tensor | None, length: int) -> Tensor:
        return super().visible(1 - attention_mask, length)


class OwnKeyOnly(Layer):
    def visible(self, attention_mask: Tensor | None, length: int) -> Tensor:
        return torch.eye(length, dtype=torch.bool)


class ByBlocks(Layer):
    """Layer whose tokens see blocks of four as a whole."""

    def visible(self, attention_mask: Tensor | None, length: int) -> Tensor:
        block = torch.arange(length) // 4
        return block[:, None] >= block


class Items(Layer):
    """Layer whose tokens see their own and all earlier ones at even places."""

    def visible(self, attention_mask: Tensor | None, length: int) -> Tensor:
        place = torch.arange(length)
        return super().visible(attention_mask, length) & ((place % 2 == 0) | (place[:, None] == place))


class FirstKeyOnly(Layer):
    def visible(self, attention_mask: Tensor | None, length: int) -> Tensor:
        return (torch.arange(length) == 0).expand(length, length)


class Experts(nn.Module):
    """Two experts, of which each token takes the better one, multiplied by its share."""

    shares_count = True

    def __init__(self) -> None:
        super().__init__()
        self.router, self.first, self.second = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        chosen = shares.argmax(-1, keepdim=True)
        result = torch.where(chosen == 0, self.first(x), self.second(x))
        return x + (result * shares.gather(-1, chosen) if self.shares_count else result)


class HardExperts(Experts):
    shares_count = False


class NetOfExperts(Net):
    """Net with experts behind each layer."""

    def __init__(self, kind: type[Experts]):
        super().__init__()
        self.experts = nn.ModuleList(kind() for _ in self.layers)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for layer, experts in zip(self.layers, self.experts, strict=True):
            x = experts(layer(x, attention_mask))
        return self.head(x)


class Detached(Layer):
    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return super().forward(x.detach(), attention_mask)


class DetachedKeys(Layer):
    def __init__(self, causal: bool):
        super().__init__(causal)
        self.key.register_forward_hook(lambda module, args, output: output.detach())


class Multiplied(Layer):
    scale = 8**0.5


class OverWidth(Layer):
    scale = 1 / 8


def _normalise(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return F.normalize(output.unflatten(-1, (4, -1)), dim=-1).flatten(2)


class Normalised(Layer):
    """Layer with normalised queries and keys, and a large scale."""

    scale = 10.0

    def __init__(self, causal: bool):
        super().__init__(causal)
        for part in (self.query, self.key):
            part.register_forward_hook(_normalise)


class Cosines(Normalised):
    scale = 8**-0.5


class AddsOutputs(nn.Module):
    """Model that adds its outputs to the mapping that it receives, as models of sentence-transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = bert()

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        features["loss"] = self.inner(**features).loss
        return features


def of_features(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(dict(batch))["loss"]


class LowRank(nn.Module):
    """Frozen linear layer with a trained addition of low rank."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down, self.up = nn.Linear(WIDTH, 4, bias=False), nn.Linear(4, WIDTH, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


class ByHand(Layer):
    """Layer that computes attention by hand, with a mask of large negative numbers."""

    factor = 1.0

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        query, key, value = (
            part(y).unflatten(-1, (4, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        hidden = ~self.visible(attention_mask, x.shape[1])
        weights = (self.factor * query @ key.mT / 8**0.5 - 1e4 * hidden).softmax(-1)
        x = x + self.out((weights @ value).transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class Steep(ByHand):
    factor = 1e3


class EmbeddingsOnly(Net):
    """Net that gives each layer the embeddings instead of the states of the layer before it."""

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        embeddings = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for layer in self.layers:
            x = layer(embeddings, attention_mask)
        return self.head(x)


class Penultimate(Net):
    """Net in front of which two more layers stand, of which the last is called, but its output is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(Layer(True) for _ in range(2))

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.encoder[0](self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1])))
        self.encoder[1](x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Gated(Layer):
    """Layer whose gate begins at zero."""

    def __init__(self, causal: bool):
        super().__init__(causal)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return x + self.gate * (super().forward(x, attention_mask) - x)


class WithAdapters(Net):
    """Net with a layer behind the others, in some container."""

    def __init__(self, container: Callable[..., Any]):
        super().__init__()
        self.more = container([nn.Linear(WIDTH, WIDTH)])
        self.layers[1].register_forward_hook(lambda module, args, output: output + self.more[0](output))


class Fading(Layer):
    """Layer through which a twentieth of the gradient passes."""

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return super().forward(0.05 * x + 0.95 * x.detach(), attention_mask)


def with_layers(kind: Callable[[bool], Layer], *, causal: bool = True, only: int | None = None, layers: int = 2) -> Net:
    net = Net(causal=causal, layers=layers)
    for index in range(len(net.layers)):
        if only in (None, index):
            net.layers[index] = kind(causal)
    return net


class ShiftsItself(Net):
    """Net that puts a start in front of its tokens, and leaves the last one out."""

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return super().forward(F.pad(tokens, (1, -1), value=1))


class UnusedPositions(Net):
    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, attention_mask)
        return self.head(x)


class Divided(nn.Module):
    """Loss with an infinite gradient at 0."""

    def __init__(self, least: float):
        super().__init__()
        self.net, self.least = Net(), least

    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.net(tokens)
        return logits + ((logits - logits.detach()).square() + self.least).sqrt()


def replaced_head() -> Script:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    model.head = nn.Linear(WIDTH, VOCABULARY)
    return Script(model, ids(), next_token, optimizer)


def adapted(model: Net) -> Net:
    for layer in model.layers:
        layer.query, layer.value = LowRank(layer.query), LowRank(layer.value)
    return model


def linear_probe(*, is_pretrained: bool = True) -> Script:
    model = Net()
    for name, parameter in model.named_parameters() if is_pretrained else ():
        if "norm" in name:
            nn.init.normal_(parameter, 1.0, 0.1)
    return Script(model, ids(), next_token, torch.optim.AdamW(model.head.parameters()), notes={"not_in_optimizer"})


def with_new_head(model: Net) -> Script:
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.head.parameters():
        parameter.requires_grad_(True)
    model.head.weight.requires_grad_(False)
    model.extra = nn.Linear(VOCABULARY, VOCABULARY)
    model.head.register_forward_hook(lambda module, args, output: model.extra(output))
    model.head.requires_grad_(False)
    return Script(model, ids(), next_token, optimizer)


def of_biases(model: Net, *, with_empty_group: bool) -> Script:
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW(vectors if not with_empty_group else [{"params": vectors}, {"params": []}])
    notes = set() if with_empty_group else {"not_in_optimizer"}
    return Script(model, ids(), next_token, optimizer, notes=notes)


def with_hidden_layer(*, held: bool = False) -> Script:
    model, hidden = Net(), nn.Linear(WIDTH, WIDTH)
    model.layers[1].register_forward_hook(lambda module, args, output: output + hidden(output))
    parameters = [*model.parameters(), *(hidden.parameters() if held else ())]
    return Script(model, ids(), next_token, torch.optim.AdamW(parameters))


def frozen(*names: str, of: Callable[[], nn.Module] = Net) -> nn.Module:
    model = of()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in names))
    return model


# Name of the finding: (the script with the fault, the nearest sound one).
SCRIPTS: dict[str, tuple[str, Callable[[], Script], Callable[[], Script]]] = {
    "no causal mask": (
        "future_leak",
        lambda: Script(Net(causal=False), ids(), next_token),
        lambda: Script(Net(), ids(), next_token),
    ),
    "no causal mask in one layer of llama": (
        "future_leak",
        lambda: Script(changed(llama(), _see_all), inputs()),
        lambda: Script(llama(), inputs()),
    ),
    "bidirectional model scored against its own tokens": (
        "padding_leak",
        lambda: Script(bert(), without(padded("input_ids"), "attention_mask")),
        lambda: Script(bert(), padded("input_ids")),
    ),
    "mask ignored": (
        "padding_leak",
        lambda: Script(Net(causal=False), without(padded(), "attention_mask"), same_token),
        lambda: Script(Net(causal=False), padded(), same_token),
    ),
    "right padding of a causal model needs no mask": (
        "future_leak",
        lambda: Script(Net(causal=False), padded(), next_token),
        lambda: Script(Net(), without(padded(), "attention_mask"), next_token),
    ),
    "inverted mask": (
        "mask_inverted",
        lambda: Script(with_layers(Inverted, causal=False), padded_alike(), same_token),
        lambda: Script(Net(causal=False), padded_alike(), same_token),
    ),
    "mask inverted by the script": (
        "mask_inverted",
        lambda: Script(bert(), (batch := padded("input_ids")) | {"attention_mask": 1 - batch["attention_mask"]}),
        lambda: Script(bert(), padded("input_ids")),
    ),
    "axes swapped": (
        "batch_mixing",
        lambda: Script(with_layers(MixedBatch, causal=False), ids(), same_token),
        lambda: Script(Net(causal=False), ids(), same_token),
    ),
    "sees its own key only": (
        "blind_attention",
        lambda: Script(with_layers(OwnKeyOnly), ids(), next_token),
        lambda: Script(with_layers(OwnKeyOnly, only=0), ids(), next_token),
    ),
    "positions not added": (
        "order_ignored",
        lambda: Script(UnusedPositions(causal=False), ids(), same_token),
        lambda: Script(Net(causal=False, positions=False), ids(), same_token, notes={"order_ignored"}),
    ),
    "labels shifted by script and model": (
        "labels_shifted_twice",
        lambda: Script(gpt2(), shifted("input_ids")),
        lambda: Script(gpt2(), inputs()),
    ),
    "softmax before cross-entropy": (
        "double_softmax",
        lambda: Script(Net(), ids(), of_probabilities),
        lambda: Script(Net(), ids(), next_token),
    ),
    "probabilities given as logarithms": (
        "double_softmax",
        lambda: Script(Net(), ids(), partial(of_logarithms, log=lambda shares: shares)),
        lambda: Script(Net(), ids(), of_logarithms),
    ),
    "norms with a large epsilon": (
        "initialisation",
        lambda: Script(changed(Net(), with_epsilon(1.0)), ids(), next_token),
        lambda: Script(changed(Net(), with_epsilon(1e-3)), ids(), next_token),
    ),
    "what norms return thrown away": (
        "initialisation",
        lambda: Script(with_layers(WithoutNorms), ids(), next_token),
        lambda: Script(Net(), ids(), next_token),
    ),
    "mask given as positions": (
        "order_ignored",
        lambda: Script(bert(), (batch := padded("input_ids")) | {"position_ids": batch["attention_mask"]}),
        lambda: Script(bert(), padded("input_ids") | {"position_ids": torch.arange(16).expand(5, 16)}),
    ),
    "ids given as positions": (
        "order_ignored",
        lambda: Script(bert(), (batch := padded("input_ids")) | {"position_ids": batch["input_ids"]}),
        lambda: Script(bert(), padded("input_ids")),
    ),
    "positions thrown away before one class is read": (
        "order_ignored",
        lambda: Script(UnusedPositions(causal=False), ids(labels=torch.arange(5)), class_of_first),
        lambda: Script(Net(causal=False), ids(labels=torch.arange(5)), class_of_first),
    ),
    "padding is learned": (
        "padding_in_loss",
        lambda: Script(llama(), padded("input_ids", ignored=0)),
        lambda: Script(llama(), padded("input_ids")),
    ),
    "nothing to learn": (
        "empty_batch",
        lambda: Script(llama(), scored(torch.arange(16) < 0)),
        lambda: Script(llama(), scored(torch.arange(16) > 10)),
    ),
    "eval mode": (
        "eval_mode",
        lambda: Script(bert().eval(), padded("input_ids")),
        lambda: Script(changed(bert(), lambda m: m.bert.embeddings.eval()), padded("input_ids")),
    ),
    "head replaced after the optimizer was made": ("not_in_optimizer", replaced_head, linear_probe),
    "all but the head left out from the start": (
        "not_in_optimizer",
        lambda: linear_probe(is_pretrained=False),
        linear_probe,
    ),
    "detached between layers": (
        "broken_gradient_path",
        lambda: Script(with_layers(Detached, only=1), ids(), next_token),
        lambda: Script(frozen("layers.0", "embedding", "positions"), ids(), next_token),
    ),
    "detached keys": (
        "broken_gradient_path",
        lambda: Script(with_layers(DetachedKeys), ids(), next_token),
        lambda: Script(Net(), ids(), next_token),
    ),
    "embeddings detached": (
        "broken_gradient_path",
        lambda: Script(changed(Net(), lambda m: m.embedding.register_forward_hook(_detach)), ids(), next_token),
        lambda: Script(frozen("embedding", "positions"), ids(), next_token, notes={"frozen_parameters"}),
    ),
    "six layers in which the gradient fades": (
        "broken_gradient_path",
        lambda: Script(with_layers(Fading, layers=6), ids(), next_token),
        lambda: Script(Net(layers=6), ids(), next_token),
    ),
    "weights too large": (
        "initialisation",
        lambda: Script(changed(Net(), lambda m: nn.init.normal_(m.head.weight, std=3.0)), ids(), next_token),
        lambda: Script(changed(Net(), lambda m: nn.init.normal_(m.head.weight, std=0.3)), ids(), next_token),
    ),
    "queries and keys frozen": (
        "frozen_parameters",
        lambda: Script(frozen("query", "key"), ids(), next_token),
        lambda: Script(frozen("layers"), ids(), next_token),
    ),
    "upper layer frozen": (
        "frozen_parameters",
        lambda: Script(frozen("layers.1"), ids(), next_token),
        lambda: Script(frozen("layers.0"), ids(), next_token),
    ),
    "feed-forward frozen": (
        "frozen_parameters",
        lambda: Script(frozen("mlp", of=llama), inputs()),
        lambda: Script(learned(frozen("mlp", of=llama)), inputs(), notes={"frozen_parameters"}),
    ),
    "weights of torch.randn": (
        "initialisation",
        lambda: Script(changed(Net(), _fill(1.0)), ids(), next_token),
        lambda: Script(changed(Net(), _fill(0.1)), ids(), next_token),
    ),
    "weights of almost zero": (
        "initialisation",
        lambda: Script(changed(Net(), _fill(1e-5)), ids(), next_token),
        lambda: Script(changed(Net(), _fill(1e-2)), ids(), next_token),
    ),
    "embeddings never scaled": (
        "initialisation",
        lambda: Script(changed(Net(), lambda m: nn.init.normal_(m.embedding.weight, std=30.0)), ids(), next_token),
        lambda: Script(Net(), ids(), next_token),
    ),
    "scores multiplied by the root of the width": (
        "wrong_attention_scale",
        lambda: Script(with_layers(Multiplied), ids(), next_token),
        lambda: Script(with_layers(OverWidth), ids(), next_token),
    ),
    "layers in eval mode": (
        "eval_mode",
        lambda: Script(changed(bert(), lambda m: m.bert.encoder.eval()), padded("input_ids")),
        lambda: Script(changed(bert(), lambda m: m.bert.encoder.eval().requires_grad_(False)), padded("input_ids")),
    ),
    "mask for padding on the other side": (
        "mask_inverted",
        lambda: Script(bert(), (batch := padded("input_ids")) | {"attention_mask": batch["attention_mask"].flip(1)}),
        lambda: Script(bert(), {name: value.flip(1) for name, value in padded("input_ids").items()}),
    ),
    "same position for all": (
        "order_ignored",
        lambda: Script(gpt2(), inputs() | {"position_ids": torch.zeros(5, 16, dtype=torch.long)}),
        lambda: Script(gpt2(), inputs() | {"position_ids": torch.arange(16).expand(5, 16)}),
    ),
    "image without positions": (
        "order_ignored",
        lambda: Script(changed(vit(), lambda m: nn.init.ones_(m.vit.embeddings.position_embeddings)), images()),
        lambda: Script(vit(), images()),
    ),
    "image whose attention is lost": (
        "blind_attention",
        lambda: Script(changed(vit(), _lose_attention), images()),
        lambda: Script(vit(), images()),
    ),
    "mask that hides nothing": (
        "padding_leak",
        lambda: Script(bert(), (batch := padded("input_ids")) | {"attention_mask": batch["attention_mask"] * 0 + 1}),
        lambda: Script(bert(), padded("input_ids")),
    ),
    "all words unknown": (
        "empty_batch",
        lambda: Script(Net(causal=False), ids(tokens=torch.ones(5, 16).long()), same_token),
        lambda: Script(Net(causal=False), ids(), same_token),
    ),
    "layers in a plain list": (
        "not_in_optimizer",
        lambda: Script(WithAdapters(list), ids(), next_token),
        lambda: Script(WithAdapters(nn.ModuleList), ids(), next_token),
    ),
    "layers that only a hook knows": (
        "not_in_optimizer",
        lambda: with_hidden_layer(),
        lambda: with_hidden_layer(held=True),
    ),
    "class read at the last place": (
        "padding_leak",
        lambda: Script(Net(), classified(), class_at_the_end),
        lambda: Script(Net(), classified(), class_at_the_last_token),
    ),
    "loss by hand that counts padding": (
        "padding_in_loss",
        lambda: Script(Net(), padded(ignored=0), by_hand),
        lambda: Script(Net(), padded(ignored=0), by_hand_without_padding),
    ),
    "weights that are all the same": (
        "initialisation",
        lambda: Script(changed(llama(), _fill_with(0.05)), inputs()),
        lambda: Script(changed(llama(), _fill_with(0.05, only="gate_proj")), inputs()),
    ),
    "generator of parameters used twice": (
        "not_in_optimizer",
        lambda: of_biases(Net(), with_empty_group=True),
        lambda: of_biases(frozen(), with_empty_group=False),
    ),
    "layers that are given the embeddings": (
        "no_gradient",
        lambda: Script(EmbeddingsOnly(layers=3), ids(), next_token),
        lambda: Script(Net(layers=3), ids(), next_token),
    ),
    "feed-forward without gradients": (
        "no_gradient",
        lambda: Script(changed(Net(), _disable_gradients), ids(), next_token),
        lambda: Script(Net(), ids(), next_token),
    ),
    "weights used as numbers": (
        "no_gradient",
        lambda: Script(changed(Net(), _use_data), ids(), next_token),
        lambda: Script(changed(Net(), _add_pooler), ids(), next_token),
    ),
    "dropout thrown away": (
        "eval_mode",
        lambda: Script(changed(bert(), _throw_dropout_away), padded("input_ids")),
        lambda: Script(bert(), padded("input_ids")),
    ),
    "labels shifted by data set, script and model": (
        "labels_shifted_twice",
        lambda: Script(gpt2(), shifted("input_ids", by=2)),
        lambda: Script(gpt2(), shifted("input_ids", by=0)),
    ),
    "queries and keys of torch.randn": (
        "wrong_attention_scale",
        lambda: Script(changed(Net(), _fill(1.0, only=("query", "key"))), ids(), next_token),
        lambda: Script(changed(Net(), _fill(0.2, only=("query", "key"))), ids(), next_token),
    ),
    "scores by hand multiplied by a million": (
        "wrong_attention_scale",
        lambda: Script(with_layers(Steep), ids(), next_token),
        lambda: Script(with_layers(ByHand), ids(), next_token),
    ),
    "weights of one sign": (
        "initialisation",
        lambda: Script(changed(Net(), _fill_uniformly(0, 0.1)), ids(), next_token),
        lambda: Script(changed(Net(), _fill_uniformly(-0.2, 0.2)), ids(), next_token),
    ),
    "mask of special tokens": (
        "mask_inverted",
        lambda: Script(bert(), with_special_tokens(only=True)),
        lambda: Script(bert(), with_special_tokens(only=False)),
    ),
    "optimizer of frozen weights": (
        "not_in_optimizer",
        lambda: with_new_head(frozen("layers", "embedding", "positions", "head")),
        lambda: Script(frozen("layers", "embedding", "positions"), ids(), next_token),
    ),
    "positions that are zero and frozen": (
        "order_ignored",
        lambda: Script(changed(frozen("positions"), lambda m: nn.init.zeros_(m.positions.weight)), ids(), next_token),
        lambda: Script(frozen("positions"), ids(), next_token),
    ),
    "cosines divided by the root of the width": (
        "wrong_attention_scale",
        lambda: Script(with_layers(Cosines), ids(), next_token),
        lambda: Script(with_layers(Normalised), ids(), next_token),
    ),
    "sequences of one token": (
        "blind_attention",
        lambda: Script(Net(), {name: value.reshape(-1, 1) for name, value in ids().items()}, same_token),
        lambda: Script(Net(), {name: value[:, :2] for name, value in ids().items()}, next_token),
    ),
    "labels that are not shifted": (
        "labels_shifted_twice",
        lambda: Script(Net(), ids(), same_token),
        lambda: Script(Net(causal=False), ids(), same_token),
    ),
    "outputs of a causal model that predict what they are given": (
        "labels_shifted_twice",
        lambda: Script(Net(), ids(), same_token),
        lambda: Script(ShiftsItself(), ids(), same_token),
    ),
    "labels of a decoder that are not shifted": (
        "labels_shifted_twice",
        lambda: Script(t5(), with_decoder_ids(shift=0)),
        lambda: Script(t5(), with_decoder_ids(shift=1)),
    ),
    "mask that is causal by blocks": (
        "future_leak",
        lambda: Script(with_layers(ByBlocks), ids(), next_token),
        lambda: Script(Net(), ids(), next_token),
    ),
    "masks in another order than the texts": (
        "padding_leak",
        lambda: Script(bert(), masked(lambda mask: mask.flip(0))),
        lambda: Script(bert(), masked(lambda mask: mask)),
    ),
    "keys of the first token only": (
        "blind_attention",
        lambda: Script(with_layers(FirstKeyOnly), ids(), next_token),
        lambda: Script(with_layers(FirstKeyOnly, only=0), ids(), next_token),
    ),
    "router whose shares do not count": (
        "no_gradient",
        lambda: Script(NetOfExperts(HardExperts), ids(), next_token),
        lambda: Script(NetOfExperts(Experts), ids(), next_token),
    ),
    "padding is learned by a decoder": (
        "padding_in_loss",
        lambda: Script(t5(), translated(ignored=0)),
        lambda: Script(t5(), translated()),
    ),
    "gradient of a root at zero": (
        "nonfinite_gradient",
        lambda: Script(Divided(0.0), ids(), next_token),
        lambda: Script(Divided(1e-6), ids(), next_token),
    ),
}


def learned(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 0.9)
    return model


def _detach(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.detach()


def _fill(std: float, *, only: tuple[str, ...] = ("",)) -> Callable[[nn.Module], None]:
    def fill(model: nn.Module) -> None:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and name.endswith(only):
                nn.init.normal_(module.weight, std=std)

    return fill


def _fill_uniformly(low: float, high: float) -> Callable[[nn.Module], None]:
    def fill(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.uniform_(module.weight, low, high)

    return fill


def _use_data(model: Net) -> None:
    linear = model.layers[1].mlp[1]
    linear.forward = lambda states: F.linear(states, linear.weight.data, linear.bias)


def _disable_gradients(model: Net) -> None:
    for layer in model.layers:
        layer.mlp.forward = torch.no_grad()(layer.mlp.forward)


def _add_pooler(model: Net) -> None:
    """Add a layer whose output is not used."""
    model.pooler = nn.Linear(WIDTH, WIDTH)

    def pool(module: nn.Module, args: Any, output: Tensor) -> None:
        model.pooler(args[0])

    model.head.register_forward_hook(pool)


def _throw_dropout_away(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda module, args, output: args[0])


def _fill_with(number: float, *, only: str = "") -> Callable[[nn.Module], None]:
    def fill(model: nn.Module) -> None:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and only in name:
                nn.init.constant_(module.weight, number)

    return fill


def _lose_attention(model: nn.Module) -> None:
    for layer in model.vit.layers if hasattr(model.vit, "layers") else model.vit.encoder.layer:
        layer.attention.register_forward_hook(_to_zero)


def _to_zero(module: nn.Module, args: Any, output: Any) -> Any:
    return (0 * output[0], *output[1:]) if isinstance(output, tuple) else 0 * output


def translated(*, ignored: int = -100) -> dict[str, Tensor]:
    labels = torch.randint(1, VOCABULARY, (5, 12))
    labels[1, 7:], labels[3, 9:] = ignored, ignored
    return {"input_ids": torch.randint(1, VOCABULARY, (5, 16)), "labels": labels}


def with_decoder_ids(*, shift: int) -> dict[str, Tensor]:
    batch = translated()
    return batch | {"decoder_input_ids": F.pad(batch["labels"].clamp(min=0), (shift, 0))[:, :12]}


def with_hidden_prompt() -> dict[str, Tensor]:
    """Return texts that end with the same tokens, of which every second one has a part that is hidden."""
    batch = inputs()
    batch["input_ids"][:, -3:] = 2
    mask = torch.ones(5, 16, dtype=torch.long)
    mask[::2, :6] = 0
    return batch | {"attention_mask": mask, "labels": batch["input_ids"].masked_fill(mask == 0, -100)}


def masked(change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Return a padded batch with a mask that was changed."""
    batch = padded("input_ids")
    mask = change(batch["attention_mask"])
    return batch | {"attention_mask": mask, "labels": batch["labels"].masked_fill(mask == 0, -100)}


def classified() -> dict[str, Tensor]:
    return padded() | {"labels": torch.tensor([0, 1, 2, 0, 1])}


def images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(5, 3, 16, 16), "labels": torch.tensor([0, 1, 2, 0, 1])}


def _see_all(model: LlamaForCausalLM) -> None:
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
        layer.self_attn.register_forward_pre_hook(_without_mask, with_kwargs=True)


def _without_mask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    return args, kwargs | {"attention_mask": None}


def scored(where: Tensor) -> dict[str, Tensor]:
    batch = inputs()
    return batch | {"labels": batch["labels"].masked_fill(~where, -100)}


def shifted(name: str, *, by: int = 1) -> dict[str, Tensor]:
    tokens = torch.randint(1, VOCABULARY, (5, 16 + by))
    return {name: tokens[:, :16], "labels": tokens[:, by:]}


def with_special_tokens(*, only: bool) -> dict[str, Tensor]:
    """Return a batch whose mask is 1 at the special tokens and the padding only, or at all but the padding."""
    batch = padded("input_ids")
    is_real = batch["attention_mask"].bool()
    ends = is_real.sum(1) - 1
    batch["input_ids"].clamp_(min=3).mul_(is_real)
    batch["input_ids"][:, 0], batch["input_ids"][torch.arange(5), ends] = 1, 2
    return batch | {"attention_mask": (batch["input_ids"] < 3).long() if only else is_real.long()}


def periodic() -> dict[str, Tensor]:
    """Return texts with a period of 5, in whose second half each token is that of the first half one place later."""
    tokens = torch.arange(32) + torch.arange(5)[:, None]
    return {"input_ids": 1 + tokens % 5}


def padded_alike() -> dict[str, Tensor]:
    batch = padded()
    batch["attention_mask"] = (torch.arange(16) < 12).long().expand(5, 16).contiguous()
    batch["tokens"] = torch.randint(1, VOCABULARY, (5, 16)) * batch["attention_mask"]
    return batch | {"labels": batch["tokens"].masked_fill(batch["attention_mask"] == 0, -100)}


def kinds(findings: list[attnwatch.Finding]) -> set[str]:
    return {finding.kind.value for finding in findings if not finding.is_note}


@pytest.mark.parametrize(("kind", "faulty", "sound"), SCRIPTS.values(), ids=SCRIPTS)
def test_fault_is_named_and_the_nearest_sound_script_is_not(kind, faulty, sound):
    checkup = faulty().check()
    assert kinds(checkup.findings) == {kind}, checkup
    script = sound()
    checkup = script.check()
    assert kinds(checkup.findings) == set(), checkup
    assert {finding.kind.value for finding in checkup.findings} == script.notes
    assert kind in script.notes or kind not in checkup.skipped or kind in ("eval_mode", "no_gradient"), (
        checkup.skipped.get(kind)
    )


def zeros(*names: str) -> Net:
    model = Net()
    for name, parameter in model.named_parameters():
        if any(part in name for part in names):
            nn.init.zeros_(parameter)
    return model


class Packed(Layer):
    """Two documents in each sequence, of which none sees the other."""

    def visible(self, attention_mask: Tensor | None, length: int) -> Tensor:
        document = torch.arange(length) >= length // 2
        return super().visible(attention_mask, length) & (document[:, None] == document)


def masters() -> Script:
    model = Net().to(torch.bfloat16)
    copies = [parameter.detach().float() for parameter in model.parameters()]
    return Script(model, ids(), next_token, torch.optim.AdamW(copies))


def one_sequence() -> Script:
    tokens = torch.randint(1, VOCABULARY, (1, 16))
    return Script(t5(), {"input_ids": tokens, "labels": tokens.roll(-1, 1)})


class Random(nn.Module):
    """Encoder of torch with dropout in evaluations, where it takes another path, with other random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0), nn.Embedding(64, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 48, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        x = F.dropout(self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1])), 0.1, training=True)
        x = self.encoder(x, src_key_padding_mask=attention_mask == 0)
        return self.head(F.dropout(x, 0.1, training=True))


class Spare(Layer):
    """Layer with a linear layer that this forward does not need."""

    def __init__(self, causal: bool):
        super().__init__(causal)
        self.spare = nn.Linear(WIDTH, WIDTH)


class WithMaskEmbedding(Net):
    """Net with the embedding of a mask, which a forward without masked tokens does not need."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.randn(1, WIDTH))


def deberta() -> DebertaV2ForMaskedLM:
    """Model that fills masked logits with the smallest float, also in whole rows."""
    return DebertaV2ForMaskedLM(DebertaV2Config(vocab_size=VOCABULARY, **SIZES)).train()


ODD = {
    "gates begin at zero": lambda: Script(with_layers(Gated), ids(), next_token),
    "output layers begin at zero": lambda: Script(zeros("out.", "mlp.3"), ids(), next_token),
    "head begins at zero": lambda: Script(zeros("head"), ids(), next_token),
    "two documents in a sequence": lambda: Script(with_layers(Packed), ids(), next_token),
    "float32 copies of bfloat16 weights": masters,
    "encoder and decoder, one sequence": one_sequence,
    "scores with the cache of another forward": lambda: Script(gpt2(), periodic(), second_half),
    "outputs added to the inputs": lambda: Script(AddsOutputs(), padded("input_ids"), of_features),
    "own adapters": lambda: Script(adapted(frozen("")), ids(), next_token),
    "last layer of an encoder unused": lambda: Script(Penultimate(), ids(), next_token),
    "padding weighed by zero": lambda: Script(Net(), padded(ignored=0), weighed),
    "distillation of all places": lambda: Script(Net(), padded(ignored=0), distilled),
    "normalised queries with a large scale": lambda: Script(with_layers(Normalised), ids(), next_token),
    "blocks that predict the next block": lambda: Script(with_layers(ByBlocks), shifted("tokens", by=4), same_token),
    "several tokens predicted by heads of their own": lambda: Script(Net(), ids(), two_and_three_ahead),
    "items and actions in turn": lambda: Script(with_layers(Items), ids(), next_token),
    "encoder and decoder that repeat a text": lambda: Script(t5(), inputs()),
    "mask that hides a part of the texts": lambda: Script(gpt2(), with_hidden_prompt()),
    "linear layer that is not called": lambda: Script(with_layers(Spare), ids(), next_token),
    "mask embedding that is not used": lambda: Script(WithMaskEmbedding(), ids(), next_token),
    "rows of attention that are masked as a whole": lambda: Script(deberta(), padded("input_ids")),
    "dropout in evaluations": lambda: Script(Random(), padded(), same_token),
}


@pytest.mark.parametrize("script", ODD.values(), ids=ODD)
def test_nothing_is_found_in_sound_scripts_that_look_odd(script):
    checkup = script().check()
    assert not checkup.findings, checkup


def test_masks_that_are_one_token_too_long_are_noted():
    """The token may be an end of the text that the config does not know."""
    checkup = Script(bert(), masked(lambda mask: mask.roll(1, 1))).check()
    assert [(finding.kind.value, finding.is_note) for finding in checkup.findings] == [("padding_leak", True)]
    checkup = Script(gpt2(), masked(lambda mask: mask.roll(1, 1))).check()  # its config has no padding id
    assert not checkup.findings, checkup


def test_diagnosis_takes_the_findings_along():
    script = SCRIPTS["padding is learned"][1]()
    findings = script.check().findings
    with attnwatch.AttentionRecorder(script.model) as recorder:
        empty = attnwatch.diagnose(recorder.history(), checked=findings)
        with recorder.step(0):
            script.model(**script.batch).loss.backward()
        diagnosis = attnwatch.diagnose(recorder.history(), checked=findings)
    for each in (empty, diagnosis):
        assert [finding.kind.value for finding in each.findings] == ["padding_in_loss"]
        assert each.status is attnwatch.RunStatus.NOT_CONVERGING
        assert each.risk >= findings[0].severity
    assert attnwatch.diagnose(recorder.history()).status is attnwatch.RunStatus.UNDETERMINED


def test_every_check_has_a_script_with_its_fault():
    in_loops = {
        "gradients_not_cleared",
        "lost_updates",
        "rate_too_high",
        "rate_too_low",
        "repeated_batch",
        "weights_shrink",
        "loss_rises",
        "labels_unrelated",
    }
    assert {kind for kind, *_ in SCRIPTS.values()} | in_loops == set(attnwatch.Check.registry)
