"""Head pruning in real trainings by each trainer."""

import pytest
import torch

from attnwatch import AttnwatchWarning, ConfigurationError, Guard, PruningPlan
from tests.support.models import HEAD_DIM, HEADS, LAYERS
from tests.support.trainings import STEPS

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")

SITES = [f"model.layers.{layer}.self_attn" for layer in range(LAYERS)]


def pruning(training, target=0.5, **options):
    return training.callbacks.HeadPruning(target, **{"guard": None, "start": 4, "end": 10, "num_cuts": 2, **options})


def refuse_to_begin(model, step):
    raise AssertionError("a step began")


@pytest.mark.parametrize(
    ("training", "options"),
    [
        ("lightning", {}),
        ("lightning", {"accumulate": 2, "clip": 0.1, "bf16": True}),
        ("transformers", {}),
        ("transformers", {"accumulate": 2}),
        ("transformers", {"bf16": True, "clip": 1.0}),
        (
            "transformers",
            {"lr_scheduler_type": "cosine", "warmup_steps": 3, "weight_decay": 0.1, "optim": "adamw_torch"},
        ),
        ("transformers", {"optim": "sgd"}),
    ],
    ids=str,
    indirect=["training"],
)
def test_heads_are_removed_on_schedule_and_training_goes_on(training, options):
    callback, sizes = pruning(training), {}

    def note_sizes(model, step):
        sizes[step] = sum(parameter.numel() for parameter in model.parameters())

    run = training.train(callback, before_batch=note_sizes, **options)
    assert [cut.step for cut in callback.cuts] == [4, 10]
    assert sizes[3] > sizes[4] == sizes[9] > sizes[10] == sizes[STEPS - 1]
    assert PruningPlan.of(run.model).num_removed == LAYERS * HEADS // 2
    assert len(run.losses) == STEPS * options.get("accumulate", 1)
    assert torch.isfinite(torch.tensor(run.losses)).all()
    held = {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in run.model.parameters()}
    before = {name: value.clone() for name, value in run.model.state_dict().items() if "proj" in name}
    training.train(model=run.model, steps=2)
    assert all(not torch.equal(value, run.model.state_dict()[name]) for name, value in before.items())


def test_pruned_step_equals_the_masked_one(training):
    """Two runs with the same batches: in one the heads are cut out, in the other their outputs are set to zero."""
    removed = {f"{training.model_path}{site}": heads for site, heads in zip(SITES, ((2, 3), (0, 1)), strict=True)}

    def unwanted(model):
        return {
            site: torch.tensor([float(head not in heads) for head in range(HEADS)]) for site, heads in removed.items()
        }

    callback = pruning(training, criterion=unwanted, num_cuts=1, start=4, end=4)
    pruned = training.train(callback, steps=8)
    assert dict(callback.cuts[0].plan.heads) == removed

    def mask(model, step):
        if step >= 4:
            for site, heads in removed.items():
                weight = model.get_submodule(site.removeprefix(training.model_path)).o_proj.weight
                for head in heads:
                    weight.data[:, HEAD_DIM * head : HEAD_DIM * (head + 1)] = 0

    masked = training.train(before_batch=mask, steps=8)
    assert pruned.losses == pytest.approx(masked.losses, abs=1e-5)
    kept = masked.model.get_submodule(SITES[0]).o_proj.weight[:, : 2 * HEAD_DIM]
    torch.testing.assert_close(pruned.model.get_submodule(SITES[0]).o_proj.weight, kept, atol=1e-5, rtol=1e-4)


def test_importance_is_read_before_gradients_are_clipped(training):
    importance, plans = [], []
    for clip in (1e-6, 0.0):
        callback = pruning(training, 0.25, start=10, end=10, num_cuts=1)

        def read(model, step, callback=callback):
            if step == 9:
                importance.append(callback.part._importance.state_dict()["sums"])

        training.train(callback, before_batch=read, clip=clip, learning_rate=0.0, steps=11)
        plans.append(callback.cuts[0].plan)
    clipped, whole = importance
    assert clipped.keys() == whole.keys() == {f"{training.model_path}{site}" for site in SITES}
    for site, values in whole.items():
        torch.testing.assert_close(clipped[site], values)
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("training", "options", "logged"),
    [("lightning", {"validate_every": 3}, "validation_loss"), ("transformers", {"logging_steps": 1}, "grad_norm")],
    ids=["lightning", "transformers"],
    indirect=["training"],
)
def test_metric_of_the_guard_that_is_not_logged_is_named_at_the_first_cut(training, options, logged):
    callback = pruning(training, guard=Guard(metric="accuracy"))
    message = f"the metric 'accuracy' was not logged before the first cut.*logged metrics: .*{logged}"
    with pytest.warns(AttnwatchWarning, match=message) as warnings:
        run = training.train(callback, **options)
    assert len([warning for warning in warnings if warning.category is AttnwatchWarning]) == 1
    assert len(run.losses) == STEPS
    assert [cut.step for cut in callback.cuts] == [4, 10]


def test_criterion_that_needs_a_monitor(training):
    with pytest.raises(ConfigurationError, match="`criterion` 'entropy' needs an AttentionMonitor"):
        training.train(pruning(training, criterion="entropy"), before_batch=refuse_to_begin)
    monitor = training.callbacks.AttentionMonitor(every_n_steps=1)
    run = training.train(pruning(training, criterion="entropy"), monitor, steps=12)
    assert PruningPlan.of(run.model).num_removed == LAYERS * HEADS // 2


def test_run_that_is_too_short_is_an_error_before_the_first_step(training):
    with pytest.raises(ConfigurationError, match="`num_cuts`: 9 cuts between steps 2 and 8 do not fit"):
        training.train(pruning(training, num_cuts=9, start=0.1, end=0.4), before_batch=refuse_to_begin)
    with pytest.raises(ConfigurationError, match="`num_cuts`"):
        training.train(pruning(training, end=30), before_batch=refuse_to_begin)
