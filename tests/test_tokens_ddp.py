"""Token dropping on two processes."""

from pathlib import Path

import pytest
import torch
from processes import on_two_processes

SCRIPT = """
import sys, warnings
import lightning.pytorch as pl
import torch
from test_lightning_monitor import batches
from test_tokens_lightning import Deep
from attnwatch.lightning import TokenDropping

warnings.simplefilter("ignore")
torch.set_num_threads(1)
dropping = TokenDropping(0.5, criterion=sys.argv[2], min_tokens=2)
kept = []


class Noting(Deep):
    def training_step(self, batch, batch_idx):
        choose = dropping.dropper.choose
        dropping.dropper.choose = lambda *args: kept.append(choose(*args)) or kept[-1]
        try:
            return super().training_step(batch, batch_idx)
        finally:
            del dropping.dropper.choose


trainer = pl.Trainer(
    max_steps=6, accelerator="cpu", devices=2, strategy="ddp", callbacks=[dropping], default_root_dir=sys.argv[1],
    enable_progress_bar=False, enable_checkpointing=False, logger=False, num_sanity_val_steps=0, limit_val_batches=0,
)
pl.seed_everything(0)
module = Noting()
trainer.fit(module, batches(80))
state = dropping.dropper.state_dict()
torch.save((module.state_dict(), kept, state), f"{sys.argv[1]}/rank{trainer.global_rank}.pt")
"""


@pytest.mark.parametrize("criterion", ["random", "loss"])
def test_processes_choose_for_themselves_and_stay_equal(tmp_path: Path, criterion):
    (weights, kept, state), (other_weights, other_kept, other_state) = on_two_processes(SCRIPT, tmp_path, criterion)
    for name, value in weights.items():
        assert torch.equal(value, other_weights[name]), name
    assert len(kept) == len(other_kept) == 6
    assert not all(torch.equal(first, second) for first, second in zip(kept, other_kept, strict=True))
    # What was learned of the vocabulary is shared, so that the state of the first process is that of all.
    means, other_means = (each["criterion"].pop("means", torch.zeros(1)) for each in (state, other_state))
    assert state == other_state
    torch.testing.assert_close(means, other_means, equal_nan=True, rtol=0, atol=0)
    assert criterion == "random" or not means.isnan().all()
