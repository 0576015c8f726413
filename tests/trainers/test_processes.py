"""The callbacks on two processes, under each trainer."""

import numpy as np
import pytest
import torch

from attnwatch.layers import LayerStatistic
from attnwatch.statistics import Statistic
from tests.support.processes import WITHIN_A_BATCH, free_port, on_two_processes
from tests.support.trainings import TRAININGS
from tests.support.versions import EARLY

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")]

SCRIPT = """
import os, sys, warnings
from pathlib import Path
directory, name, port, rank = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "NODE_RANK": "0"}
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
import torch
from attnwatch import Guard, PruningPlan
from tests.support.trainings import TRAININGS
from tests.support.versions import EARLY

warnings.simplefilter("ignore")
torch.set_num_threads(1)
training, results = TRAININGS[name](directory), {}
options = {"steps": 12, **training.two_processes}

monitor = training.callbacks.AttentionMonitor(every_n_steps=2)
run = training.train(monitor, **options)
history = monitor.history
results["values"] = {name: torch.from_numpy(history[name]) for name in (*history.values, *history.layers)}
results["checkup"] = monitor.checkup.results
results |= {"steps": torch.from_numpy(history.steps), "loss": torch.from_numpy(history.loss), "losses": run.losses}


def pruning_and_dropping():
    return (
        training.callbacks.HeadPruning(0.5, guard=Guard(tolerance=10.0, window=2), start=3, end=6, num_cuts=2),
        training.callbacks.TokenDropping(0.5, min_tokens=4, first_layer=0, last_layer=1, criterion="loss"),
    )


run = training.train(*pruning_and_dropping(), save_every=4, **options)
results["removed"] = {site: list(heads) for site, heads in PruningPlan.of(run.model).heads.items()}
results["weights"] = dict(run.model.state_dict())
if name == "lightning" or not EARLY:
    results["resumed"] = dict(training.train(*pruning_and_dropping(), checkpoint=4, **options).model.state_dict())


def importance(model):
    # Each process would remove other heads.
    heads = torch.arange(4.0) if rank else -torch.arange(4.0)
    return {site: heads for site in PruningPlan.of(model).num_heads}


pruning = training.callbacks.HeadPruning(
    0.5, criterion=importance, ranking="layer", start=3, end=6, num_cuts=2, guard=None
)
results["agreed"] = dict(training.train(pruning, **options).model.state_dict())


def poison_one_process(model, step):
    if rank and step == 6:
        model.get_submodule("model.layers.0.self_attn").q_proj.weight.data[0, 0] = torch.nan


monitor = training.callbacks.AttentionMonitor(every_n_steps=2, flush_every=1, on_finding={"non_finite": "stop"})
options |= {"steps": 40, **({"logger": True} if name == "lightning" else {"logging_nan_inf_filter": False})}
results["stopped_at"] = training.train(monitor, before_batch=poison_one_process, **options).num_steps
torch.save(results, directory / f"rank{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module", params=TRAININGS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def processes(name, tmp_path_factory) -> list[dict]:
    """What each of two processes has seen, and the folder of the trainings."""
    directory = tmp_path_factory.mktemp(name)
    results = on_two_processes(SCRIPT, directory, name, free_port(), launch=True)
    return [each | {"directory": directory} for each in results]


def test_history_is_that_of_one_process_with_the_whole_batch(name, processes, tmp_path):
    training = TRAININGS[name](tmp_path)
    alone = training.callbacks.AttentionMonitor(every_n_steps=2)
    training.train(alone, batch=4, steps=12)
    expected = alone.history
    for results in processes:
        assert results["steps"].tolist() == expected.steps.tolist()
        np.testing.assert_allclose(results["loss"], expected.loss, rtol=1e-4)
        for statistic in (*Statistic.registry, *LayerStatistic.registry):
            if statistic not in WITHIN_A_BATCH:
                found = results["values"][statistic]
                np.testing.assert_allclose(found, expected[statistic], rtol=2e-3, atol=2e-4, err_msg=statistic)
    first, second = processes
    for statistic in (*Statistic.registry, *LayerStatistic.registry):
        assert torch.equal(first["values"][statistic], second["values"][statistic]), statistic
    assert first["losses"] != second["losses"]  # they saw different batches


def test_forwards_are_repeated_by_the_checkup(processes):
    for results in processes:
        checked = {name: results["checkup"][name] for name in ("blind_attention", "batch_mixing", "future_leak")}
        assert set(checked.values()) == {"ok"}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_heads_are_removed_alike_and_training_goes_on(processes):
    first, second = processes
    assert first["removed"] == second["removed"]
    assert sum(map(len, first["removed"].values())) == 4
    assert_equal(first["weights"], second["weights"])


def test_resumed_equals_uninterrupted(name, processes):
    if name == "transformers" and EARLY:
        pytest.skip("it can't load the state of an optimizer to the device cpu:0 of several processes")
    for results in processes:
        assert_equal(results["weights"], results["resumed"])


def test_processes_that_would_remove_other_heads_agree_on_the_first_ones(processes):
    first, second = (results["agreed"] for results in processes)
    assert_equal(first, second)
    for layer in range(2):
        assert first[f"model.layers.{layer}.self_attn.kept_heads"].tolist() == [0, 1]


def test_finding_of_one_process_stops_both(name, processes):
    (steps,) = {results["stopped_at"] for results in processes}
    assert 7 <= steps <= 10
    if name == "lightning":
        assert (processes[0]["directory"] / "lightning_logs/version_0").is_dir()
