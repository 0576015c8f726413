"""Batches that are asked about in the transformers Trainer on two processes."""

import pytest
import torch

from tests.support.processes import free_port, on_two_processes

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

torch.save(results, f"{sys.argv[1]}/rank{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> list[dict]:
    return on_two_processes(SCRIPT, tmp_path_factory.mktemp("ddp"), free_port(), launch=True)


def test_all_are_asked_about_the_batches_of_the_first(processes):
    first, second = processes
    assert torch.equal(first["probed"], second["probed"])


def test_batches_that_one_process_cannot_take_are_waited_for_by_none(processes):
    first, second = processes
    assert first["told"].startswith("the file is gone")
    assert second["told"].startswith("the main process could not read batches: AssertionError: the file is gone")
