"""Checks of models whose inputs and outputs are arranged in other ways."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, DecisionTransformerConfig, DecisionTransformerModel

import attnwatch
from attnwatch.checkup.padding_marks import padding_by_pattern

VOCABULARY, WIDTH, TOKENS, BATCH = 40, 32, 12, 7


def found_in(model, batch, forward=None):
    """Return the kinds of alarms that a checkup of one step finds, and the checks that it could not do."""
    optimizer = torch.optim.AdamW(model.parameters())
    checkup = attnwatch.check_training(model, batch, optimizers=optimizer, forward=forward)
    return {each.kind.value for each in checkup.findings if not each.is_note}, checkup.skipped.keys()


def positions(length):
    """Return sinusoidal positions [tokens, width]."""
    angles = torch.arange(length)[:, None] / 100 ** (torch.arange(0, WIDTH, 2) / WIDTH)
    return torch.cat([angles.sin(), angles.cos()], 1)


class TokensFirst(nn.Module):
    """Language model of ids [tokens, batch], with the layers of torch in their default layout."""

    def __init__(self, *, diagonal=1, transposes=False):
        super().__init__()
        self.diagonal, self.transposes = diagonal, transposes
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 48, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids):
        ids = ids.T if self.transposes else ids
        x = self.embedding(ids) * WIDTH**0.5 + positions(len(ids))[:, None]
        mask = torch.full((len(ids), len(ids)), -torch.inf).triu(self.diagonal)
        logits = self.head(self.encoder(x, mask=mask))
        return logits.transpose(0, 1) if self.transposes else logits


def next_of_first_axis(model, ids):
    return F.cross_entropy(model(ids[:-1]).flatten(0, 1), ids[1:].flatten())


def next_of_first_axis_by_hand(model, ids):
    return F.nll_loss(model(ids[:-1]).log_softmax(-1).flatten(0, 1), ids[1:].flatten())


@pytest.mark.parametrize("loss", [next_of_first_axis, next_of_first_axis_by_hand])
@pytest.mark.parametrize("diagonal", [1, 2])
def test_tokens_along_the_first_axis(diagonal, loss):
    torch.manual_seed(0)
    found, skipped = found_in(TokensFirst(diagonal=diagonal), torch.randint(0, VOCABULARY, (TOKENS, BATCH)), loss)
    assert found == ({"future_leak"} if diagonal == 2 else set())
    assert not {"future_leak", "batch_mixing", "blind_attention"} & skipped


def test_tokens_along_the_first_axis_without_any_mask():
    torch.manual_seed(0)
    found, _ = found_in(TokensFirst(diagonal=TOKENS), torch.randint(0, VOCABULARY, (TOKENS, BATCH)), next_of_first_axis)
    assert found == {"future_leak"}


class EncoderTokensFirst(TokensFirst):
    """Encoder of ids [tokens, batch] with a mask of the padding, [batch, tokens]."""

    def forward(self, ids, padding):
        x = self.embedding(ids) * WIDTH**0.5 + positions(len(ids))[:, None]
        return self.head(self.encoder(x, src_key_padding_mask=padding))


@pytest.mark.parametrize("knows_padding", [True, False])
def test_tokens_along_the_first_axis_with_padding(knows_padding):
    torch.manual_seed(0)
    ids = torch.randint(1, VOCABULARY, (TOKENS, BATCH))
    padding = torch.arange(TOKENS) >= torch.randint(4, TOKENS, (BATCH, 1))

    def loss(model, ids):
        logits = model(ids, padding if knows_padding else torch.zeros_like(padding))
        return F.cross_entropy(logits[0], ids[1])

    model = EncoderTokensFirst()
    model.embedding.padding_idx = 0
    found, skipped = found_in(model, ids.masked_fill(padding.T, 0), loss)
    assert found == (set() if knows_padding else {"padding_leak"})
    assert not {"padding_leak", "batch_mixing", "order_ignored"} & skipped


def test_model_that_exchanges_the_axes_itself():
    torch.manual_seed(0)

    def loss(model, ids):
        return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    found, skipped = found_in(TokensFirst(transposes=True), torch.randint(0, VOCABULARY, (BATCH, TOKENS)), loss)
    assert not found
    assert not {"future_leak", "batch_mixing"} & skipped


class Core(nn.Module):
    """Language model of ids [batch, tokens]."""

    def __init__(self, *, causal):
        super().__init__()
        self.causal, self.embedding = causal, nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 48, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids, padding=None):
        x = self.embedding(ids) + positions(ids.shape[1])
        mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1) if self.causal else None
        return self.head(self.encoder(x, mask=mask, src_key_padding_mask=padding))


class LossOnly(nn.Module):
    """Model that shifts its labels itself and returns nothing but the loss."""

    def __init__(self, core):
        super().__init__()
        self.core = core

    def forward(self, ids):
        return F.cross_entropy(self.core(ids[:, :-1]).transpose(1, 2), ids[:, 1:])


class Flat(nn.Module):
    """Model that returns the logits of all tokens in rows."""

    def __init__(self, core):
        super().__init__()
        self.core = core

    def forward(self, ids):
        return self.core(ids).flatten(0, 1)


def loss_of_rows(model, ids):
    targets = F.pad(ids[:, 1:], (0, 1), value=-100)
    return F.cross_entropy(model(ids), targets.flatten())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("wrap", "loss"), [(LossOnly, lambda model, ids: model(ids)), (Flat, loss_of_rows)], ids=["loss only", "rows"]
)
def test_outputs_in_rows_or_in_the_loss_only(wrap, loss, causal):
    torch.manual_seed(0)
    found, skipped = found_in(wrap(Core(causal=causal)), torch.randint(0, VOCABULARY, (BATCH, TOKENS)), loss)
    assert "batch_mixing" not in skipped
    assert "blind_attention" not in skipped
    assert found == (set() if causal else {"future_leak"})


class WithLabels(nn.Module):
    """Discriminator that returns what it should find before what it found."""

    def __init__(self):
        super().__init__()
        self.core = Core(causal=False)

    def forward(self, ids):
        scores = self.core(ids)[..., 0]
        return (ids > VOCABULARY // 2).float(), scores


def test_outputs_without_a_gradient_are_no_outputs():
    torch.manual_seed(0)

    def loss(model, ids):
        labels, scores = model(ids)
        return F.binary_cross_entropy_with_logits(scores, labels)

    found, skipped = found_in(WithLabels(), torch.randint(0, VOCABULARY, (BATCH, TOKENS)), loss)
    assert not found
    assert "blind_attention" not in skipped


class Masked(nn.Module):
    """Classifier with a mask that is True at tokens, which it may forget."""

    def __init__(self, *, forgets):
        super().__init__()
        self.core, self.forgets = Core(causal=False), forgets

    def forward(self, x, mask):
        logits = self.core(x, None if self.forgets else ~mask)
        return (logits * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


@pytest.mark.parametrize("forgets", [False, True])
def test_masks_by_other_names(forgets):
    torch.manual_seed(0)
    lengths = torch.randint(4, TOKENS, (BATCH,))
    mask = torch.arange(TOKENS) < lengths[:, None]
    batch = {"x": torch.randint(1, VOCABULARY, (BATCH, TOKENS)) * mask, "mask": mask}
    found, skipped = found_in(
        Masked(forgets=forgets), batch, lambda model, batch: F.cross_entropy(model(**batch), batch["x"][:, 0])
    )
    assert found == ({"padding_leak"} if forgets else set())
    assert "padding_leak" not in skipped


class Pairs(Masked):
    """Model with an output for each pair of tokens."""

    def forward(self, x, mask):
        logits = self.core(x, None if self.forgets else ~mask)
        return logits[:, :, None] + logits[:, None]


@pytest.mark.parametrize("forgets", [False, True])
def test_outputs_of_pairs_with_padding_do_not_count(forgets):
    torch.manual_seed(0)
    mask = torch.arange(TOKENS) < torch.randint(4, TOKENS, (BATCH, 1))
    batch = {"x": torch.randint(1, VOCABULARY, (BATCH, TOKENS)) * mask, "mask": mask}

    def loss(model, batch):
        return (model(**batch).square().mean(-1) * mask[:, None] * mask[..., None]).mean()

    found, skipped = found_in(Pairs(forgets=forgets), batch, loss)
    assert found == ({"padding_leak"} if forgets else set())
    assert "padding_leak" not in skipped


def classifier():
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, num_labels=3, **sizes)).train()


@pytest.mark.parametrize("has_positions", [True, False])
def test_order_of_the_tokens_behind_the_one_that_is_read(has_positions):
    torch.manual_seed(0)
    model = classifier()
    if not has_positions:
        model.bert.embeddings.position_embeddings.register_forward_hook(lambda module, args, output: 0 * output)
    batch = {"input_ids": torch.randint(1, VOCABULARY, (BATCH, TOKENS)), "labels": torch.arange(BATCH) % 3}
    assert found_in(model, batch)[0] == (set() if has_positions else {"order_ignored"})


def test_padding_id_inside_of_texts_is_a_token():
    """As in images whose pixels are tokens: borders are 0, and so are pixels between others."""
    torch.manual_seed(0)
    ids = torch.randint(1, VOCABULARY, (BATCH, TOKENS))
    ids[:, :2], ids[:, 9:] = 0, 0
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(BATCH) % 3}
    assert found_in(classifier(), batch)[0] == {"padding_leak"}
    ids[3, 5] = 0
    assert not found_in(classifier(), batch)[0]


def test_mask_that_drops_tokens_is_no_mask_of_padding():
    torch.manual_seed(0)
    ids = torch.randint(1, VOCABULARY, (BATCH, TOKENS))
    mask = torch.randint(0, 2, ids.shape)
    mask[:, 0] = mask[:, -1] = 1
    found, skipped = found_in(
        classifier(), {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(BATCH) % 3}
    )
    assert not found
    assert "padding_leak" in skipped


def test_mask_that_hides_the_last_token_is_not_inverted():
    """As in recommenders, where it is the target; all texts begin with the same token."""
    torch.manual_seed(0)
    ids = torch.randint(2, VOCABULARY, (BATCH, TOKENS))
    ids[:, 0] = 1
    mask = torch.ones_like(ids)
    mask[:, -1] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(BATCH) % 3}
    assert not found_in(classifier(), batch)[0]
    mask[:, -3:] = 0
    ids[:, :3] = 1
    assert found_in(classifier(), batch)[0] == {"mask_inverted"}


def test_time_steps_are_positions():
    torch.manual_seed(0)
    config = DecisionTransformerConfig(state_dim=5, act_dim=3, hidden_size=WIDTH, n_layer=2, n_head=4, max_ep_len=40)
    batch = {name: torch.randn(BATCH, 10, size) for name, size in (("states", 5), ("actions", 3), ("rewards", 1))}
    batch |= {"returns_to_go": torch.randn(BATCH, 10, 1), "timesteps": torch.arange(10).expand(BATCH, 10)}
    batch |= {"attention_mask": torch.ones(BATCH, 10)}

    def loss(model, batch):
        return F.mse_loss(model(**batch).action_preds, batch["actions"])

    assert not found_in(DecisionTransformerModel(config).train(), batch, loss)[0]
    batch["timesteps"] = (torch.arange(10) - 4).clamp(min=0).expand(BATCH, 10)  # padded on the left
    assert not found_in(DecisionTransformerModel(config).train(), batch, loss)[0]
    batch["timesteps"] = torch.randint(0, 40, (BATCH, 10))
    assert found_in(DecisionTransformerModel(config).train(), batch, loss)[0] == {"order_ignored"}


class Translator(nn.Module):
    """Encoder and decoder, whose ids are arguments with names of one's own."""

    def __init__(self, *, hides_later=True, hides_padding=True, along_tokens=True):
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0), nn.Linear(WIDTH, VOCABULARY)
        self.stacks = nn.Transformer(WIDTH, 4, 1, 1, 48, dropout=0.0, batch_first=True)
        self.register_buffer("table", positions(64)[:, None])
        self.hides_later, self.hides_padding, self.along_tokens = hides_later, hides_padding, along_tokens

    def embed(self, ids):
        table = self.table[: ids.shape[1]].transpose(0, 1) if self.along_tokens else self.table[: ids.shape[0]]
        return self.embedding(ids) + table

    def forward(self, source, written):
        later = torch.ones(written.shape[1], written.shape[1], dtype=torch.bool).triu(1)
        hidden = source == 0
        states = self.stacks(
            self.embed(source),
            self.embed(written),
            tgt_mask=later if self.hides_later else None,
            src_key_padding_mask=hidden,
            tgt_key_padding_mask=written == 0,
            memory_key_padding_mask=hidden if self.hides_padding else None,
        )
        return self.head(states)


def padded(number, length):
    ids = torch.randint(1, VOCABULARY, (number, length))
    return ids.masked_fill(torch.arange(length) >= torch.randint(length // 2, length + 1, (number, 1)), 0)


TRANSLATORS = {
    "sound": ({}, {}, 1, None),
    "decoder without its mask": ({"hides_later": False}, {}, 1, "future_leak"),
    "decoder that sees the padding of the texts": ({"hides_padding": False}, {}, 1, "padding_leak"),
    "positions along the batch": ({"along_tokens": False}, {}, 1, "order_ignored"),
    "padding in the loss": ({}, {"ignore_index": -100}, 1, "padding_in_loss"),
    "labels that are not shifted": ({}, {}, 0, "labels_shifted_twice"),
    "labels that are shifted twice": ({}, {}, 2, "labels_shifted_twice"),
}


@pytest.mark.parametrize("lengths", [(12, 12), (12, 13), (9, 14)])
@pytest.mark.parametrize(("options", "of_loss", "shift", "expected"), TRANSLATORS.values(), ids=TRANSLATORS)
def test_encoder_and_decoder_of_ones_own(options, of_loss, shift, expected, lengths):
    torch.manual_seed(0)
    source, target = padded(6, lengths[0]), padded(6, lengths[1])

    def loss(model, batch):
        logits = model(source, target[:, : -max(shift, 1)])
        scored = target[:, shift : shift + logits.shape[1]]
        return F.cross_entropy(logits.flatten(0, 1), scored.flatten(), **{"ignore_index": 0} | of_loss)

    found, _ = found_in(Translator(**options), None, loss)
    assert found == ({expected} if expected else set())


def test_noise_of_each_place_in_the_batch_is_no_position():
    class Noisy(Translator):
        def embed(self, ids):
            return super().embed(ids) + torch.randn(*ids.shape, WIDTH)

    torch.manual_seed(0)
    batch = padded(6, 12)
    loss = lambda model, batch: F.cross_entropy(model(batch, batch[:, :-1]).mT, batch[:, 1:], ignore_index=0)  # noqa: E731
    assert "order_ignored" not in found_in(Noisy(), batch, loss)[0]


class OfLists(Translator):
    """Encoder that also receives something for each sequence in another form, and repeats it."""

    def __init__(self, number_of):
        super().__init__()
        self.number_of = number_of

    def forward(self, source, about):
        states = self.stacks.encoder(self.embed(source))
        return self.head(
            states + torch.tensor([self.number_of(about, index) for index in range(len(source))])[:, None, None]
        )


@pytest.mark.parametrize(
    ("about", "number_of"),
    [
        ([0.1, 0.9, 0.4, 0.7], lambda about, index: about[index]),  # a list
        (
            torch.tensor([0, 3, 5, 6, 9]),
            lambda about, index: float(about[index + 1] - about[index]),
        ),  # where each begins
        (torch.randn(4 * 4, 3), lambda about, index: float(about[4 * index : 4 * index + 4].mean())),  # by heads
    ],
)
def test_arguments_that_refer_to_sequences_in_other_ways(about, number_of):
    torch.manual_seed(0)
    ids = torch.randint(1, VOCABULARY, (4, 12))
    loss = lambda model, batch: F.cross_entropy(model(ids, about).mT, ids)  # noqa: E731
    found, skipped = found_in(OfLists(number_of), None, loss)
    assert "order_ignored" not in found
    assert "batch_mixing" not in skipped


class OfTimes(nn.Module):
    """Model that adds embeddings of time steps, and switches its own positions off."""

    def __init__(self):
        super().__init__()
        self.embedding, self.times = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(64, WIDTH)
        self.wpe = nn.Embedding(64, WIDTH)
        nn.init.zeros_(self.wpe.weight)
        self.wpe.requires_grad_(False)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 48, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids, timesteps=None):
        x = self.embedding(ids) + self.wpe(torch.arange(ids.shape[1]))
        return self.head(self.encoder(x if timesteps is None else x + self.times(timesteps)))


@pytest.mark.parametrize("are_given", [True, False])
def test_positions_that_are_switched_off_because_time_steps_are_given(are_given):
    torch.manual_seed(0)
    ids, times = torch.randint(0, VOCABULARY, (4, 12)), torch.arange(12).expand(4, 12)
    loss = lambda model, batch: F.cross_entropy(model(ids, times if are_given else None).mT, ids)  # noqa: E731
    found, _ = found_in(OfTimes(), None, loss)
    assert found == (set() if are_given else {"order_ignored"})


class Answers(nn.Module):
    """Causal language model of ids."""

    def __init__(self):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 48, dropout=0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids):
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        states = self.embedding(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.head(self.layer(states, src_mask=mask, is_causal=True))


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("by", [1, 2])
def test_loss_of_only_some_of_the_tokens(first, by):
    torch.manual_seed(0)
    model = Answers().train()

    def loss(model, ids):
        logits, targets = model(ids)[:, first:-by], ids[:, first + by :]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    ids = torch.randint(VOCABULARY, (BATCH, TOKENS))
    checkup = attnwatch.check_training(model, ids, optimizers=torch.optim.AdamW(model.parameters(), 1e-4), forward=loss)
    assert "labels_shifted_twice" in checkup.answered
    assert [each.kind.value for each in checkup.findings] == (["labels_shifted_twice"] if by > 1 else [])


class Shifting(Answers):
    """Model that puts a first token before its inputs and drops the last one."""

    def forward(self, ids):
        return super().forward(torch.cat([torch.zeros_like(ids[:, :1]), ids[:, :-1]], 1))


@pytest.mark.parametrize("by", [0, 1])
def test_model_that_shifts_its_inputs(by):
    torch.manual_seed(0)
    ids = torch.randint(1, VOCABULARY, (BATCH, TOKENS))

    def loss(model, ids):
        return F.cross_entropy(model(ids)[:, : TOKENS - by].flatten(0, 1), ids[:, by:].flatten())

    model = Shifting().train()
    checkup = attnwatch.check_training(model, ids, optimizers=torch.optim.AdamW(model.parameters()), forward=loss)
    found = {each.kind.value: each for each in checkup.findings}
    assert found.keys() == ({"labels_shifted_twice"} if by else set())
    assert not by or "the model shifts its inputs by one" in found["labels_shifted_twice"].message


class Forecaster(nn.Module):
    """Decoder of a series of numbers."""

    def __init__(self, *, is_causal):
        super().__init__()
        self.enter, self.positions = nn.Linear(1, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.layer, self.out = nn.TransformerEncoderLayer(WIDTH, 4, 48, 0.0, batch_first=True), nn.Linear(WIDTH, 1)
        self.is_causal = is_causal

    def forward(self, so_far):
        length = so_far.shape[1]
        states = self.enter(so_far[..., None]) + self.positions(torch.arange(length))
        mask = nn.Transformer.generate_square_subsequent_mask(length) if self.is_causal else None
        return self.out(self.layer(states, src_mask=mask, is_causal=self.is_causal)).squeeze(-1)


SERIES = {
    "next values": (True, 1, set()),
    "next values that are seen": (False, 1, {"future_leak"}),
    "own values of a causal model": (True, 0, {"labels_shifted_twice"}),
    "own values of an autoencoder": (False, 0, set()),
}


@pytest.mark.parametrize(("is_causal", "shift", "expected"), SERIES.values(), ids=SERIES)
def test_series_of_numbers(is_causal, shift, expected):
    torch.manual_seed(0)
    model = Forecaster(is_causal=is_causal).train()

    def loss(model, values):
        return F.mse_loss(model(values[:, :TOKENS]), values[:, shift : TOKENS + shift])

    values = torch.randn(BATCH, TOKENS + 1).cumsum(1)
    checkup = attnwatch.check_training(model, values, optimizers=torch.optim.AdamW(model.parameters()), forward=loss)
    assert {each.kind.value for each in checkup.findings} == expected
    assert all(each.is_note is not bool(shift) for each in checkup.findings)  # a causal autoencoder looks alike


class Wrapped(nn.Module):
    """Encoder whose input or output has another shape than [batch, tokens, …]."""

    def __init__(self, num_features, enter, leave):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(64, WIDTH)
        self.features, self.head = nn.Linear(num_features, WIDTH), nn.Linear(WIDTH, 1)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 48, 0.0, batch_first=True)
        self.mixing, self.enter, self.leave = False, enter, leave

    def forward(self, batch):
        states = self.enter(self, batch)
        states = states + self.positions(torch.arange(states.shape[1]))
        states = self.layer(states.transpose(0, 1)).transpose(0, 1) if self.mixing else self.layer(states)
        return self.leave(self.head(states.mean(1)), len(batch))


LAYOUTS = {
    "choices": (
        torch.randint(1, VOCABULARY, (BATCH, 3, TOKENS)),
        1,
        lambda model, batch: model.embedding(batch.flatten(0, 1)),
        lambda scores, size: scores.view(size, 3),
    ),
    "videos": (
        torch.randn(BATCH, 6, 3, 4, 4),
        48,
        lambda model, batch: model.features(batch.flatten(2)),
        lambda scores, size: scores,
    ),
    "series": (
        torch.randn(BATCH, TOKENS),
        1,
        lambda model, batch: model.features(batch[..., None]),
        lambda scores, size: scores.squeeze(-1),
    ),
    "images": (
        torch.randn(BATCH, 3, 8, 8),
        48,
        lambda model, batch: model.features(F.unfold(batch, 4, stride=4).transpose(1, 2)),
        lambda scores, size: scores,
    ),
}


@pytest.mark.parametrize(("batch", "num_features", "enter", "leave"), LAYOUTS.values(), ids=LAYOUTS)
def test_batches_that_are_no_sequences_of_ids_or_features(batch, num_features, enter, leave):
    torch.manual_seed(0)
    model = Wrapped(num_features, enter, leave).train()

    def found():
        checkup = attnwatch.check_training(
            model,
            batch,
            optimizers=torch.optim.AdamW(model.parameters()),
            forward=lambda model, batch: model(batch).square().mean(),
        )
        assert "batch_mixing" in checkup.answered, checkup.skipped
        return {each.kind.value: each.is_note for each in checkup.findings}

    assert not found()
    model.mixing = True
    is_one = batch.ndim in (2, 4)  # may be one series, or the frames of one video
    assert found() == {"batch_mixing": is_one}


def test_padding_is_known_by_its_pattern():
    torch.manual_seed(0)
    lengths = torch.tensor([12, 5, 9, 7, 4, 10, 6])
    ids = torch.randint(1, VOCABULARY, (BATCH, TOKENS)).masked_fill(torch.arange(TOKENS) >= lengths[:, None], 0)
    assert torch.equal(padding_by_pattern(ids), torch.arange(TOKENS) >= lengths[:, None])
    assert torch.equal(padding_by_pattern(ids.flip(1)), (torch.arange(TOKENS) >= lengths[:, None]).flip(1))
    features = torch.randn(BATCH, TOKENS, 3) * (ids > 0)[..., None]
    assert torch.equal(padding_by_pattern(features), ids == 0)
    ids[0, 3] = 0  # also a word
    assert not padding_by_pattern(ids).any()
    assert not padding_by_pattern(torch.randint(1, VOCABULARY, (BATCH, TOKENS))).any()
