"""Alerts of trainings on two processes: the main process alone sends."""

import pytest

from tests.support.alert_server import alert_server
from tests.support.processes import free_port, on_two_processes
from tests.support.trainings import TRAININGS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")]

SCRIPT = """
import os, sys, warnings
from pathlib import Path
directory, name, port, url, rank = Path(sys.argv[1]), *sys.argv[2:5], int(sys.argv[5])
os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "NODE_RANK": "0"}
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
import torch
from tests.support.trainings import TRAININGS

warnings.simplefilter("ignore")
torch.set_num_threads(1)


def poison(model, step):
    if step == 6:
        model.get_submodule("model.layers.0.self_attn").q_proj.weight.data[0, 0] = torch.nan


training = TRAININGS[name](directory)
monitor = training.callbacks.AttentionMonitor(every_n_steps=2, flush_every=1, checkup=False, alert=url)
training.train(monitor, before_batch=poison, steps=12, **training.two_processes)
torch.save({"kinds": [finding.kind.value for finding in monitor.diagnosis.findings]}, directory / f"rank{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("name", TRAININGS)
def test_main_process_alone_sends(name, tmp_path):
    with alert_server() as server:
        results = on_two_processes(SCRIPT, tmp_path, name, free_port(), server.url, launch=True)
        assert [result["kinds"] for result in results] == 2 * [["non_finite"]]
        assert server.titles == ["attnwatch: non_finite at step 6"]
