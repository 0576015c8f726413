"""When cuts are made, when one is taken back, and that nothing of it is left then."""

import copy
import io
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn

from attnwatch import ConfigurationError, Guard, HeadImportance, PruningPlan, prune_heads
from attnwatch.heads.options import PruningOptions
from attnwatch.heads.pruner import HeadPruner
from attnwatch.heads.schedule import PruningSchedule
from attnwatch.heads.snapshot import restore_snapshot, take_snapshot
from tests.support.contents import attributes
from tests.support.head_models import EVERYWHERE, features, output, with_decoder, with_lora
from tests.support.importance_models import encoder
from tests.support.models import HEADS, WIDTH, bert, gpt2, llama, seeded, t5, token_ids

# Schedule.


@pytest.mark.parametrize(
    ("start", "end", "num_cuts", "steps"),
    [
        (0.1, 0.4, 4, (10, 20, 30, 40)),
        (5, 9, 3, (5, 7, 9)),
        (5, 0.5, 2, (5, 50)),
        (0, 0.01, 1, (1,)),
        (0.3, 0.3, 1, (30,)),
        (7, 10, 4, (7, 8, 9, 10)),
        (0.0, 0.99, 2, (1, 99)),
    ],
)
def test_cuts_are_spread_over_the_run(start, end, num_cuts: int, steps: tuple[int, ...]):
    schedule = PruningSchedule.spread(0.5, start=start, end=end, num_cuts=num_cuts, total_steps=100)
    assert schedule.steps == steps
    assert schedule.targets == pytest.approx([0.5 * (index + 1) / num_cuts for index in range(num_cuts)])
    assert schedule.gap == (steps[1] - steps[0] if num_cuts > 1 else None)


AT = st.one_of(st.integers(0, 60), st.floats(0, 1, exclude_max=True))


@given(start=AT, end=AT, num_cuts=st.integers(1, 9), total=st.integers(1, 60), target=st.floats(0.01, 0.99))
def test_every_schedule_is_in_the_run_and_ends_at_the_target(start, end, num_cuts, total, target):
    first, last = (max(at if isinstance(at, int) else round(at * total), 1) for at in (start, end))
    if last >= total or last - first + 1 < num_cuts:
        with pytest.raises(ConfigurationError, match=rf"`num_cuts`: {num_cuts} cuts .* a run of {total} steps"):
            PruningSchedule.spread(target, start=start, end=end, num_cuts=num_cuts, total_steps=total)
        return
    schedule = PruningSchedule.spread(target, start=start, end=end, num_cuts=num_cuts, total_steps=total)
    assert len(schedule.steps) == len(schedule.targets) == num_cuts
    assert sorted(set(schedule.steps)) == list(schedule.steps)
    assert schedule.steps[0] == first
    assert schedule.steps[-1] == (last if num_cuts > 1 else first)
    assert schedule.targets[-1] == pytest.approx(target)


def test_schedule_in_words():
    schedule = PruningSchedule.spread(0.5, start=10, end=30, num_cuts=2, total_steps=100)
    assert str(schedule) == "25% at step 10, 50% at step 30"


# Guard.

HARM = {
    "worse": (Guard(), [1, 1], [1.1, 1.1], "training loss went from 1 to 1.1"),
    "better": (Guard(), [1, 1], [0.5, 0.5], None),
    "within the tolerance": (Guard(), [1, 1], [1.049, 1.049], None),
    "beyond the tolerance": (Guard(), [1, 1], [1.051, 1.051], "training loss went from 1 to 1.051"),
    "no tolerance": (Guard(tolerance=0), [1, 1], [1.001, 1.001], "training loss went from 1 to 1.001"),
    "equal": (Guard(tolerance=0), [1, 1], [1, 1], None),
    "below zero": (Guard(), [-1, -1], [-0.9, -0.9], "training loss went from -1 to -0.9"),
    "below zero, within the tolerance": (Guard(), [-1, -1], [-0.96, -0.96], None),
    "max, worse": (Guard("accuracy", "max"), [0.9], [0.8], "accuracy went from 0.9 to 0.8"),
    "max, better": (Guard("accuracy", "max"), [0.8], [0.9], None),
    "max, within the tolerance": (Guard("accuracy", "max"), [0.9], [0.86], None),
    "nan": (Guard(), [1, 1], [0.5, math.nan], "training loss is no longer finite"),
    "inf": (Guard("accuracy", "max"), [1], [math.inf], "accuracy is no longer finite"),
    "nothing before": (Guard(), [], [9], None),
    "nan before": (Guard(), [math.nan, 1, math.inf], [1.04], None),
    "nan before, worse": (Guard(), [math.nan, 1], [1.06], "training loss went from 1 to 1.06"),
    "only nan before": (Guard(), [math.nan], [9], None),
}


@pytest.mark.parametrize(("guard", "before", "after", "expected"), HARM.values(), ids=HARM)
def test_harm(guard: Guard, before, after, expected):
    assert guard.harm(before, after) == expected


@given(
    before=st.lists(st.floats(-9, 9), min_size=2, max_size=6),
    after=st.lists(st.floats(-9, 9), min_size=2, max_size=6),
    tolerance=st.floats(0, 0.5),
    mode=st.sampled_from(["min", "max"]),
)
def test_harm_is_more_than_tolerance_and_two_standard_errors(before, after, tolerance, mode):
    error = math.sqrt(np.var(before, ddof=1) / len(before) + np.var(after, ddof=1) / len(after))
    worse = np.mean(after) - np.mean(before) if mode == "min" else np.mean(before) - np.mean(after)
    limits = (tolerance * abs(np.mean(before)), 2 * error)
    if all(abs(worse - limit) > 1e-9 for limit in limits):
        harm = Guard(mode=mode, tolerance=tolerance).harm(before, after)
        assert (harm is not None) == all(worse > limit for limit in limits)


@pytest.mark.parametrize(
    ("guard", "steps"),
    [
        (Guard(), (20, 10)),
        (Guard("accuracy"), (20, 1)),
        (Guard(recovery_steps=5), (5, 25)),
        (Guard(recovery_steps=40), (40, 1)),
        (Guard(window=3), (20, 3)),
        (Guard("accuracy", recovery_steps=0, window=2), (0, 2)),
    ],
)
def test_steps_that_do_not_count_and_values_that_do(guard: Guard, steps):
    assert guard.steps(30) == steps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "low"}, "`mode` must be 'min' or 'max', got 'low'"),
        ({"tolerance": -0.1}, "`tolerance` must be a number of at least 0, got -0.1"),
        ({"tolerance": math.nan}, "`tolerance` must be a number of at least 0, got nan"),
        ({"tolerance": "5%"}, "`tolerance` must be a number of at least 0, got '5%'"),
        ({"recovery_steps": -1}, "`recovery_steps` must be an integer of at least 0 or None, got -1"),
        ({"window": 0}, "`window` must be an integer of at least 1 or None, got 0"),
    ],
)
def test_wrong_arguments_of_a_guard_are_named(arguments, message: str):
    with pytest.raises(ConfigurationError, match=message):
        Guard(**arguments)


# Taking back.

KINDS = {
    "llama": (llama, lambda seed: {"input_ids": token_ids(seed=seed)}, {0: [2, 3]}, {1: [0, 3]}),
    "gpt2": (gpt2, lambda seed: {"input_ids": token_ids(seed=seed)}, {1: [0]}, {0: [0, 1, 2, 3], 1: [2]}),
    "bert": (bert, lambda seed: {"input_ids": token_ids(seed=seed)}, {1: [3]}, {0: [1], 1: [0, 1, 2]}),
    "t5": (t5, lambda seed: with_decoder() | {"input_ids": token_ids(seed=seed)}, {0: [0]}, {0: [1], 3: [0, 3]}),
    "lora": (
        with_lora(llama, *EVERYWHERE),
        lambda seed: {"input_ids": token_ids(seed=seed)},
        {0: [2, 3]},
        {1: [0, 1]},
    ),
    "torch": (encoder, lambda seed: {"src": features(5, seed=seed).float()}, {0: [3]}, {0: [1], 1: [0, 2]}),
}


@pytest.mark.parametrize("is_pruned_before", [False, True], ids=["whole", "pruned before"])
@pytest.mark.parametrize("is_stored", [False, True], ids=["kept", "stored"])
@pytest.mark.parametrize(("build", "batch", "first", "second"), KINDS.values(), ids=KINDS)
def test_snapshot_puts_model_and_optimizer_back(build, batch, first, second, is_stored, is_pruned_before):
    """The step after it is that of a run which was never cut, bit for bit; all attributes are as they were."""

    def run(*, cut: bool) -> nn.Module:
        torch.manual_seed(0)
        model = build()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, amsgrad=True)

        def step(seed: int) -> None:
            optimizer.zero_grad()
            output(model, batch(seed)).square().mean().backward()
            optimizer.step()

        step(0)
        if is_pruned_before:
            prune_heads(model, first, optimizers=[optimizer])
        step(1)
        if cut:
            before = attributes(model), str(model)
            snapshot = take_snapshot(model, [optimizer])
            if is_stored:
                torch.save(snapshot, file := io.BytesIO())
                snapshot = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
            prune_heads(model, second, optimizers=[optimizer])
            for seed in (2, 3):
                step(seed)
            restore_snapshot(model, [optimizer], snapshot)
            assert (attributes(model), str(model)) == before
            assert set(optimizer.state) <= set(model.parameters())
        step(4)
        return model

    uncut, restored = run(cut=False), run(cut=True)
    expected, got = uncut.state_dict(), restored.state_dict()
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
    assert PruningPlan.of(restored) == PruningPlan.of(uncut)


def test_pruner_without_a_trainer_cuts_models_alike_and_counts_what_was_gone_before():
    """Also where output projections are frozen, so that gates are in the model while it is cut."""
    model = seeded(lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, 48, dropout=0.0))
    model.self_attn.out_proj.requires_grad_(False)
    prune_heads(model, {0: [1]})
    average = copy.deepcopy(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    options = PruningOptions(0.75, start=2, end=4, num_cuts=2, guard=None)
    schedule = PruningSchedule.spread(0.75, start=2, end=4, num_cuts=2, total_steps=9)
    importance, changes = HeadImportance(model), []
    pruner = HeadPruner(
        lambda: [(model, [optimizer]), (average, [])],
        importance,
        options,
        schedule,
        after_change=lambda: changes.append(PruningPlan.of(model)),
    )
    left = [pruner.heads_left]
    for step in range(1, 6):
        optimizer.zero_grad()
        model(features(5, seed=step).float()).square().sum().backward()
        importance.update()
        optimizer.step()
        pruner.after_step(step)
        left.append(pruner.heads_left)
    assert left == [3 / 4, 3 / 4, 3 / 4, 3 / 4, 1 / 4, 1 / 4]
    assert [cut.step for cut in pruner.cuts] == [4]  # what was gone before is all that the first one wants
    assert len(PruningPlan.of(model).heads["self_attn"]) == 3
    assert PruningPlan.of(average) == PruningPlan.of(model) == changes[-1]
