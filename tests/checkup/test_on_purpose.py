"""Models that do on purpose what is a fault elsewhere."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    CLIPConfig,
    CLIPModel,
    ConvBertConfig,
    ConvBertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    MarianConfig,
    MarianMTModel,
    XLNetConfig,
    XLNetForSequenceClassification,
)

import attnwatch

VOCABULARY, WIDTH, TOKENS, BATCH = 40, 32, 12, 8
SIZES = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def check(model, batch, forward=None, parameters=None):
    """Return whether each finding of a checkup of one step is a note, by its kind."""
    optimizer = torch.optim.AdamW(parameters or model.parameters())
    checkup = attnwatch.check_training(model, batch, optimizers=optimizer, forward=forward)
    return {each.kind.value: each.is_note for each in checkup.findings}


def padded_texts():
    torch.manual_seed(0)
    lengths = torch.randint(5, TOKENS, (BATCH,))
    mask = (torch.arange(TOKENS) < lengths[:, None]).long()
    ids = torch.randint(1, VOCABULARY, (BATCH, TOKENS)) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(BATCH) % 3}


def texts_with_labels():
    batch = padded_texts()
    labels = (batch["input_ids"] % 3).masked_fill(batch["attention_mask"] == 0, -100)
    return batch | {"labels": labels}


def convolutional():
    config = ConvBertConfig(vocab_size=VOCABULARY, embedding_size=WIDTH, num_labels=3, pad_token_id=0, **SIZES)
    return ConvBertForTokenClassification(config).train()


def test_convolutions_of_transformers_read_padding():
    assert check(convolutional(), texts_with_labels()) == {"padding_leak": True}


@pytest.mark.parametrize("change", ["mask", "hook", "forward"])
def test_leak_is_a_fault_if_the_script_has_a_part_in_it(change):
    model, batch = convolutional(), texts_with_labels()
    if change == "mask":
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    if change == "hook":
        model.convbert.encoder.register_forward_hook(lambda module, args, output: None)
    if change == "forward":
        model.convbert.encoder.forward = functools.wraps(original := model.convbert.encoder.forward)(
            lambda *args, **kwargs: original(*args, **kwargs)
        )
    assert check(model, batch)["padding_leak"] is False


def test_weights_that_token_types_would_need():
    """XLNet is given none."""
    sizes = {"d_model": WIDTH, "n_layer": 2, "n_head": 4, "d_inner": 48}
    model = XLNetForSequenceClassification(XLNetConfig(vocab_size=VOCABULARY, num_labels=3, **sizes)).train()
    ids = torch.randint(1, VOCABULARY, (BATCH, TOKENS))
    assert "broken_gradient_path" not in check(model, {"input_ids": ids, "labels": torch.arange(BATCH) % 3})


@pytest.mark.parametrize("is_changed", [False, True])
def test_table_of_positions_without_a_gradient(is_changed):
    """That of Marian requires one after loading, although it is read under `no_grad`."""
    sizes = {"d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "pad_token_id": 0}
    config = MarianConfig(vocab_size=VOCABULARY, decoder_start_token_id=0, max_position_embeddings=TOKENS, **sizes)
    model = MarianMTModel(config).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("final_logits_bias" not in name)
    if is_changed:
        model.model.encoder.layers[0].register_forward_hook(lambda module, args, output: None)
    ids = torch.randint(1, VOCABULARY, (BATCH, TOKENS))
    found = check(model, {"input_ids": ids, "labels": ids.roll(1, 1)})
    assert found == ({"broken_gradient_path": False} if is_changed else {})


def test_clip_compares_the_sequences_of_a_small_batch():
    vision = SIZES | {"image_size": 16, "patch_size": 4}
    config = CLIPConfig(text_config=SIZES | {"vocab_size": VOCABULARY}, vision_config=vision, projection_dim=16)
    batch = {"input_ids": torch.randint(1, VOCABULARY, (3, TOKENS)), "pixel_values": torch.randn(3, 3, 16, 16)}
    assert check(CLIPModel(config).train(), batch | {"return_loss": True}).get("batch_mixing", True)


def test_right_candidate_first():
    model = BertForMultipleChoice(BertConfig(vocab_size=VOCABULARY, **SIZES)).train()
    optimizer = torch.optim.AdamW(model.parameters())
    with attnwatch.TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(6):
            with checkup.step(step):
                ids = torch.randint(1, VOCABULARY, (BATCH, 4, TOKENS))
                model(input_ids=ids, labels=torch.zeros(BATCH, dtype=torch.long)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert {each.kind.value: each.is_note for each in checkup.findings} == {"empty_batch": True}


class Student(nn.Module):
    """Classifier of features."""

    def __init__(self, *, scale=None):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 48, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(WIDTH, 5)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


class Distillation(nn.Module):
    """Student and teacher in one module, of which the teacher requires gradients, but is called without."""

    def __init__(self, *, copies_inputs=False):
        super().__init__()
        self.student, self.teacher, self.copies_inputs = Student(), Student(), copies_inputs

    def forward(self, x):
        logits = self.student(x)
        with torch.no_grad():
            taught = self.teacher(x.clone() if self.copies_inputs else x)
        return F.kl_div(logits.log_softmax(-1), taught.softmax(-1), reduction="batchmean")


def distil(model, x):
    return model(x)


@pytest.mark.parametrize("has_all", [True, False])
def test_teacher_without_gradients(has_all):
    torch.manual_seed(0)
    model = Distillation()
    parameters = None if has_all else list(model.student.parameters())
    assert not check(model, torch.randn(BATCH, TOKENS, WIDTH), distil, parameters)


def test_layers_without_gradients_are_no_teacher():
    """They read what other layers have computed."""
    torch.manual_seed(0)
    model = Student()
    second = model.encoder.layers[1]
    second.forward = torch.no_grad()(second.forward)
    found = check(model, torch.randn(BATCH, TOKENS, WIDTH), lambda model, x: model(x).square().mean())
    assert found
    assert not any(found.values())


class Momentum(nn.Module):
    """Model that moves its copy in each forward, by assigning the data of the weights, as MoCo v3 does."""

    def __init__(self):
        super().__init__()
        self.base = Student()
        self.moved = copy.deepcopy(self.base).requires_grad_(False)

    def forward(self, x):
        for mine, other in zip(self.base.parameters(), self.moved.parameters(), strict=True):
            other.data = other.data * 0.9 + mine.data * 0.1
        with torch.no_grad():
            target = self.moved(x)
        return F.mse_loss(self.base(x), target)


def test_forward_that_assigns_weights_is_not_repeated():
    torch.manual_seed(0)
    model = Momentum()
    expected = copy.deepcopy(model)
    x = torch.randn(BATCH, TOKENS, WIDTH)
    expected(x)
    optimizer = torch.optim.AdamW(model.base.parameters())
    with attnwatch.TrainingCheckup(model, optimizers=optimizer) as checkup, checkup.step(0):
        model(x).backward()
    for mine, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)
    assert "moved" in checkup.skipped["batch_mixing"]


class Scaled(nn.Module):
    """Layer whose branches begin at almost nothing, as with LayerScale."""

    def __init__(self, size):
        super().__init__()
        self.layer = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.gamma = nn.Parameter(torch.full((WIDTH,), size))

    def forward(self, x):
        return x + self.gamma * self.layer(x, x, x, need_weights=False)[0]


class ScaledNet(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.embedding, self.position_embedding = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.layers, self.head = nn.Sequential(*(Scaled(size) for _ in range(4))), nn.Linear(WIDTH, 5)

    def forward(self, ids):
        x = self.embedding(ids) + 0.02 * self.position_embedding.weight[: ids.shape[1]]
        return self.head(self.layers(x)[:, 0])


@pytest.mark.parametrize("size", [1e-1, 1e-2, 1e-4, 1e-6])
def test_scales_that_begin_at_almost_nothing(size):
    torch.manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (BATCH, TOKENS))
    assert not check(ScaledNet(size), ids, lambda model, ids: F.cross_entropy(model(ids), ids[:, 3] % 5))


class StochasticDepth(nn.Module):
    """Residual layer that is left out at random in train mode."""

    def __init__(self):
        super().__init__()
        self.drop_prob, self.layer = 0.1, nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, x):
        kept = torch.rand(len(x), 1, 1) >= self.drop_prob if self.training else 1.0
        return x + kept * self.layer(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("trains", [True, False])
def test_stochastic_depth_in_eval_mode(trains):
    torch.manual_seed(0)
    model = nn.Sequential(StochasticDepth(), nn.Linear(WIDTH, 5)).train(trains)
    found = check(model, torch.randn(BATCH, TOKENS, WIDTH), lambda model, x: model(x).square().mean())
    assert found == ({} if trains else {"eval_mode": False})


@pytest.mark.parametrize(("rows", "is_found"), [(TOKENS, True), (3, False)])
def test_rows_of_a_table_are_the_same_by_chance(rows, is_found):
    """Sequences of three tokens out of three kinds are 27; a data set of 7 long ones is too small."""
    torch.manual_seed(0)
    texts = torch.randint(0, 3 if rows == 3 else VOCABULARY, (7, rows))
    model = nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), nn.Flatten(), nn.Linear(WIDTH * rows, 5))
    optimizer = torch.optim.AdamW(model.parameters())
    with attnwatch.TrainingCheckup(model, optimizers=optimizer, steps_per_epoch=100) as checkup:
        for step in range(6):
            with checkup.step(step):
                model(texts[torch.randint(0, 7, (BATCH,))]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert ("repeated_batch" in {each.kind.value for each in checkup.findings}) == is_found


def test_last_token_may_be_scored_against_an_end_of_the_text():
    torch.manual_seed(0)
    batch = padded_texts() | {"labels": None}
    sizes = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes)).train()

    def loss(model, batch, *, shown):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        losses = F.cross_entropy(logits.mT, batch["input_ids"][:, 1:], reduction="none")
        weights = batch["attention_mask"][:, shown]
        return (losses * weights).sum() / weights.sum()

    late = check(model, batch, lambda model, batch: loss(model, batch, shown=slice(None, -1)))
    assert late == {"padding_in_loss": True}
    assert not check(model, batch, lambda model, batch: loss(model, batch, shown=slice(1, None)))
