"""Probes find what was planted in a layer, in that layer and not before; and say what they can't tell."""

import pickle

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from attnwatch import ConfigurationError
from attnwatch.explain import LayerProbes, probe_layers
from attnwatch.explain.probing.examples import Examples
from attnwatch.explain.probing.options import ProbeOptions
from attnwatch.explain.probing.probes import corrected_stderr
from attnwatch.explain.probing.tasks import Task, control_labels, position_bins, prepare_fits
from tests.support.language_models import BYTE_TOKENIZER
from tests.support.models import (
    LENGTHS,
    TOKENS,
    VOCABULARY,
    WIDTH,
    FusedAttention,
    bert,
    llama,
    padding_mask,
    seeded,
    t5,
    token_ids,
)

IDS = 8  # of tokens, in the batches of most tests


def batches(number: int = 4, sequences: int = 16, tokens: int = TOKENS, ids: int = IDS, **more) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"input_ids": torch.randint(3, 3 + ids, (sequences, tokens), generator=generator), **more}
        for _ in range(number)
    ]


def bit(ids: Tensor) -> Tensor:
    return (ids * 7 // 3) % 2


class Planted(nn.Module):
    """Tokens come as two random signs, and layer `at` multiplies them: no plane tells their product before.

    Layers before and behind turn the states, which says nothing new.
    """

    def __init__(self, at: int, layers: int = 4):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        first = torch.randint(2, (VOCABULARY,), generator=generator) * 2.0 - 1
        second = first * (bit(torch.arange(VOCABULARY)) * 2.0 - 1)
        self.embedding = nn.Embedding.from_pretrained(torch.stack([first, second, torch.zeros(VOCABULARY)], 1))
        self.at, self.layers = at, layers

    def states(self, batch) -> list[Tensor]:
        x = self.embedding(batch["input_ids"])
        found = [x]
        for layer in range(1, self.layers + 1):
            if layer == self.at:
                x = torch.cat([x[..., :2], x[..., :1] * x[..., 1:2]], -1)
            found.append(x * (1 + layer) + layer)
        return found


def states_of(model: Planted, batch) -> list[Tensor]:
    return model.states(batch)


@pytest.mark.parametrize("at", [1, 3])
def test_a_planted_feature_is_found_where_it_was_planted(at):
    probes = probe_layers(
        Planted(at),
        batches(ids=40),
        targets=["bit"],
        labels={"bit": lambda batch: bit(batch["input_ids"])},
        hidden_states=states_of,
    )
    accuracy = probes.accuracy[0]
    assert (accuracy[at:] == 1).all()
    # Both signs alone say as little as the most frequent class, but for the words that happen to be there.
    assert (probes.above_baseline[0, :at] < 0.15).all()
    assert probes.layers == ["embeddings", "layer 1", "layer 2", "layer 3", "layer 4"]
    assert probes.num_forwards == 4
    assert (probes.stderr[0, at:] == 0).all()


def copying_llama(at: int):
    """Only layer `at` (from 1) mixes tokens; the others add nothing."""
    model = llama(layers=3)
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers, 1):
            layer.mlp.down_proj.weight.zero_()
            if number != at:
                layer.self_attn.o_proj.weight.zero_()
    return model


@pytest.mark.parametrize("at", [1, 2])
def test_previous_token_is_found_behind_the_layer_that_attends(at):
    probes = probe_layers(
        copying_llama(at), batches(16, tokens=2), targets=["token", "previous_token", "next_token"], num_splits=2
    )
    previous, behind = probes.above_baseline[1:]
    assert (probes.accuracy[0] > 0.9).all()
    assert (previous[:at] < 0.1).all()
    assert (previous[at:] > 0.3).all()
    assert (behind < 0.1).all()  # it is not known in any layer of a causal model, and drawn at random


# Control tasks


def test_token_identity_is_not_selective():
    """A random label for each word is read off its identity as well as the identity itself."""
    probes = probe_layers(copying_llama(2), batches(ids=5), targets=["token"])
    assert probes.accuracy[0, :2].tolist() == [1, 1]
    assert probes.selectivity[0, :2].tolist() == [0, 0]


def test_what_words_do_not_tell_is_selective():
    """The position is not a function of the word: its control is learnt by heart, itself it is not."""
    probes = probe_layers(copying_llama(2), batches(), targets=["position"])
    assert (probes.control[0] > 0.9).all()
    assert (probes.selectivity[0, :2] < -0.5).all()


def examples_of(labels: Tensor, sequences: Tensor, types: Tensor, *, are_of_tokens: bool = True) -> Examples:
    return Examples([torch.zeros(len(labels), 1)], sequences, types, {"own": labels}, are_of_tokens)


def test_control_labels_are_functions_of_the_word_distributed_like_the_labels():
    generator = torch.Generator().manual_seed(0)
    types = torch.arange(20_000) % 4000
    labels = torch.where(torch.rand(20_000, generator=generator) < 0.2, 1, 0)
    labels[::7] = -1
    control = control_labels(Task("own", labels, 2), examples_of(labels, types, types), generator)
    assert ((control < 0) == (labels < 0)).all()
    for label in (0, 1):
        shares = [(each == label).double().mean().item() for each in (control, labels)]
        assert shares[0] == pytest.approx(shares[1], abs=0.02)
    known = control >= 0
    pairs = torch.stack([types, control], 1)[known].unique(dim=0)
    assert len(pairs) == len(types[known].unique())
    other = control_labels(Task("own", labels, 2), examples_of(labels, types, types), generator)
    assert not torch.equal(control, other)


def test_control_labels_of_sequences_are_shuffled():
    labels = torch.tensor([0] * 30 + [1] * 10 + [-1] * 5)
    numbers = torch.arange(45)
    examples = examples_of(labels, numbers, numbers, are_of_tokens=False)
    control = control_labels(Task("own", labels, 2), examples, torch.Generator().manual_seed(0))
    assert (control[40:] == -1).all()
    assert control[:40].bincount().tolist() == [30, 10]
    assert not torch.equal(control, labels)


# Splits


@pytest.mark.parametrize("seed", range(3))
def test_no_sequence_is_in_both_parts(seed):
    generator = torch.Generator().manual_seed(seed)
    sequences = torch.arange(600) // 20
    labels = torch.randint(3, (600,), generator=generator)
    examples = examples_of(labels, sequences, labels)
    _, fits, skipped = prepare_fits(examples, ProbeOptions(num_splits=5, seed=seed))
    assert not skipped
    tests = set()
    for fit in fits:
        train, test = set(sequences[fit.train].tolist()), set(sequences[fit.test].tolist())
        assert not train & test
        assert train | test == set(range(30))
        assert len(test) == 9
        tests.add(tuple(sorted(test)))
    assert len(tests) == 5


def test_labels_of_sequences_are_stratified():
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    numbers = torch.arange(100)
    _, fits, _ = prepare_fits(examples_of(labels, numbers, numbers, are_of_tokens=False), ProbeOptions())
    assert [labels[fit.test].bincount().tolist() for fit in fits] == [[21, 6, 3]] * 5


def test_sequences_learnt_by_heart_do_not_help():
    """States that name their sequence say nothing of another one; with tokens split at random they would say all."""

    def names(model, batch):
        ids = batch["input_ids"]
        return [nn.functional.one_hot(ids[:, :1].expand_as(ids), 64).float()]

    batch = {"input_ids": torch.arange(64)[:, None].expand(64, 10).contiguous()}
    generator = torch.Generator().manual_seed(0)
    own = torch.randint(2, (64, 1), generator=generator).expand(64, 10)
    probes = probe_layers(nn.Identity(), [batch], targets=["own"], labels={"own": [own]}, hidden_states=names)
    assert probes.above_baseline[0, 0] < 0.05


# What is ignored


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_ignored(side):
    """Whatever stands in the padding, and with the sequences of the batch apart or together."""
    mask = padding_mask(side).repeat(5, 1)
    found = []
    for seed in (1, 2):
        ids = torch.where(mask.bool(), token_ids(len(mask)), token_ids(len(mask), seed=seed))
        labels = torch.arange(len(mask)) % 2
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        found.append(
            probe_layers(
                bert(),
                [batch],
                targets=["label", "label_at_first", "token", "previous_token", "position", "own"],
                labels={"own": lambda batch: batch["input_ids"] % 3},
            )
        )
    assert found[0].skipped.keys() == found[1].skipped.keys()
    torch.testing.assert_close(found[0].accuracy, found[1].accuracy, rtol=0, atol=1e-12)
    assert found[0].num_examples[found[0].targets.index("position")] == 5 * sum(LENGTHS)


def test_negative_labels_are_ignored():
    own = [torch.where(torch.arange(TOKENS) < 3, batch["input_ids"] % 2, -100) for batch in batches()]
    probes = probe_layers(llama(), batches(), targets=["own"], labels={"own": own})
    assert probes.num_examples == [4 * 16 * 3]
    assert probes.num_classes == [2]


def test_only_so_many_tokens_are_probed():
    probes = probe_layers(llama(), batches(), targets=["position"], max_tokens=500)
    assert probes.num_examples == [500]
    again = probe_layers(llama(), batches(), targets=["position"], max_tokens=500)
    assert torch.equal(probes.accuracy, again.accuracy)
    other = probe_layers(llama(), batches(), targets=["position"], max_tokens=500, seed=1)
    assert not torch.equal(probes.accuracy, other.accuracy)


def test_most_frequent_classes_are_kept():
    probes = probe_layers(llama(), batches(8, ids=47), targets=["token", "own"], labels={"own": own_ids}, num_splits=2)
    assert probes.num_classes == [47, 50]  # own has 94


def own_ids(batch) -> Tensor:
    ids = batch["input_ids"]
    return 2 * ids + torch.arange(ids.shape[1]) % 2


def test_positions_are_binned_evenly():
    positions = torch.arange(100).repeat(10)
    bins = position_bins(positions)
    assert bins.bincount().tolist() == pytest.approx([125] * 8, abs=10)
    assert (bins.view(10, 100).diff(dim=1) >= 0).all()
    few = position_bins(torch.tensor([0, 1, -1, 0, 1]))
    assert (few == few[[0, 1, 2, 0, 1]]).all()
    assert few[2] == -1 < few[0] < few[1]


# What can't be told


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ([torch.zeros(16, dtype=torch.int64)] * 4, "its examples are of one class$"),
        ([torch.full((16, TOKENS), -1)] * 4, "its examples are of no class$"),
        (
            [torch.where(torch.arange(16)[:, None] == 3, 1, 0).expand(16, TOKENS)]
            + [torch.zeros(16, TOKENS).long()] * 3,
            r"1 of its 2 classes have no example in the training part of split \d",
        ),
    ],
    ids=["one class", "no class", "a class in one sequence"],
)
def test_targets_that_can_not_be_probed_are_named(own, reason):
    probes = probe_layers(
        llama(), batches(), targets=["own", "token"], labels={"own": own}, num_splits=8, test_share=0.6
    )
    assert probes.targets == ["token"]
    assert probes.accuracy.shape == (1, 3)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(probes.skipped["own"])


def test_too_few_sequences():
    probes = probe_layers(llama(), batches(1, sequences=7))
    assert probes.targets == []
    assert probes.skipped["token"] == "7 sequences are too few: at least 8 are needed"
    assert probes.accuracy.shape == (0, 3)
    assert "skipped" in str(probes)


def test_labels_of_the_task():
    plain, names = batches(), ["label", "label_at_first"]
    of_sequences = [{**batch, "labels": batch["input_ids"][:, 0] % 2} for batch in plain]
    probes = probe_layers(bert(), of_sequences, targets=names)
    assert probes.targets == names
    assert probes.accuracy[1, 0] == 1  # it is written in the first token
    assert probes.num_examples == [64, 64]
    of_tokens = [{**batch, "labels": batch["input_ids"] % 2} for batch in plain]
    probes = probe_layers(bert(), of_tokens, targets=names)
    assert probes.targets == ["label"]
    assert probes.skipped == {"label_at_first": "the labels are per token, not per sequence"}
    of_numbers = [{**batch, "labels": torch.rand(16)} for batch in plain]
    assert probe_layers(bert(), of_numbers).skipped == {"label": "the labels are not integers"}
    causal = [{**batch, "labels": batch["input_ids"]} for batch in plain]
    assert "next_token" in probe_layers(llama(), causal).targets
    assert probe_layers(llama(), causal).skipped == {}
    assert probe_layers(llama(), causal, targets=["label"]).skipped == {
        "label": "there are no labels except the tokens: the task is next_token"
    }
    assert probe_layers(llama(), plain).skipped == {}
    assert probe_layers(llama(), plain, targets=["label"]).skipped == {"label": "there are no labels in the batches"}


def test_layers_with_infinite_states_have_no_numbers():
    def states(model, batch):
        x = nn.functional.one_hot(batch["input_ids"], VOCABULARY).float()
        return [x, x / 0.0, x]

    probes = probe_layers(nn.Identity(), batches(), targets=["token"], hidden_states=states)
    assert torch.isfinite(probes.accuracy).tolist() == [[True, False, True]]
    assert torch.isfinite(probes.selectivity).tolist() == [[True, False, True]]
    assert probes.skipped == {"layer 1": "its states are not all finite"}


def test_more_features_and_classes_than_tokens():
    probes = probe_layers(
        bert(),
        batches(1, sequences=9, tokens=2),
        targets=["own", "other"],
        labels={"own": lambda batch: batch["input_ids"], "other": lambda batch: batch["input_ids"][:, 0] % 2},
        test_share=0.2,
    )
    assert set(probes.targets) | set(probes.skipped) == {"own", "other"}
    assert "other" in probes.targets
    assert torch.isfinite(probes.accuracy).all()


# Numbers


def test_accuracy_is_near_that_of_logistic_regression():
    model, given = copying_llama(1).eval(), batches(8, tokens=4)
    probes = probe_layers(model, given, targets=["previous_token"], num_splits=4)
    with torch.no_grad():
        states = torch.cat([model(**batch, output_hidden_states=True).hidden_states[1][:, 1:] for batch in given])
    labels = torch.cat([batch["input_ids"][:, :-1] for batch in given])
    train, test = states[:90].flatten(0, 1), states[90:].flatten(0, 1)
    fitted = LogisticRegression(max_iter=5000).fit(train, labels[:90].flatten())
    assert probes.accuracy[0, 1] == pytest.approx(fitted.score(test, labels[90:].flatten()), abs=0.1)
    assert probes.accuracy[0, 1] > probes.baseline[0] + 0.1


def test_standard_error_is_corrected_for_shared_examples():
    accuracy = torch.tensor([[[0.5, 0.7, 0.6]]], dtype=torch.float64)
    found = corrected_stderr(accuracy, torch.tensor([0.5], dtype=torch.float64))
    assert found.item() == pytest.approx(((1 / 3 + 0.5) * 0.01) ** 0.5)


def test_baseline_is_the_most_frequent_class_of_the_test_part():
    labels = torch.tensor([0] * 60 + [1] * 40)
    given = [{"input_ids": token_ids(100), "labels": labels}]
    probes = probe_layers(bert(), given, targets=["label"])
    assert probes.baseline.tolist() == [0.6]


def test_targets_do_not_depend_on_each_other():
    together = probe_layers(llama(), batches(), targets=["token", "position"])
    alone = probe_layers(llama(), batches(), targets=["position"])
    torch.testing.assert_close(together.accuracy[1], alone.accuracy[0])
    torch.testing.assert_close(together.control[1], alone.control[0])


def test_table():
    text = str(probe_layers(llama(), batches(), targets=["token", "position"]))
    header, *rows = text.splitlines()
    assert header.split()[-4:] == ["baseline", "embeddings", "1", "2"]
    assert rows[0].startswith("token (8 classes)")
    assert rows[1].strip().startswith("selectivity")
    assert len(rows) == 4


# Where states come from


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), FusedAttention()

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x + self.attention(self.norm(x)), None


class Own(nn.Module):
    """A plain PyTorch model, whose layers return tuples."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x, _ = block(x)
        return x


class Encoder(nn.Module):
    def __init__(self, *, batch_first: bool):
        super().__init__()
        self.batch_first = batch_first
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 48, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embedding(ids)
        x = x if self.batch_first else x.transpose(0, 1)
        return self.encoder(x, src_key_padding_mask=~mask.bool())


def call_encoder(model, batch):
    return model(batch["input_ids"], batch["attention_mask"])


def test_layers_of_a_plain_model_are_found():
    model = seeded(Own)

    def states(model, batch):
        x = [model.embedding(batch["input_ids"])]
        for block in model.blocks:
            x.append(block(x[-1])[0])
        return x

    found = probe_layers(model, batches(), forward=lambda model, batch: model(batch["input_ids"]))
    expected = probe_layers(model, batches(), hidden_states=states)
    assert torch.equal(found.accuracy, expected.accuracy)
    assert found.num_forwards == expected.num_forwards == 4
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("longest", [TOKENS, TOKENS - 2])
def test_layers_of_a_torch_encoder_are_found(batch_first, longest):
    model = seeded(lambda: Encoder(batch_first=batch_first))
    mask = (torch.arange(TOKENS) < torch.tensor([longest, 5, 7, 9] * 4)[:, None]).long()

    def states(model, batch):
        hidden = ~batch["attention_mask"].bool()
        x = [model.embedding(batch["input_ids"])]
        for layer in model.encoder.layers:
            given = x[-1] if batch_first else x[-1].transpose(0, 1)
            out = layer(given, src_key_padding_mask=hidden)
            x.append(out if batch_first else out.transpose(0, 1))
        return x

    found = probe_layers(model, batches(attention_mask=mask), forward=call_encoder)
    expected = probe_layers(model, batches(attention_mask=mask), hidden_states=states)
    torch.testing.assert_close(found.accuracy, expected.accuracy, rtol=0, atol=0.01)


def test_transformers_model_is_left_as_it_was():
    model = llama(dropout=0.1)
    before = [(dict(vars(module)), len(module._forward_hooks)) for module in model.modules()]
    state = torch.get_rng_state()
    probe_layers(model, batches())
    after = [(dict(vars(module)), len(module._forward_hooks)) for module in model.modules()]
    assert [each[0].keys() for each in before] == [each[0].keys() for each in after]
    assert [each[1] for each in before] == [each[1] for each in after]
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    pickle.dumps(model)


def test_model_is_probed_without_dropout():
    model = llama(dropout=0.5)
    trained = probe_layers(model, batches())
    assert torch.equal(trained.accuracy, probe_layers(model.eval(), batches()).accuracy)


def test_encoder_of_an_encoder_decoder_is_probed():
    ids = {"decoder_input_ids": token_ids(16)}
    probes = probe_layers(t5(), batches(**ids), targets=["token"])
    assert probes.accuracy.shape == (1, 3)
    assert (probes.above_baseline > 0.6).all()


def test_text_targets_of_a_model():
    text = ["def f(a):  # b", "x = 'if' + g(y)", "return [1, (2,)]", "# c", "a = 'b c'", "if (x): y()"] * 4
    encoded = BYTE_TOKENIZER(text, padding=True, return_tensors="pt")
    ids = encoded["input_ids"]

    def states(model, batch):  # of a model that knows two neighbours to each side
        x = nn.functional.one_hot(batch["input_ids"], 260).float()
        return [x, torch.cat([x.roll(shift, 1) for shift in range(-2, 3)], -1)]

    names = ["character_class", "word_start", "in_string", "in_comment", "keyword", "nesting_depth", "case"]
    batch = {"input_ids": ids, "attention_mask": encoded["attention_mask"]}
    probes = probe_layers(nn.Identity(), [batch], targets=names, tokenizer=BYTE_TOKENIZER, hidden_states=states)
    assert probes.targets == [name for name in names if name != "case"]
    assert probes.skipped == {"case": "one class is in 8 sequences or more, and classes in fewer are ignored"}
    assert probes.accuracy[0].tolist() == [1, 1]
    assert probes.accuracy[1, 1] > probes.accuracy[1, 0]


# Configuration

WRONG = {
    "name": ({"targets": ["tokens"]}, "`targets`: 'tokens' is unknown; it must be one of label, "),
    "string": ({"targets": "token"}, "`targets` must be a list of names, got 'token'"),
    "no tokenizer": ({"targets": ["case"]}, "`targets`: 'case' is derived from the text: pass `tokenizer`"),
    "not a tokenizer": ({"tokenizer": "bert"}, "pass a tokenizer object, AutoTokenizer.from_pretrained.'bert'"),
    "not a list": ({"targets": 5}, "`targets` must be a list of names, got 5"),
    "share": ({"test_share": 1.0}, "`test_share` must be a number between 0 and 1, got 1.0"),
    "splits": ({"num_splits": 1}, "`num_splits` must be an integer of at least 2, got 1"),
    "tokens": ({"max_tokens": 0}, "`max_tokens` must be an integer of at least 1, got 0"),
    "labels": ({"labels": [1]}, "`labels` must map each name"),
    "built in": ({"labels": {"token": [1]}}, "`labels`: 'token' is a built-in target"),
    "label's kind": ({"labels": {"own": 3}}, "`labels`: 'own' must be a function of the batch or a list"),
    "too few": ({"labels": {"own": [token_ids(16)]}}, "`labels`: 'own' has 1 tensors for 4 batches"),
    "shape": (
        {"labels": {"own": lambda batch: token_ids(2)}},
        r"`labels`: 'own' must be integers \[16, 12\] or \[16\]",
    ),
    "two ways": ({"forward": states_of, "hidden_states": states_of}, "`forward` is not called if `hidden_states`"),
    "not a function": ({"hidden_states": 3}, r"`hidden_states` must be a function of \(model, batch\), got 3"),
    "no states": ({"hidden_states": lambda model, batch: [token_ids(16)]}, "`hidden_states` must return a tensor"),
    "no layers": ({"forward": lambda model, batch: None, "model": nn.Linear(2, 2)}, "contains no stack of layers"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_named(options, message):
    options = {"model": llama(), **options}
    with pytest.raises(ConfigurationError, match=message):
        probe_layers(options.pop("model"), batches(), **options)


def test_batches_are_needed():
    with pytest.raises(ConfigurationError, match="`batches` is empty"):
        probe_layers(llama(), [])
    with pytest.raises(ConfigurationError, match="`batches` must be a list of batches, got a dict"):
        probe_layers(llama(), batches()[0])


def test_result_is_made_of_plain_values(tmp_path):
    probes = probe_layers(llama(), batches())
    torch.save(vars(probes), tmp_path / "probes.pt")
    again = LayerProbes(**torch.load(tmp_path / "probes.pt", weights_only=True))
    assert str(again) == str(probes)
