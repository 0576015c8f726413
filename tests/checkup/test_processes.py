"""Checkups of trainings on two processes."""

import pytest

from tests.support.processes import free_port, on_two_processes

pytestmark = pytest.mark.slow

SCRIPT = """
import os, sys
from pathlib import Path
directory, port, rank = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from attnwatch import TrainingCheckup
from tests.support.models import VOCABULARY, llama

torch.set_num_threads(1)
dist.init_process_group("gloo")


class Gathering(nn.Module):
    # Language model that waits for the other process in its forward.

    def __init__(self):
        super().__init__()
        self.model = llama()

    def forward(self, input_ids):
        logits = self.model(input_ids=input_ids).logits
        means = [torch.zeros(()) for _ in range(2)]
        dist.all_gather(means, logits.detach().mean())
        return logits


def train(model, watch):
    torch.manual_seed(0)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    torch.manual_seed(rank)
    checkup = TrainingCheckup(wrapped, optimizers=optimizer) if watch else None
    for step in range(12):
        # Only one process has a short batch, and so another number of repeats.
        ids = torch.randint(1, VOCABULARY, (1 if rank and step < 3 else 6, 16))
        with checkup.step(step) if watch else torch.enable_grad():
            output = wrapped(input_ids=ids)
            logits = output if torch.is_tensor(output) else output.logits
            loss = F.cross_entropy(logits[:, :-2].flatten(0, 1), ids[:, 2:].flatten())
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    return checkup, [loss.detach(), *weights]


def results(model):
    torch.manual_seed(0)
    checkup, watched = train(model(), True)
    torch.manual_seed(0)
    _, alone = train(model(), False)
    is_same = all(torch.equal(one, other) for one, other in zip(watched, alone))
    return {"results": checkup.results, "is_same": is_same}


torch.save({"plain": results(llama), "gathering": results(Gathering)}, directory / f"rank{rank}.pt")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_two_processes(SCRIPT, tmp_path_factory.mktemp("checkup"), free_port(), launch=True)


def test_forwards_are_repeated_on_each_process(ranks):
    for rank in ranks:
        results = rank["plain"]["results"]
        assert results["labels_shifted_twice"].startswith("FOUND: each prediction is scored against the token after")
        assert {results[name] for name in ("blind_attention", "batch_mixing", "order_ignored")} == {"ok"}
        assert rank["plain"]["is_same"]


def test_forwards_that_wait_for_other_processes_are_not_repeated(ranks):
    for rank in ranks:
        results = rank["gathering"]["results"]
        assert "waits for the other processes (c10d.allgather_" in results["blind_attention"]
        assert results["not_in_optimizer"] == "ok"
        assert rank["gathering"]["is_same"]
