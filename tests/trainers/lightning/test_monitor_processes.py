"""The monitor on two processes."""

import pytest

from tests.support.processes import run_script

pytestmark = pytest.mark.slow

SCRIPT = """
import logging, os, sys, warnings
import lightning.pytorch as pl
import torch
from tests.support.lightning_training import Llama, batches
from attnwatch.lightning import AttentionMonitor

warnings.simplefilter("ignore")
torch.set_num_threads(1)


def poison_one_process(module, batch_idx):
    if batch_idx == 6 and module.global_rank == 1:
        module.model.model.layers[0].self_attn.q_proj.weight.data[0, 0] = torch.nan


monitor = AttentionMonitor(every_n_steps=2, flush_every=1, on_finding={"non_finite": "stop"})
trainer = pl.Trainer(
    max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", callbacks=[monitor], default_root_dir=sys.argv[1],
    enable_progress_bar=False, enable_checkpointing=False, num_sanity_val_steps=0, limit_val_batches=0,
)
pl.seed_everything(0)
trainer.fit(Llama(poison_one_process), batches(80))
with open(f"{sys.argv[1]}/rank{trainer.global_rank}", "w") as file:
    print(trainer.global_step, len(monitor.history), file=file)
"""


def test_finding_of_one_process_stops_both(tmp_path):
    run_script(SCRIPT, tmp_path)
    steps = {int((tmp_path / f"rank{rank}").read_text().split()[0]) for rank in (0, 1)}
    assert len(steps) == 1
    assert steps.pop() < 20  # of 40
    assert (tmp_path / "lightning_logs/version_0").is_dir()
