"""Faults of masks, mixing, positions and depth of a third blind set, for those of `third`."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.checkup import architectures, changes, data, nets
from benchmarks.checkup import third_attentions as attend
from benchmarks.checkup.attentions import by_hand
from benchmarks.checkup.data import Batch
from benchmarks.checkup.edits import batchwise, prepared
from benchmarks.checkup.faults import Fault
from benchmarks.checkup.nets import BEGIN, CLASSES, VOCABULARY, WIDTH, Net, TorchEncoder
from benchmarks.checkup.odd_trainings import fine_tuned
from benchmarks.checkup.scripts import Script
from benchmarks.checkup.second_flow import ATTENDED, DECODERS, deep

OF_BERT = ("bert", "bert classifier", "roberta classifier")
_ENCODERS = ("own encoder", *OF_BERT, "sentence encoder")
_WINDOW, _SCALE_OF_LAYERS = 3, 1e-5


class _FirstByView(TorchEncoder):
    """Encoder that reads the class from the first state of each text, or so it is meant."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states = self.tokens(input_ids) + self.positions_of(input_ids.shape[1])
        states = self.encoder(states, src_key_padding_mask=self.key_padding_mask(attention_mask))
        return self.head(_tokens_first(states)[0])


class _PlacedByIds(TorchEncoder):
    """Encoder that looks up positions by the ids of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(VOCABULARY, WIDTH) * 0.02)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states = self.tokens(input_ids) + self.positions[input_ids]
        states = self.encoder(states, src_key_padding_mask=self.key_padding_mask(attention_mask))
        return self.head(nets.mean_of_real(states, attention_mask))


def _tokens_first(states: Tensor) -> Tensor:
    """View [batch, tokens] as [tokens, batch], where a transpose was meant."""
    size, tokens, width = states.shape
    return states.reshape(tokens, size, width)


def _own_first_by_view(model: nn.Module) -> None:
    model.pooled = lambda input_ids, attention_mask=None: _tokens_first(
        model.encode(model.embed(input_ids), attention_mask)
    )[0]


def _given_by_view(pattern: str) -> changes.Prepare:
    """Return the change that gives a module, which reads the first token, states by a view."""

    def hook(module: nn.Module, inputs: tuple) -> tuple:
        return _tokens_first(inputs[0]).transpose(0, 1), *inputs[1:]

    return changes.on_modules(pattern, lambda module: module.register_forward_pre_hook(hook))


def _viewed_sentences(model: nn.Module) -> None:
    model.pool = lambda states, mask: _tokens_first(states)[0]


def _near(tokens: int) -> Tensor:
    places = torch.arange(tokens)
    return (places[:, None] - places).abs() <= _WINDOW


def _gated_by_largest(states: Tensor) -> Tensor:
    return states * F.layer_norm(states, states.shape[-1:]).amax(1, keepdim=True).sigmoid()


def _normed_over_tokens(states: Tensor) -> Tensor:
    return F.instance_norm(states.mT).mT


def _queries_masked(batch: Batch) -> Batch:
    mask = batch["attention_mask"].bool()
    return batch | {"attention_mask": mask[:, None, :, None].expand(-1, 1, -1, mask.shape[1])}


def _own_queries_masked(model: nn.Module) -> None:
    model.make_mask = lambda mask, tokens: mask.bool()[:, None, :, None].expand(-1, 1, -1, tokens)


def _true_where_hidden(batch: Batch) -> Batch:
    mask = batch["attention_mask"] == 0
    return batch | {"attention_mask": mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1)}


def _true_where_hidden_within(module: nn.Module) -> None:
    def hook(module: nn.Module, inputs: tuple) -> tuple:
        return inputs[0], _true_where_hidden({"attention_mask": inputs[1]})["attention_mask"]

    module.register_forward_pre_hook(hook)


def _documents_of_one_token(batch: Batch) -> Batch:
    """Count a new document at each token but the begin, where one at each begin was meant."""
    documents = (batch["input_ids"] != BEGIN).cumsum(1)
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return batch | {"attention_mask": same & changes.square(same.shape[-1]).tril()}


def _own_placed_by_ids(model: nn.Module) -> None:
    model.positions = nn.Embedding(VOCABULARY, WIDTH)
    nn.init.normal_(model.positions.weight, std=0.02)
    model.embed = lambda ids: model.dropout(model.tokens(ids) + model.positions(ids))


def _placed_by_ids(script: Script, **options: object) -> Script:
    script = replace(script, build=architectures.bert(**options, max_position_embeddings=VOCABULARY))
    return batchwise(lambda batch: batch | {"position_ids": batch["input_ids"]})(script)


def _on_the_left(script: Script) -> Script:
    """Pad on the left, and let padding see nothing, which sees itself in own nets else."""
    script = replace(script, batches=data.language(side="left"))
    return prepared(_blind_padding, by_hand(attend.infinite_rows))(script)


def _blind_padding(model: nn.Module) -> None:
    if isinstance(model, Net):
        model.make_mask = lambda mask, tokens: changes.square(tokens).tril() & mask.bool()[:, None, None, :]


_CLASSIFIER = {"kind": "ForSequenceClassification", "num_labels": CLASSES}

FLOW = (
    Fault("softmax taken twice, causal", ("future_leak",), {DECODERS: prepared(by_hand(attend.softmax_twice))}),
    Fault("window that reaches both ways", ("future_leak",), {DECODERS[:-1]: batchwise(changes.with_mask(_near))}),
    Fault(
        "gates of the largest values in the whole text",
        ("future_leak",),
        {DECODERS: prepared(changes.on_outputs(changes.LAYER, _gated_by_largest, first_only=True))},
    ),
    Fault(
        "softmax taken twice, padding",
        ("padding_leak",),
        {_ENCODERS[:-1]: fine_tuned(prepared(by_hand(attend.softmax_twice)))},
    ),
    Fault(
        "norm of each feature over tokens and padding",
        ("padding_leak",),
        {
            (*_ENCODERS, "torch encoder", "t5"): prepared(
                changes.on_outputs(changes.LAYER, _normed_over_tokens, first_only=True)
            )
        },
    ),
    Fault(
        "mask over the queries, not the keys",
        ("padding_leak",),
        {
            ("own encoder",): prepared(_own_queries_masked),
            OF_BERT: batchwise(_queries_masked),
        },
    ),
    Fault(
        "mask of four axes that is true where hidden",
        ("mask_inverted", "padding_leak"),
        {
            OF_BERT: batchwise(_true_where_hidden),
            ("sentence encoder",): prepared(changes.on_modules("bert", _true_where_hidden_within)),
        },
    ),
    Fault(
        "einsum with another letter for the values' batch",
        ("batch_mixing",),
        {ATTENDED: prepared(by_hand(attend.values_of_all_texts))},
    ),
    Fault(
        "first state of each text by a view",
        ("batch_mixing",),
        {
            ("own encoder",): prepared(_own_first_by_view),
            ("torch encoder",): lambda script: replace(script, build=_FirstByView),
            ("bert classifier",): prepared(_given_by_view("bert.pooler")),
            ("roberta classifier",): prepared(_given_by_view("classifier")),
            ("vit",): prepared(changes.on_outputs("vit.layernorm", lambda each: _tokens_first(each).transpose(0, 1))),
            ("sentence encoder",): prepared(_viewed_sentences),
        },
    ),
    Fault(
        "documents counted at each token",
        ("blind_attention",),
        {(*DECODERS[:-1], "bert"): batchwise(_documents_of_one_token)},
    ),
    Fault(
        "positions looked up by the tokens' ids",
        ("order_ignored",),
        {
            ("own encoder",): prepared(_own_placed_by_ids),
            ("torch encoder",): lambda script: replace(script, build=_PlacedByIds),
            ("bert",): _placed_by_ids,
            ("bert classifier",): lambda script: _placed_by_ids(script, **_CLASSIFIER),
            ("roberta classifier",): lambda script: _placed_by_ids(script, **_CLASSIFIER, family="Roberta"),
        },
    ),
    Fault(
        "norms of queries and keys with gains of their width",
        ("wrong_attention_scale",),
        {ATTENDED: prepared(by_hand(attend.with_gains_of_width))},
    ),
    Fault(
        "scale of 1e-5 on the sum in each of 12 layers",
        ("broken_gradient_path", "initialisation"),
        {
            ("own causal", "own encoder", "llama", "gpt2", "qwen2"): deep(
                prepared(changes.on_outputs(changes.LAYER, lambda states: _SCALE_OF_LAYERS * states))
            )
        },
    ),
    Fault("minus infinity in whole rows", ("nonfinite_gradient",), {DECODERS: _on_the_left}),
)
