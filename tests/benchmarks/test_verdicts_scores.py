"""How the benchmark of the verdicts scores: nothing of a task or architecture that is judged may be known."""

import dataclasses
import itertools

import numpy as np
import pytest

from benchmarks.verdicts.attention import Signals
from benchmarks.verdicts.baselines import BASELINES, WORST
from benchmarks.verdicts.outcomes import failed, relative_quality
from benchmarks.verdicts.runs import Recipe, Run, RunStore
from benchmarks.verdicts.scores import (
    LOOKS,
    Predictions,
    detection,
    leads,
    on_plateau_auroc,
    on_the_plateau,
    predict_held_out,
)
from tests.support.histories import noisy


def run(
    task="a",
    number=0,
    *,
    architecture="llama",
    quality=0.9,
    fault="",
    losses=(2.0, 1.0),
    end=0.5,
    observations=100,
) -> Run:
    history = noisy(observations=observations, every=1, seed=number, end=end)
    rng = np.random.default_rng(number)
    series = np.geomspace(*losses, 100) * np.exp(0.02 * rng.normal(size=100))
    return Run(Recipe(task, architecture, fault=fault, seed=number), history, series, series, 100, quality, 0.1)


def runs_of_three_tasks() -> list[Run]:
    runs = []
    for task, architecture in itertools.product("abc", ("llama", "gpt2")):
        of = {"task": task, "architecture": architecture}
        runs += [run(number=number, **of) for number in range(6)]
        runs += [run(number=10 + number, quality=0.2, fault="x", end=0.985, **of) for number in range(6)]
    return runs


def test_run_fails_that_ends_below_what_sound_runs_reach():
    qualities = np.linspace(0.8, 1.0, 11)
    runs = [run(number=number, quality=quality) for number, quality in enumerate(qualities)]
    runs += [run(number=20, quality=0.8, fault="x"), run(number=21, quality=0.1, fault="x")]
    runs.append(run(number=22, quality=float("nan"), fault="x"))
    reached = relative_quality(runs)
    assert reached["a/llama-plain-x-21"] == 0
    assert reached["a/llama-plain-sound-5"] == 1
    # The tenth percentile of the sound runs is 0.82: 0.9 of the way from 0.1 to the median, 0.9; the margin is 0.05.
    outcomes = failed(runs)
    assert {name for name, is_failed in outcomes.items() if is_failed} == {"a/llama-plain-x-21", "a/llama-plain-x-22"}
    worse = [*runs, run(number=23, quality=0.77, fault="x")]
    assert failed(worse)["a/llama-plain-x-23"]


def test_part_of_a_run_knows_nothing_of_the_rest():
    whole = run()
    part = whole.until(0.25)
    assert len(part.losses) == len(part.gradient_norms) == 25
    assert part.history.steps.tolist() == list(range(25))
    assert part.budget == 100


@pytest.mark.parametrize(("task", "architecture"), [("a", "llama"), ("b", "gpt2"), ("c", "llama")])
def test_outcomes_of_the_task_and_of_the_architecture_that_are_judged_are_not_used(task, architecture):
    runs = runs_of_three_tasks()
    parts = {each.name: [each.until(share) for share in LOOKS] for each in runs}
    signals = Signals(parts, LOOKS)
    truth = failed(runs)
    is_close = {each.name: task == each.recipe.task or architecture == each.recipe.architecture for each in runs}
    turned = {name: is_failed != is_close[name] for name, is_failed in truth.items()}
    one, other = (predict_held_out(signals.judge(outcomes), outcomes) for outcomes in (truth, turned))
    judged = [name for name in truth if name.startswith(f"{task}/{architecture}-")]
    assert len(judged) == 12
    for name in judged:
        np.testing.assert_array_equal(one.numbers[name], other.numbers[name])
        np.testing.assert_array_equal(one.flags[name], other.flags[name])
        assert one.alarms[name] == other.alarms[name]


def test_what_tells_them_apart_is_found():
    runs = runs_of_three_tasks()
    parts = {each.name: [each.until(share) for share in LOOKS] for each in runs}
    outcomes = failed(runs)
    scores = detection(predict_held_out(Signals(parts, LOOKS).judge(outcomes), outcomes), outcomes, 0.5)
    assert scores["recall"] == scores["precision"] == scores["auroc"] == scores["auroc_within_tasks"] == 1
    assert scores["false_alarms"] == 0
    nothing = Signals(parts, LOOKS).of("nothing")
    assert detection(predict_held_out(nothing.judge(outcomes), outcomes), outcomes, 0.5)["auroc"] == 0.5


def test_leads_are_shares_of_the_budget_and_of_failing_runs_only():
    outcomes = {"a/1": True, "a/2": True, "a/3": False}
    ours, theirs = (
        Predictions(alarms=alarms)
        for alarms in ({"a/1": 0.1, "a/2": 1.0, "a/3": 0.1}, {"a/1": 0.5, "a/2": 0.25, "a/3": 1})
    )
    np.testing.assert_allclose(leads(ours, theirs, outcomes), [0.4, -0.75])


def test_pairs_on_the_plateau_have_the_same_loss():
    sound, same = run(number=1, losses=(2, 2)), run(number=2, losses=(2, 2), quality=0.1, fault="x")
    higher, falling = (run(number=n, losses=of, quality=0.1, fault="x") for n, of in ((3, (2.5, 2.5)), (4, (2, 1))))
    elsewhere = run("b", 5, losses=(2, 2), quality=0.1, fault="x")
    runs = [sound, same, higher, falling, elsewhere]
    outcomes = {each.name: bool(each.recipe.fault) for each in runs}
    pairs = on_the_plateau({each.name: [each.until(share) for share in LOOKS] for each in runs}, outcomes)
    assert {(failing, other) for failing, other, _ in pairs} == {(same.name, sound.name)}
    numbers = {each.name: np.full(len(LOOKS), each.recipe.seed) for each in runs}
    assert on_plateau_auroc(Predictions(numbers=numbers), pairs) == 1
    numbers[same.name] = numbers[sound.name]
    assert on_plateau_auroc(Predictions(numbers=numbers), pairs) == 0.5


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_are_higher_for_the_worse_run(name):
    calm = run()
    spiked = np.array(calm.losses)
    spiked[80] = 50.0
    worse = (
        run(losses=(2, 2.2)) if "spike" not in name else dataclasses.replace(calm, losses=spiked, gradient_norms=spiked)
    )
    assert BASELINES[name](worse) > BASELINES[name](calm)
    lost = np.append(calm.losses[:50], np.nan)
    if name not in ("plateau", "early stopping"):
        assert BASELINES[name](dataclasses.replace(calm, losses=lost, gradient_norms=lost)) == WORST


def test_stored_run_comes_back(tmp_path):
    kept, store = run(), RunStore(tmp_path)
    store.add(run(number=7))
    store.add(kept)
    store.add(run("b"))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.npz", "b.npz"]
    assert list(store) == ["a/llama-plain-sound-0", "a/llama-plain-sound-7", "b/llama-plain-sound-0"]
    back = store[kept.name]
    assert back.recipe == kept.recipe
    assert (back.budget, back.quality, back.chance) == (kept.budget, kept.quality, kept.chance)
    np.testing.assert_allclose(back.losses, kept.losses, rtol=1e-5)
    for name, values in kept.history.values.items():
        np.testing.assert_allclose(back.history[name], values, rtol=1e-5)


def test_run_that_is_not_stored_is_a_key_error(tmp_path):
    store = RunStore(tmp_path / "new")
    assert not store
    store.add(run())
    assert "a/llama-plain-sound-0" in store
    for name in ("a/llama-plain-sound-1", "c/llama-plain-sound-0"):
        assert name not in store


def test_run_of_the_same_name_is_replaced_and_the_others_stay(tmp_path):
    store = RunStore(tmp_path)
    for kept in (run(number=1), run(quality=0.5), run(quality=0.75)):
        store.add(kept)
    assert {name: each.quality for name, each in store.items()} == {
        "a/llama-plain-sound-0": 0.75,
        "a/llama-plain-sound-1": 0.9,
    }


def test_stored_runs_keep_their_file_when_writing_fails(tmp_path, monkeypatch):
    store = RunStore(tmp_path)
    store.add(run())

    def fail(stream, **arrays):
        stream.write(b"half of a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="no space left"):
        store.add(run(number=1))
    assert list(store) == ["a/llama-plain-sound-0"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_file_of_another_format_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", runs=np.array('{"format": 1, "runs": {}}'))
    with pytest.raises(ValueError, match="format 1; this version reads format 2"):
        RunStore(tmp_path)["a/llama-plain-sound-0"]


def test_statistics_that_were_not_recorded_are_nan(tmp_path):
    kept, store = run(), RunStore(tmp_path)
    values = {name: values for name, values in kept.history.values.items() if name != "distance"}
    store.add(dataclasses.replace(kept, history=dataclasses.replace(kept.history, values=values)))
    history = store[kept.name].history
    assert np.isnan(history["distance"]).all()
    np.testing.assert_array_equal(np.isnan(history["entropy"]), np.isnan(kept.history["entropy"]))


def test_layer_statistics_come_back(tmp_path):
    kept, store = run(), RunStore(tmp_path)
    norms = np.arange(400, dtype=np.float32).reshape(100, 4)
    store.add(dataclasses.replace(kept, history=dataclasses.replace(kept.history, layers={"weight_norm": norms})))
    history = store[kept.name].history
    np.testing.assert_array_equal(history["weight_norm"], norms)
    assert np.isnan(history["gradient_norm"]).all()
