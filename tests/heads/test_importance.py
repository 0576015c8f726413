"""Every criterion but the gate against a loop or a recorded history, and what is wrong in words."""

import re

import pytest
import torch
from torch import nn

from attnwatch import AttentionRecorder, ConfigurationError, choose_heads, head_importance, prune_heads
from tests.support.importance_models import KINDS, stacked
from tests.support.models import HEAD_DIM, HEADS, LAYERS, bert, gpt2, llama, token_ids


def test_weight_is_the_norm_of_the_output_weights_of_a_head():
    for kind in KINDS.values():
        model = kind.model()
        values = stacked(head_importance(model, "weight"))
        for index, weight in enumerate(kind.output_weights(model).values()):
            for head in range(HEADS):
                columns = weight.narrow(kind.dim, head * HEAD_DIM, HEAD_DIM)
                assert values[index, head].item() == pytest.approx(columns.square().sum().sqrt().item(), rel=1e-6)


def test_random_depends_on_the_seed_only():
    model = bert()
    values = [stacked(head_importance(model, "random", seed=seed)) for seed in (0, 0, 1)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert len(values[0].unique()) == LAYERS * HEADS
    prune_heads(model, {1: [3]})
    torch.testing.assert_close(stacked(head_importance(model, "random"))[1, :3], values[0][1, :3])


@pytest.mark.parametrize(("criterion", "statistic"), [("entropy", "normalized_entropy"), ("max_weight", "max_weight")])
def test_criteria_from_a_history_are_means_of_its_latest_observations(criterion: str, statistic: str):
    model = bert()
    with AttentionRecorder(model, every_n_steps=1, num_query_rows=None) as recorder:
        for step in range(23):
            if step == 10:
                prune_heads(model, {0: [1]})
            with recorder.step(step):
                model(token_ids(seed=step))
        values = head_importance(model, criterion, history=recorder.history)
        recorded = torch.from_numpy(recorder.history()[statistic])[3:]
    assert recorded.shape == (20, LAYERS, HEADS)
    expected = recorded.mean(0)
    assert expected[0, 1].isnan()  # it was removed on the way
    expected = 1 - expected if criterion == "entropy" else expected
    torch.testing.assert_close(stacked(values), expected, equal_nan=True)


def test_head_that_looks_anywhere_goes_first_by_entropy_and_max_weight():
    model = llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight[:HEAD_DIM] *= 1e-3  # logits of almost zero
            layer.self_attn.q_proj.weight[-HEAD_DIM:] *= 30
    with AttentionRecorder(model, num_query_rows=None) as recorder, recorder.step(0):
        model(token_ids())
    for criterion in ("entropy", "max_weight"):
        values = head_importance(model, criterion, history=recorder.history)
        assert (stacked(values).argmin(1) == 0).all()
        assert (stacked(values).argmax(1) == HEADS - 1).all()
        plan = choose_heads(model, values, target=0.5, grouping="within")
        assert all(0 in heads for heads in plan.heads.values())


def test_function_of_the_model():
    model = gpt2()
    sites = ("transformer.h.0.attn", "transformer.h.1.attn")

    def ours(given: nn.Module) -> dict[str, list[float]]:
        assert given is model
        return {sites[1]: [3, 1, 2, 0]}

    prune_heads(model, {1: [2]})
    values = head_importance(model, ours)
    torch.testing.assert_close(values[sites[1]], torch.tensor([3, 1, torch.nan, 0]), equal_nan=True)
    assert list(values) == [sites[1]]


# Errors.


def no_observations():
    with AttentionRecorder(llama()) as recorder:
        return recorder.history


def other_sites():
    model = llama()
    with AttentionRecorder(model, sites=["*.0.*"]) as recorder, recorder.step(0):
        model(token_ids())
    return recorder.history


def site_that_is_not_called():
    modules, x = nn.ModuleList(nn.MultiheadAttention(8, 2) for _ in range(2)), torch.ones(2, 3, 8)
    with AttentionRecorder(modules) as recorder, recorder.step(0):
        modules[0](x, x, x)
    return {"model": modules, "criterion": "max_weight", "history": recorder.history}


LAYER = "'model.layers.%d.self_attn'"
WRONG = {
    "criterion": ({"criterion": "gates"}, "`criterion` must be one of 'entropy', .*got 'gates'"),
    "no criterion": ({"criterion": None}, "`criterion` must be one of .*got None"),
    "no history": (
        {"criterion": "entropy"},
        "`history` must be a recorder's `history` for the head criterion 'entropy'",
    ),
    "empty history": (
        {"criterion": "max_weight", "history": no_observations()},
        f"`history` has no observations of {LAYER % 0}",
    ),
    "sites that are not watched": (
        {"criterion": "entropy", "history": other_sites()},
        f"`history` has no observations of {LAYER % 1}; observe all sites",
    ),
    "site that is not called": (site_that_is_not_called(), "`history` has no observations of '1'; observe all sites"),
    "no gradients": ({}, re.escape("no gradients were seen yet; call update() after backward. If")),
    "no mapping": (
        {"criterion": lambda model: [1, 2]},
        "`criterion` must return numbers for the heads by site, got list",
    ),
    "no numbers": ({"criterion": lambda model: {}}, "`criterion` returned no numbers; the sites are: model.layers.0"),
    "other site": (
        {"criterion": lambda model: {"self_attn": [1]}},
        "`criterion` returned 'self_attn', which is not a site",
    ),
    "other shape": (
        {"criterion": lambda model: {"model.layers.0.self_attn": [1, 2]}},
        r"`criterion` must return one number for each of the 4 heads of the unpruned .*layers.0.*, got shape \[2\]",
    ),
    "no heads": ({"model": nn.Linear(4, 4)}, "`model` has no attention whose heads can be removed. It has none."),
    "unknown layout": (
        {"model": nn.MultiheadAttention(8, 2, add_zero_attn=True)},
        "`model` has no attention whose heads can be removed. MultiheadAttention: the layout",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_errors_say_what_is_wrong(arguments, message: str):
    with pytest.raises(ConfigurationError, match=message):
        head_importance(**{"model": llama(), **arguments})
