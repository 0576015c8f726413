"""A head criterion from outside of the package: chosen, cut, saved and resumed as those of attnwatch."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import attnwatch
from attnwatch import AttentionRecorder, AttnwatchWarning, ConfigurationError, HeadCriterion, HeadImportance
from attnwatch.lightning import AttentionMonitor
from tests.support.equality import assert_same_weights
from tests.support.head_models import masked
from tests.support.lightning_training import pruning, train
from tests.support.models import HEAD_DIM, HEADS, LAYERS, llama, token_ids

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")

IDS = token_ids()


class Fisher(HeadCriterion):
    """Reads all that a criterion can read."""

    name = "fisher"
    reads = ("gradients", "weights", "normalized_entropy")

    def of_step(self, gradients):
        return gradients.square()

    def scores(self, data):
        return data["gradients"].sqrt() * data["weights"].norm(dim=(1, 2)) * (1 - data["normalized_entropy"])


class Failing(Fisher):
    name, reads = "failing", ()

    def scores(self, data):
        raise RuntimeError("no such head")


class WrongShape(Fisher):
    name, reads = "wrong_shape", ()

    def scores(self, data):
        return torch.zeros(data.num_heads + 1)


class Undeclared(Fisher):
    name, reads = "undeclared", ("weights",)


class UnknownStatistic(Fisher):
    name, reads = "unknown_statistic", ("gini",)


class WrongSteps(Fisher):
    name = "wrong_steps"

    def of_step(self, gradients):
        return gradients.sum()


@pytest.mark.parametrize("given", ["fisher", Fisher, Fisher()], ids=["name", "class", "instance"])
def test_heads_with_the_lowest_scores_go(registered, given):
    registered(Fisher)
    model, expected = llama(), torch.zeros(LAYERS, HEADS)
    with AttentionRecorder(model, every_n_steps=1, num_query_rows=None) as recorder:
        importance = HeadImportance(model, criterion=given, history=recorder.history)
        for step in (0, 1):
            with recorder.step(step):
                model.zero_grad()
                model(input_ids=IDS, labels=IDS).loss.backward()
            importance.update()
            expected += torch.stack([gate_gradients(layer.self_attn) for layer in model.model.layers]).square()
        entropy = torch.from_numpy(recorder.history()["normalized_entropy"]).mean(0)
    weights = torch.stack([by_head(layer.self_attn.o_proj.weight) for layer in model.model.layers])
    expected = expected.sqrt() * weights.norm(dim=(2, 3)) * (1 - entropy)
    values = importance.values()
    torch.testing.assert_close(torch.stack(list(values.values())), expected)
    plan = attnwatch.choose_heads(model, values, target=0.25, grouping="within")
    heads = {layer: list(plan.heads[site]) for layer, site in enumerate(values) if site in plan.heads}
    without = masked(model, heads)
    plan.apply(model)
    torch.testing.assert_close(model(IDS).logits, without(IDS).logits)


def by_head(weight):
    return weight.detach().unflatten(1, (HEADS, HEAD_DIM)).movedim(1, 0)


def gate_gradients(attention):
    weight = attention.o_proj.weight
    return (by_head(weight) * by_head(weight.grad)).sum((1, 2))


@pytest.mark.slow
def test_resumed_run_cuts_the_same_heads(registered, tmp_path):
    registered(Fisher)

    def run(**more):
        callback = pruning(criterion="fisher", grouping="within")
        saves = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
        return callback, train(AttentionMonitor(every_n_steps=2), callback, saves, limit_train_batches=4, **more)

    whole, expected = run()
    assert [cut.step for cut in whole.cuts] == [4, 10]
    resumed, module = run(ckpt_path=tmp_path / "step=8.ckpt")
    assert [cut.plan for cut in resumed.cuts] == [cut.plan for cut in whole.cuts]
    assert_same_weights(module, expected)


def test_gradients_of_another_criterion_are_left_out_on_resume(registered):
    registered(Fisher)
    model = llama()
    before, after = HeadImportance(model), HeadImportance(model, criterion="fisher", history=lambda: None)
    model(input_ids=IDS, labels=IDS).loss.backward()
    before.update()
    state = before.state_dict()
    after.load_state_dict(state)
    with pytest.raises(ConfigurationError, match="no gradients were seen yet"):
        after.values()
    before.reset()
    before.load_state_dict(state)
    assert len(before.values()) == LAYERS


def test_criterion_that_reads_a_statistic_needs_a_monitor(registered):
    registered(Fisher)
    with pytest.raises(
        ConfigurationError, match=r"`criterion` 'fisher' needs an AttentionMonitor .* as it reads normalized_entropy"
    ):
        train(pruning(criterion="fisher"), steps=2)
    with pytest.raises(ConfigurationError, match="`history` must be a recorder's `history` for the head criterion 'fi"):
        HeadImportance(llama(), criterion="fisher")


def test_names_are_listed(registered):
    registered(Fisher)
    for use in (lambda: pruning(criterion="gates"), lambda: HeadImportance(llama(), criterion="gates")):
        with pytest.raises(ConfigurationError, match=r"`criterion` must be one of 'entropy', .*'fisher', or a He"):
            use()


WRONG = {
    "failing": (Failing, "'failing' .* failed with RuntimeError: no such head"),
    "wrong shape": (WrongShape, r"'wrong_shape' .* must return one number for each of the 4 heads .*shape \[5\]"),
    "undeclared": (Undeclared, "'undeclared' .* failed .*'gradients' is not in `reads`, which has: weights"),
    "statistic": (
        UnknownStatistic,
        "'unknown_statistic' .* reads 'gini'; it must be one of 'gradients', 'weights', 'content_sensitivity', ",
    ),
    "steps": (WrongSteps, r"`of_step` of the head criterion 'wrong_steps' .* shape \[4\], got \[\]"),
}


@pytest.mark.parametrize(("criterion", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(criterion, message):
    model = llama()
    with AttentionRecorder(model) as recorder, recorder.step(0):
        model(input_ids=IDS, labels=IDS).loss.backward()
    with pytest.raises(ConfigurationError, match=message):
        attnwatch.head_importance(model, criterion, history=recorder.history)


@pytest.mark.parametrize("criterion", [Failing, WrongShape])
def test_training_goes_on_without_cuts(criterion):
    callback = pruning(criterion=criterion)
    with pytest.warns(AttnwatchWarning, match=f"no heads were removed after step 4, .*{criterion.name}"):
        module = train(callback)
    assert callback.cuts == []
    assert len(module.losses) == 20


def declared(**attributes):
    return type("Mine", (HeadCriterion,), {"scores": Fisher.scores, "name": "mine", **attributes})


UNDECLARED = {
    "no name": ({"name": None}, "must have a `name` of lower-case letters"),
    "no scores": ({"scores": HeadCriterion.scores}, r"'mine' .* must have a method `scores\(self, data\)`"),
    "reads text": ({"reads": "gradients"}, "'mine' .* must have a tuple of names `reads`, got 'gradients'"),
    "reads numbers": ({"reads": (1,)}, r"must have a tuple of names `reads`, got \(1,\)"),
    "taken name": ({"name": "gate"}, r"'gate' \(.*Mine\) has the name of the head criterion 'gate' \(attnwatch"),
}


@pytest.mark.parametrize(("attributes", "message"), UNDECLARED.values(), ids=UNDECLARED)
def test_wrong_declarations_are_named(attributes, message):
    with pytest.raises(ConfigurationError, match=message):
        attnwatch.register(declared(**attributes))
