"""The callbacks in the transformers Trainer on two processes."""

import socket

import numpy as np
import pytest
import torch

from attnwatch.statistics import Statistic
from attnwatch.transformers import AttentionMonitor
from tests.support.processes import WITHIN_A_BATCH, on_two_processes
from tests.support.transformers_training import train
from tests.support.versions import EARLY, lacks

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")]

SCRIPT = """
import os, sys, warnings
rank = int(sys.argv[3])
os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
os.environ["MASTER_PORT"] = sys.argv[2]
import torch
from tests.support.models import llama, token_ids
from tests.support.transformers_training import Sequences, train
from tests.support.versions import EARLY
from attnwatch import ConfigurationError, Guard, PruningPlan
from attnwatch.transformers import AttentionMonitor, HeadPruning, LayerProbe, TokenDropping

warnings.simplefilter("ignore")
torch.set_num_threads(1)
options = {"directory": sys.argv[1], "ddp_backend": "gloo", "max_steps": 12}
results = {}

monitor = AttentionMonitor(every_n_steps=2)
train(monitor, **options)
history = monitor.history
results["values"] = {name: torch.from_numpy(history[name]) for name in history.values}
results |= {"steps": torch.from_numpy(history.steps), "loss": torch.from_numpy(history.loss)}

pruning = HeadPruning(0.5, guard=Guard(tolerance=10.0, window=2), start=3, end=6, num_cuts=2)
dropping = TokenDropping(0.5, min_tokens=4, first_layer=0, last_layer=1, criterion="loss")
run = train(pruning, dropping, save_strategy="steps", save_steps=5, **options)
results["removed"] = {site: list(heads) for site, heads in PruningPlan.of(run.model).heads.items()}
results["weights"] = dict(run.model.state_dict())
if not EARLY:
    resumed = train(
        HeadPruning(0.5, guard=Guard(tolerance=10.0, window=2), start=3, end=6, num_cuts=2),
        TokenDropping(0.5, min_tokens=4, first_layer=0, last_layer=1, criterion="loss"),
        save_strategy="no", resume_from_checkpoint=sys.argv[1] + "/checkpoint-5", **options,
    )
    results["resumed"] = dict(resumed.model.state_dict())

probes = {"every_n_steps": 6, "num_splits": 2, "targets": ["position"]}
probing = LayerProbe(batches=[{"input_ids": token_ids(16, seed=rank)}], **probes)
train(probing, **options)
results["probed"] = probing.results[-1][1].accuracy


def gone():
    assert rank == 1, "the file is gone"
    yield {"input_ids": token_ids(16)}


try:
    train(LayerProbe(batches=gone(), **probes), **options)
except (AssertionError, ConfigurationError) as error:
    results["told"] = str(error)

try:
    poisoned = AttentionMonitor(every_n_steps=1, flush_every=1, on_finding={"non_finite": "stop"})
    model = llama()
    if rank:
        model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda module, args, output: output * torch.nan)
    results["stopped_at"] = train(poisoned, model=model, logging_nan_inf_filter=False, **options).state.global_step
except ConfigurationError as error:
    results["error"] = str(error)
torch.save(results, f"{sys.argv[1]}/rank{rank}.pt")
torch.distributed.destroy_process_group()
"""


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> list[dict]:
    return on_two_processes(SCRIPT, tmp_path_factory.mktemp("ddp"), free_port(), launch=True)


def test_history_is_that_of_one_process_with_the_whole_batch(processes, tmp_path):
    alone = AttentionMonitor(every_n_steps=2)
    train(alone, directory=tmp_path, per_device_train_batch_size=4, max_steps=12)
    expected = alone.history
    for results in processes:
        assert results["steps"].tolist() == expected.steps.tolist()
        np.testing.assert_allclose(results["loss"], expected.loss, rtol=1e-4)
        for name in Statistic.registry:
            if name not in WITHIN_A_BATCH:
                np.testing.assert_allclose(results["values"][name], expected[name], rtol=2e-3, atol=2e-4, err_msg=name)
    for name in Statistic.registry:
        assert torch.equal(processes[0]["values"][name], processes[1]["values"][name]), name


def test_heads_are_removed_alike_and_training_goes_on(processes):
    first, second = processes
    assert first["removed"] == second["removed"]
    assert sum(map(len, first["removed"].values())) == 4
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name


@lacks(EARLY, "it can't load the state of an optimizer to the device cpu:0 of several processes")
def test_resumed_equals_uninterrupted(processes):
    for results in processes:
        for name, value in results["weights"].items():
            assert torch.equal(value, results["resumed"][name]), name


def test_all_are_asked_about_the_batches_of_the_first(processes):
    first, second = processes
    assert torch.equal(first["probed"], second["probed"])


def test_batches_that_one_process_cannot_take_are_waited_for_by_none(processes):
    first, second = processes
    assert first["told"].startswith("the file is gone")
    assert second["told"].startswith("the main process could not take batches: AssertionError: the file is gone")


def test_finding_of_one_process_stops_both(processes):
    assert {results["stopped_at"] for results in processes} <= {1, 2, 3}
