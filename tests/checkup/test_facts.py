"""Faults that one look at a model or its batch shows."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

import attnwatch

VOCABULARY, WIDTH, TOKENS, BATCH, MASK = 60, 32, 12, 8, 2
CONFIG = BertConfig(
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=32,
)


def found_in(model, batch, forward=None):
    """Return the findings of a checkup of one step, by kind."""
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4)
    checkup = attnwatch.check_training(model.train(), batch, optimizers=optimizer, forward=forward)
    return {finding.kind.value: finding for finding in checkup.findings}


def texts():
    torch.manual_seed(0)
    ids = torch.randint(5, VOCABULARY, (BATCH, TOKENS))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_mask_that_hides_all_tokens():
    batch = texts() | {"labels": torch.arange(BATCH) % 2}
    assert not found_in(BertForSequenceClassification(CONFIG), batch)
    batch["attention_mask"] = torch.zeros_like(batch["input_ids"])
    found = found_in(BertForSequenceClassification(CONFIG), batch)
    assert found.keys() == {"mask_inverted"}
    assert "`attention_mask` hides all tokens" in found["mask_inverted"].message


class Scaled(nn.Module):
    """Encoder whose logits are multiplied by a learned temperature, which a function reads."""

    def __init__(self, read):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 48, dropout=0.0, batch_first=True)
        self.embedding, self.encoder = nn.Embedding(VOCABULARY, WIDTH), nn.TransformerEncoder(layer, 1)
        self.positions, self.head = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, 3)
        self.log_temperature, self.read = nn.Parameter(torch.tensor(0.1)), read

    def forward(self, ids):
        states = self.encoder(self.embedding(ids) + self.positions(torch.arange(ids.shape[1])))
        return self.head(states.mean(1)) * self.read(self.log_temperature)


def of_classes(model, batch):
    return F.cross_entropy(model(batch["input_ids"]), torch.arange(BATCH) % 3)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize(
    ("read", "is_lost"),
    [
        (lambda scale: scale.item(), True),
        (lambda scale: scale.exp().item(), True),
        (lambda scale: float(scale), True),
        (lambda scale: scale.exp(), False),
        (lambda scale: scale.exp() + 0 * scale.item(), False),  # read for a log
        (lambda scale: scale.detach().exp(), False),  # may be meant
    ],
)
def test_parameters_that_are_read_as_numbers(read, is_lost):
    torch.manual_seed(0)
    found = found_in(Scaled(read), texts(), of_classes)
    assert found.keys() == ({"no_gradient"} if is_lost else set())
    assert not is_lost or found["no_gradient"].sites == ("log_temperature",)


class OnePlus(nn.LayerNorm):
    """Norm that multiplies by 1 plus its weights."""

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, 1 + self.weight, self.bias)


@pytest.mark.parametrize(
    ("kind", "deviation", "is_wrong"),
    [(nn.LayerNorm, 0.02, True), (nn.RMSNorm, 0.02, True), (OnePlus, 0.02, False), (nn.LayerNorm, 0.0, False)],
)
def test_weights_of_norms_drawn_like_those_of_other_layers(kind, deviation, is_wrong):
    torch.manual_seed(0)
    model = Scaled(torch.exp)
    for layer in model.encoder.layers:
        layer.norm1, layer.norm2 = kind(WIDTH), kind(WIDTH)
        for norm in (layer.norm1, layer.norm2):
            nn.init.normal_(norm.weight, std=deviation) if deviation else None
            nn.init.normal_(norm.bias, std=0.02) if getattr(norm, "bias", None) is not None else None
    found = found_in(model, texts(), of_classes)
    assert found.keys() == ({"initialisation"} if is_wrong else set())
    assert not is_wrong or "2 of 2 norms scale their outputs by random numbers" in found["initialisation"].message


@pytest.mark.parametrize(("shift", "side"), [(0, None), (1, "before"), (-1, "after")])
def test_labels_of_a_masked_language_model_are_not_shifted(shift, side):
    batch = texts()
    hidden = torch.rand(BATCH, TOKENS) < 0.25
    labels = batch["input_ids"].masked_fill(~hidden, -100).roll(-shift, 1)
    batch["input_ids"] = batch["input_ids"].masked_fill(hidden, MASK)
    found = found_in(BertForMaskedLM(CONFIG), batch | {"labels": labels})
    assert found.keys() == ({"labels_shifted_twice"} if side else set())
    assert not side or f"at the tokens {side} the masked ones" in found["labels_shifted_twice"].message


@pytest.mark.parametrize(("scale", "expected"), [(1.0, {}), (0.0, {"empty_batch": True})])
def test_targets_that_are_one_number_are_noted(scale, expected):
    torch.manual_seed(0)
    model = Scaled(torch.exp)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    with attnwatch.TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(6):
            ids = torch.randint(5, VOCABULARY, (BATCH, TOKENS))
            with checkup.step(step):
                F.mse_loss(model(ids)[:, 0], scale * ids[:, 0] / VOCABULARY).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert {finding.kind.value: finding.is_note for finding in checkup.findings} == expected


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("trains_head", [True, False])
def test_new_classifier_beside_adapters_is_noted(trains_head):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = BertForSequenceClassification(CONFIG)
    for name, parameter in model.named_parameters():
        if "LayerNorm" in name:
            nn.init.normal_(parameter, mean=1.0, std=0.1)  # as of a pretrained model
    modules = ["classifier"] if trains_head else None
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query", "value"], modules_to_save=modules))
    found = found_in(model, texts() | {"labels": torch.arange(BATCH) % 2})
    assert {kind: finding.is_note for kind, finding in found.items()} == (
        {} if trains_head else {"frozen_parameters": True}
    )


class TwoHeads(Scaled):
    """Model with an output that the loss may leave out."""

    def __init__(self):
        super().__init__(torch.exp)
        self.second = nn.Linear(WIDTH, 3)

    def forward(self, ids):
        states = self.encoder(self.embedding(ids) + self.positions(torch.arange(ids.shape[1]))).mean(1)
        return self.head(states) * self.read(self.log_temperature), self.second(states)


@pytest.mark.parametrize(
    ("heads", "is_noted"),
    [(lambda step: (0, 0), True), (lambda step: (0, 1), False), (lambda step: (0, 0 if step < 4 else 1), False)],
)
def test_head_that_the_loss_leaves_out_is_noted(heads, is_noted):
    torch.manual_seed(0)
    model = TwoHeads()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    with attnwatch.TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(8):
            with checkup.step(step):
                outputs, labels = model(texts()["input_ids"].roll(step, 1)), torch.arange(BATCH) % 3
                sum(F.cross_entropy(outputs[head], labels) for head in heads(step)).backward()
            optimizer.step()
            optimizer.zero_grad()
    found = {finding.kind.value: finding for finding in checkup.findings}
    assert {kind: finding.is_note for kind, finding in found.items()} == ({"no_gradient": True} if is_noted else {})
    assert not is_noted or found["no_gradient"].sites == ("second.weight",)


@pytest.mark.parametrize("has_learned", [False, True])
def test_embeddings_of_given_vectors_that_stay_frozen(has_learned):
    model = BertForMaskedLM(CONFIG)
    if has_learned:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.normal_(module.weight, 1.0, 0.1)
    batch = texts()
    batch["labels"] = batch["input_ids"].clone()
    vectors = model.bert.embeddings.word_embeddings.weight.detach().clone()
    assert "frozen_parameters" not in found_in(model, batch)
    model.bert.embeddings.word_embeddings = nn.Embedding.from_pretrained(vectors)
    model.cls.predictions.decoder.weight = nn.Parameter(vectors.clone())
    found = found_in(model, batch)
    assert ("frozen_parameters" in found) is not has_learned
    if not has_learned:
        assert found["frozen_parameters"].is_note
        assert "bert.embeddings.word_embeddings.weight" in found["frozen_parameters"].message
