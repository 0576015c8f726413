"""Head pruning, token dropping and the monitor in one training: what is compared, and what marks the changes."""

import copy
import itertools
import logging
import statistics

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from lightning.pytorch.loggers import TensorBoardLogger

from attnwatch import Guard, HeadImportance
from attnwatch.callbacks.clock import StepTimes
from attnwatch.dashboard.figures import figures
from attnwatch.heads.options import PruningOptions
from attnwatch.heads.pruner import HeadPruner
from attnwatch.heads.savings import savings
from attnwatch.heads.schedule import PruningSchedule
from attnwatch.lightning import AttentionMonitor, HeadPruning, TokenDropping
from attnwatch.utils.messages import duration
from tests.support.histories import random_history
from tests.support.lightning_loggers import events_of
from tests.support.lightning_training import Llama, train
from tests.support.models import LAYERS, gpt2, token_ids

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")

IDS = token_ids()
SHARES = [0.25, 0.5, 0.75, 1.0]


def prune(seconds, keep_ratio, *, steps=70, guard=None, cuts=(5,)) -> tuple[HeadPruner, list[str]]:
    """A training whose steps take as long, and compute as many of the tokens, as we say."""
    model = gpt2()
    options = PruningOptions(0.5, criterion="random", start=cuts[0], end=cuts[-1], num_cuts=len(cuts), guard=guard)
    schedule = PruningSchedule(tuple(cuts), tuple(0.5 * (index + 1) / len(cuts) for index in range(len(cuts))))
    pruner = HeadPruner(lambda: [(model, [])], HeadImportance(model, criterion="random"), options, schedule)
    news = []
    for step in range(1, steps + 1):
        pruner.record(torch.tensor(1.0))
        news += map(str, pruner.after_step(step, seconds(step), keep_ratio(step)))
    return pruner, news


def test_cut_is_not_blamed_for_tokens_that_return():
    """Steps take twice as long from step 10 on, when all tokens are computed again."""
    guard = Guard(require_speedup=True, recovery_steps=0, window=1)
    pruner, news = prune(lambda step: 0.1 if step <= 10 else 0.2, lambda step: 0.5 if step <= 10 else 1.0, guard=guard)
    assert news == ["4 heads removed after step 5"]
    assert pruner.summary() == "4 of 8 heads removed; the target was 50%"
    pruner, news = prune(lambda step: 0.1 if step <= 10 else 0.2, lambda step: 1.0, guard=guard)
    assert news[-1].endswith("was taken back: a step takes 200 ms, before the first cut 100 ms")


def test_steps_are_compared_at_equal_numbers_of_tokens():
    pruner, news = prune(lambda step: 0.2 if step <= 5 else 0.1, lambda step: 0.5)
    assert "a step took 200 ms before, 100 ms after, with 50% of the tokens; the cut itself" in news[-1]
    assert pruner.summary().endswith("200 ms before the first cut, 100 ms after the last, with 50% of the tokens")
    # Tokens return between the cuts: each has its own comparison, and there is none of both.
    pruner, news = prune(
        lambda step: 0.2 if step <= 30 else 0.4,
        lambda step: 0.5 if step <= 30 else 1.0,
        cuts=(5, 40),
        guard=Guard(require_speedup=True, tolerance=0.05, recovery_steps=0, window=1),
    )
    assert not any("taken back" in line for line in news)
    assert pruner.summary() == "4 of 8 heads removed; the target was 50%"


def test_state_says_at_how_many_tokens_a_cut_was_timed():
    pruner, _ = prune(lambda step: 0.1, lambda step: 0.5, steps=10)
    (kept,) = pruner.state_dict()["cuts"]
    assert (kept["keep_ratio"], kept["seconds_before"], kept["seconds_after"]) == (0.5, 0.1, None)


@given(st.lists(st.tuples(st.sampled_from(SHARES), st.sampled_from(SHARES), st.floats(1e-4, 20)), max_size=12))
def test_what_dropping_tokens_saves_is_of_steps_with_equal_heads(steps):
    times = StepTimes()
    for ratio, heads, seconds in steps:
        times.add(seconds, keep_ratio=ratio, others=heads)
    summary = times.summary(lambda ratio: 1.5)
    for ratio in SHARES[:-1]:
        taken = {
            (r, heads): statistics.median(s for of, h, s in steps if (of, h) == (r, heads))
            for r, heads in itertools.product((ratio, 1.0), SHARES)
            if any((of, h) == (r, heads) for of, h, _ in steps)
        }
        comparable = [h for h in SHARES if (ratio, h) in taken and (1.0, h) in taken]
        said = [part for part in summary.split("; a step took ") if f"with {ratio:.0%} of them" in part]
        if not comparable:
            assert not any("times as fast" in part for part in said)
            continue
        (part,) = said
        matching = [
            h
            for h in comparable
            if f"{duration(taken[ratio, h])} with {ratio:.0%} of them, {duration(taken[1.0, h])} with all: "
            f"{taken[1.0, h] / taken[ratio, h]:.2f} times as fast" in part
        ]
        assert matching
        assert "; 1.50 if cost were linear in tokens" in part
        assert any((f"with {h:.0%} left by other callbacks in both" in part) == (h < 1) for h in matching)


def callbacks(**options):
    dropping = TokenDropping(0.5, min_tokens=2, first_layer=0, last_layer=LAYERS - 1)
    return HeadPruning(0.5, guard=None, **{"start": 4, "end": 8, "num_cuts": 2} | options), dropping


@pytest.mark.parametrize("order", [1, -1], ids=["heads first", "tokens first"])
def test_summary_of_both_compares_steps_with_the_same_heads(order):
    pruning, dropping = callbacks()
    train(*(pruning, dropping)[::order])
    assert dropping.summary().startswith("the layers computed 60% of the tokens; a step took ")
    assert "times as fast, with 50% left by other callbacks in both;" in dropping.summary()
    assert [cut.keep_ratio for cut in pruning.cuts] == [0.5, 0.5]


def test_nothing_is_said_where_no_steps_are_alike():
    """The heads go when the tokens return."""
    pruning, dropping = callbacks(start=16, end=16, num_cuts=1)
    train(pruning, dropping)
    assert dropping.summary() == "the layers computed 60% of the tokens"
    assert "a step took" not in pruning.part._pruner.summary()


def test_cut_has_the_ceiling_of_its_savings():
    monitor, pruning, model = AttentionMonitor(every_n_steps=1), callbacks()[0], Llama()
    unpruned = copy.deepcopy(model)
    train(monitor, pruning, module=model)
    first, second = pruning.cuts
    plan = first.plan
    assert first.speed_ceiling == savings(unpruned, plan, num_tokens=IDS.shape[1]).speed_ceiling > 1
    plan.apply(unpruned)
    assert second.speed_ceiling == savings(unpruned, second.plan, num_tokens=IDS.shape[1]).speed_ceiling
    assert pruning.part.events[0].details["at most"] == first.speed_ceiling


def test_without_a_monitor_no_ceiling_is_known():
    pruning, _ = callbacks()
    train(pruning)
    assert {cut.speed_ceiling for cut in pruning.cuts} == {None}


@pytest.mark.slow
def test_changes_are_marked_and_shortened_sequences_are_named(tmp_path, caplog):
    logger, monitor = TensorBoardLogger(tmp_path), AttentionMonitor(every_n_steps=1)
    pruning, dropping = callbacks()
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        train(monitor, pruning, dropping, module=Llama(), logger=logger)
    remark = (
        "Attention in layers 0 to 1 was observed on sequences shortened to 50% of their tokens from step 0 to 15: its "
        "statistics are not those of full length."
    )
    assert [each.getMessage() for each in caplog.records].count(f"attnwatch: {remark}") == 1
    events = events_of(logger)
    (words,) = events.Tensors("attention/diagnosis/text_summary")[-1:]
    assert remark in words.tensor_proto.string_val[0].decode()
    changes = "step 4: heads removed; step 8: heads removed; step 16: 100% of the tokens"
    assert f"**Changes of the model:** {changes}" in words.tensor_proto.string_val[0].decode()
    (change,) = events.Tensors("tokens/changes/text_summary")
    assert change.tensor_proto.string_val[0].decode() == "100% of the tokens are computed from step 16 on."
    assert [(event.step, event.label) for event in pruning.part.events] == [(4, "heads removed"), (8, "heads removed")]
    assert [(event.step, event.label) for event in dropping.part.events] == [(16, "100% of the tokens")]
    assert pruning.part.description.startswith("4 of 8 heads removed")
    assert dropping.part.description == dropping.summary()
    at_half, whole = monitor.history["max_entropy"][:16], monitor.history["max_entropy"][16:]
    assert np.nanmax(at_half) < np.nanmin(whole)


def test_marks_are_lines_before_the_first_observation_of_what_has_changed():
    drawn = figures(
        random_history(observations=4), [(10, "heads go"), (21, "all tokens"), (99, "not yet"), (0, "at once")]
    )
    axes = drawn["attention_layers/max_logit"].axes[0]
    assert [line.get_xdata()[0] for line in axes.get_lines()] == [0.5, 2.5]
    assert [text.get_text() for text in axes.texts] == ["heads go", "all tokens"]
    assert not drawn["attention_heads/max_logit"].axes[0].get_lines()


@given(st.floats(1e-6, 1e5))
def test_durations_have_three_digits_and_no_exponent(seconds):
    number, unit = duration(seconds).split()
    assert "e" not in number
    assert unit == ("ms" if seconds < 0.9995 else "s")
    value = float(number) / (1e3 if unit == "ms" else 1)
    assert value == pytest.approx(seconds, rel=5.1e-3, abs=1e-7)
