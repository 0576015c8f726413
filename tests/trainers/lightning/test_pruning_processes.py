"""Head pruning on two processes."""

import pytest
import torch

from tests.support.processes import on_two_processes

pytestmark = pytest.mark.slow

SCRIPT = """
import logging, sys, warnings
import lightning.pytorch as pl
import torch
from tests.support.lightning_training import Llama, batches
from attnwatch.lightning import HeadPruning

warnings.simplefilter("ignore")
torch.set_num_threads(1)


def importance(model):
    # Each process would remove other heads.
    heads = torch.arange(4.0) if trainer.global_rank else -torch.arange(4.0)
    return {f"model.model.layers.{layer}.self_attn": heads for layer in range(2)}


criterion = importance if sys.argv[2] == "differs" else "gate"
pruning = HeadPruning(0.5, criterion=criterion, ranking="layer", start=3, end=6, num_cuts=2, guard=None)
trainer = pl.Trainer(
    max_steps=12, accelerator="cpu", devices=2, strategy="ddp", callbacks=[pruning], default_root_dir=sys.argv[1],
    enable_progress_bar=False, enable_checkpointing=False, logger=False, num_sanity_val_steps=0, limit_val_batches=0,
)
pl.seed_everything(0)
module = Llama()
trainer.fit(module, batches(80))
torch.save((module.state_dict(), module.losses), f"{sys.argv[1]}/rank{trainer.global_rank}.pt")
"""


def assert_equal_processes(results) -> None:
    (first, losses_of_first), (second, losses_of_second) = results
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert losses_of_first != losses_of_second  # they saw different batches


def test_processes_stay_equal_after_cuts(tmp_path):
    results = on_two_processes(SCRIPT, tmp_path, "gate")
    assert_equal_processes(results)
    state = results[0][0]
    assert sum(len(value) for name, value in state.items() if name.endswith("kept_heads")) == 4


def test_processes_that_would_remove_other_heads_agree_on_the_first_ones(tmp_path):
    results = on_two_processes(SCRIPT, tmp_path, "differs")
    assert_equal_processes(results)
    for layer in range(2):
        assert results[0][0][f"model.model.layers.{layer}.self_attn.kept_heads"].tolist() == [0, 1]
