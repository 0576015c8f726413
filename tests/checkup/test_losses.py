"""Checks of losses of any kind, by their calls."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import l1_loss as imported_loss

import attnwatch

WIDTH, TOKENS, BATCH = 32, 6, 16


class Regressor(nn.Module):
    """Encoder of features [batch, tokens, width] with one or several outputs."""

    def __init__(self, outputs=1):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 48, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(WIDTH, outputs)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


def train(loss, *, steps=6, total_steps=None, outputs=1, rate=1e-3):
    """Return the findings in the first steps of a training on the sums of the features."""
    torch.manual_seed(0)
    model = Regressor(outputs).train()
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    with attnwatch.TrainingCheckup(model, optimizers=optimizer, total_steps=total_steps) as checkup:
        for step in range(steps):
            x = torch.randn(BATCH, TOKENS, WIDTH)
            with checkup.step(step):
                loss(model(x), x[:, 0, 0]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return {finding.kind.value: finding for finding in checkup.findings}


@pytest.mark.parametrize("function", [nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss()])
def test_losses_that_are_maximised(function):
    assert train(lambda output, target: -function(output[:, 0], target)).keys() == {"loss_rises"}
    assert not train(lambda output, target: function(output[:, 0], target))


def test_losses_by_names_of_other_modules():
    original = imported_loss
    assert train(lambda output, target: -imported_loss(output[:, 0], target)).keys() == {"loss_rises"}
    assert not train(lambda output, target: imported_loss(output[:, 0], target))
    assert imported_loss is original is F.l1_loss


@pytest.mark.parametrize("sign", [1, -1])
def test_losses_that_are_attributes_of_the_model(sign):
    torch.manual_seed(0)
    model = Regressor()
    model.criterion = F.mse_loss
    optimizer = torch.optim.AdamW(model.parameters())
    with attnwatch.TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(6):
            x = torch.randn(BATCH, TOKENS, WIDTH)
            with checkup.step(step):
                (sign * model.criterion(model(x)[:, 0], x[:, 0, 0])).backward()
                kept = copy.deepcopy(model).criterion
            optimizer.step()
            optimizer.zero_grad()
    assert [finding.kind.value for finding in checkup.findings] == ["loss_rises"] * (sign < 0)
    assert model.criterion is kept is F.mse_loss


def test_one_loss_of_two_may_be_maximised():
    """As in adversarial training."""
    assert not train(lambda output, target: F.mse_loss(output[:, 0], target) - 0.1 * F.mse_loss(output[:, 0], -target))


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_predictions_that_meet_the_targets_of_all_others():
    found = train(nn.MSELoss())
    assert found.keys() == {"labels_unrelated"}
    assert not found["labels_unrelated"].is_note
    assert "mse_loss compares predictions [16, 1] with targets [16]" in found["labels_unrelated"].message
    assert not train(lambda output, target: F.mse_loss(output, target[:, None]))
    assert not train(lambda output, target: F.mse_loss(output[:, 0], target.mean()))  # the same target for all


def test_targets_of_other_samples_are_noted_in_any_loss():
    shuffled = train(
        lambda output, target: F.mse_loss(output[:, 0], target.roll(3)), steps=60, total_steps=500, rate=1e-2
    )
    assert {kind: finding.is_note for kind, finding in shuffled.items()} == {"labels_unrelated": True}
    assert not train(lambda output, target: F.mse_loss(output[:, 0], target), steps=60, total_steps=500, rate=1e-2)


@pytest.mark.parametrize("activation", [torch.sigmoid, lambda output: output])
def test_sigmoid_before_a_loss_that_applies_it(activation):
    found = train(
        lambda output, target: F.binary_cross_entropy_with_logits(activation(output)[:, 0], (target > 0).float())
    )
    assert found.keys() == ({"double_softmax"} if activation is torch.sigmoid else set())


@pytest.mark.parametrize("activation", [torch.softmax, torch.log_softmax])
def test_divergence_of_probabilities_instead_of_their_logarithms(activation):
    def loss(output, target):
        return F.kl_div(activation(output, -1), F.one_hot((target > 0).long(), 3) * 0.7 + 0.1, reduction="batchmean")

    found = train(loss, outputs=3)
    assert found.keys() == ({"double_softmax"} if activation is torch.softmax else set())


def test_probabilities_that_no_softmax_made():
    """Mixtures sum to 1 too, but nobody knows whether they are meant as logits."""

    def loss(output, target):
        shares = output.abs() / output.abs().sum(1, keepdim=True)
        return F.cross_entropy(shares, (target > 0).long())

    assert "double_softmax" not in train(loss, outputs=3)


def test_loss_function_whose_arguments_have_other_names(monkeypatch):
    """Another library may have replaced it; its calls are not seen."""
    mse_loss = F.mse_loss

    def replaced(*predictions_and_targets):
        return mse_loss(*predictions_and_targets)

    monkeypatch.setattr(F, "mse_loss", replaced)
    assert not train(lambda output, target: -F.mse_loss(output[:, 0], target))
    assert F.mse_loss is replaced


def test_rows_at_the_same_place_of_all_sequences_are_not_all_that_is_seen():
    """The number of tokens divides the distance of evenly spaced rows, at which nothing has a target."""

    def loss(model, ids):
        targets = ids.clone()
        targets[:, 0] = -1
        return -F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=-1)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(40, WIDTH), nn.Linear(WIDTH, 40))
    optimizer = torch.optim.AdamW(model.parameters())
    with attnwatch.TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(3):
            with checkup.step(step):
                loss(model, torch.randint(0, 40, (64, 8))).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert "loss_rises" in {finding.kind.value for finding in checkup.findings}
    assert "opposes the gradient of the cross-entropy" in str(checkup)
