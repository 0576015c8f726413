"""Curves of deletion and insertion, against rows that are made by hand."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnwatch import ConfigurationError
from attnwatch.explain import compare, deletion_curve, occlude
from attnwatch.explain.faithfulness import area
from tests.support.classifiers import LABELS, batch_of, classifier
from tests.support.versions import BEFORE_5

insertion_curve = functools.partial(deletion_curve, insertion=True)


def log_p(model: nn.Module, batch: dict, sequence: int, hidden: list[int]) -> float:
    mask = batch["attention_mask"][sequence : sequence + 1].clone()
    mask[0, hidden] = 0
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"][sequence : sequence + 1], attention_mask=mask).logits
    return logits.log_softmax(-1)[0, LABELS[sequence]].item()


@pytest.mark.parametrize("curve", [deletion_curve, insertion_curve], ids=["deletion", "insertion"])
def test_classifier_by_hand(curve):
    model, batch = classifier(), batch_of("right")
    scores = torch.randn(3, 12, generator=torch.Generator().manual_seed(4))
    found = curve(model, batch, scores, fractions=[0.0, 0.25, 0.5, 1.0])
    double = copy.deepcopy(model).double().eval()
    for sequence, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        order = sorted(range(length), key=lambda token: -scores[sequence, token])
        base = log_p(double, batch, sequence, [])
        for point, fraction in enumerate((0.0, 0.25, 0.5, 1.0)):
            first = round(length * fraction)
            hidden = order[:first] if curve is deletion_curve else order[first:]
            if BEFORE_5 and len(hidden) == length:
                continue  # what sees nothing depends on the precision there
            expected = base - log_p(double, batch, sequence, hidden)
            assert found.effects[sequence, point].item() == pytest.approx(expected, abs=1e-4)
    assert found.random_effects.shape == (3, 3, 4)
    assert found.is_deletion == (curve is deletion_curve)


def losses(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(input_ids=ids[None], attention_mask=mask[None]).logits[0]
    return F.pad(F.cross_entropy(logits[:-1], ids[1:], reduction="none"), (0, 1), value=torch.nan)


def test_language_model_by_hand():
    from tests.support.models import llama

    model, batch = llama(), batch_of("right")
    batch["input_ids"][:, 0] = 1  # the beginning of the text
    scores = torch.randn(3, 12, generator=torch.Generator().manual_seed(4))
    fractions = [0.0, 0.5, 1.0]
    found = deletion_curve(model, batch, scores, fractions=fractions)
    double = copy.deepcopy(model).double().eval()
    for sequence, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        ids, mask = batch["input_ids"][sequence], batch["attention_mask"][sequence].clone()
        order = sorted(range(1, length), key=lambda token: -scores[sequence, token])
        base, hidden = losses(double, ids, mask), order[: round((length - 1) * 0.5)]
        mask[hidden] = 0
        remain = [token for token in range(1, length - 1) if token not in hidden]
        expected = (losses(double, ids, mask) - base)[remain].mean().item()
        assert found.effects[sequence, 1].item() == pytest.approx(expected, abs=1e-4)
    assert (found.effects[:, 0] == 0).all()
    assert found.effects[:, 2].isnan().all()  # no prediction remains
    torch.testing.assert_close(found.areas, found.effects[:, 1] / 2)


def test_areas_by_hand():
    fractions = torch.tensor([0.0, 0.25, 1.0])
    effects = torch.tensor([[0.0, 2.0, 4.0], [0.0, 2.0, torch.nan], [torch.nan] * 3])
    found = area(fractions, effects)
    assert found[:2].tolist() == [0.25 * 1.0 + 0.75 * 3.0, 1.0]
    assert found[2].isnan()


def test_what_hiding_finds_hurts_more_than_chance():
    model, batch = classifier(), batch_of("right")
    importance = occlude(model, batch).importance
    deleted = deletion_curve(model, batch, importance, num_random=8)
    assert deleted.more_than_random.mean > 0
    assert deletion_curve(model, batch, -importance, num_random=8).more_than_random.mean < 0
    assert insertion_curve(model, batch, importance, num_random=8).more_than_random.mean < 0
    expected = (deleted.areas - deleted.random_areas.mean(0)).mean().item()
    assert deleted.more_than_random.mean == pytest.approx(expected, abs=1e-6)
    assert deleted.area.mean - deleted.random_area.mean == pytest.approx(expected, abs=1e-6)


def test_special_tokens_and_sequences_without_label_are_left_alone():
    model, batch = classifier(), batch_of("right")
    batch["labels"] = torch.tensor([1, -100, 1])
    batch["input_ids"][0, 2] = 44
    scores = torch.zeros(3, 12)
    scores[0, 2] = 9.0
    found = deletion_curve(model, batch, scores, fractions=[0.0, 1 / 11], special_ids=[44])
    assert found.effects[1].isnan().all()
    double = copy.deepcopy(model).double().eval()
    expected = log_p(double, batch, 0, []) - log_p(double, batch, 0, [0])  # equal scores: in the order of the text
    assert found.effects[0, 1].item() == pytest.approx(expected, abs=1e-4)


def test_number_of_forwards_is_what_is_said():
    model, counted = classifier(), [0]
    model.register_forward_pre_hook(lambda module, args: counted.__setitem__(0, counted[0] + 1))
    found = deletion_curve(model, batch_of("right"), torch.randn(3, 12), tokens_per_forward=50)
    assert found.num_forwards == counted[0]


def test_random_orders_depend_on_the_seed():
    model, batch, scores = classifier(), batch_of("right"), torch.zeros(3, 12)
    first = deletion_curve(model, batch, scores, seed=0)
    again = deletion_curve(model, batch, scores, seed=0)
    other = deletion_curve(model, batch, scores, seed=1)
    assert torch.equal(first.random_effects, again.random_effects)
    assert not torch.equal(first.random_effects, other.random_effects)


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        (torch.zeros(2, 2), {}, r"`scores` must be a tensor of shape \[3, 12\] like `input_ids`, got \[2, 2\]"),
        (
            torch.zeros(3, 12),
            {"fractions": [0.5, 0.2]},
            "`fractions` must be at least two ascending numbers between 0 and 1",
        ),
        (torch.zeros(3, 12), {"num_random": 0}, "`num_random` must be an integer of at least 1"),
    ],
)
def test_errors_name_the_argument(scores, options, message):
    with pytest.raises(ConfigurationError, match=message):
        deletion_curve(classifier(), batch_of("right"), scores, **options)


def test_what_is_printed_is_a_line():
    model, batch = classifier(), batch_of("right")
    found = occlude(model, batch)
    told = compare(model, batch, found)
    curve = deletion_curve(model, batch, found.importance)
    known = int(found.importance.isfinite().sum())
    assert str(found).startswith(
        f"{known} of 36 tokens hidden by 'remove', effect 'label', in {found.num_forwards} for"
    )
    assert f"{found.importance.nan_to_num().abs().max():.3g} nats" in str(found)
    assert f"gradient × input {told.gradient.mean():.3f} ±" in str(told)
    assert str(curve).startswith(f"deletion: area {curve.areas.mean():.3f} ± ")
    assert "(3 sequences)" in str(curve.more_than_random)
    assert max(len(str(each).splitlines()) for each in (found, told, curve)) == 1
