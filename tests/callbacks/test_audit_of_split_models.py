"""Audits of a model that is split over two processes: what they say of the whole one, and its training left alone."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from attnwatch.explain import deletion_curve
from attnwatch.lightning import AttentionMonitor, ConfidenceProbe, LayerProbe, OcclusionAudit
from tests.support.language_models import QUESTION, word_tokenizer
from tests.support.lightning_training import BatchModule
from tests.support.models import llama, token_ids
from tests.support.processes import on_two_processes, parallel, sharded
from tests.support.transformers_training import Sequences

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")]

SCRIPT = """
import sys, warnings
import torch
from tests.callbacks.test_audit_of_split_models import audits, contents, fit

warnings.simplefilter("ignore")
torch.set_num_threads(1)
directory, how = sys.argv[1:]
found, (alone, _, _) = audits(), fit(how, directory)
losses, rank, entropy = fit(how, directory, *found)
results = {"alone": alone, "losses": losses, "results": contents(found), "entropy": entropy}
torch.save(results, f"{directory}/rank{rank}.pt")
"""


class Split(BatchModule):
    """A Llama that is whole, sharded (FSDP2) or parallel (its heads)."""

    def __init__(self, how: str):
        super().__init__(None)
        self._how = how

    def configure_model(self) -> None:
        if self.model is None:
            self.model = llama(layers=3).double()  # ranks of what is nearly the same are those of rounding
            if self._how == "sharded":
                sharded(self.model, self.device_mesh["data_parallel"])
            if self._how == "parallel":
                parallel(self.model, self.device_mesh["tensor_parallel"])

    def train_dataloader(self) -> DataLoader:
        """All processes together have four sequences a step."""
        share, first = (2, self.global_rank) if self._how == "sharded" else (1, 0)
        return DataLoader(Sequences(32), 4 // share, sampler=range(first, 32, share))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, foreach=False)


def audits() -> list[pl.Callback]:
    often = {"every_n_steps": 3}
    probes = LayerProbe(**often, num_splits=2, num_batches=4, targets=["position"])
    options = {"tokenizer": word_tokenizer(), "stated": "percentage", "reasons": True, "max_new_tokens": 3}
    return [OcclusionAudit(**often, num_batches=2), probes, ConfidenceProbe([QUESTION], **often, **options)]


def contents(audits: list[pl.Callback]) -> list[list[dict]]:
    return [[vars(found) for _, found in audit.results] for audit in audits]


def fit(how: str, directory, *callbacks: pl.Callback) -> tuple[list[float], int, torch.Tensor]:
    """(this process's losses, its rank, the entropy that the monitor saw)."""
    sizes = {"sharded": (2, 1), "parallel": (1, 2)}
    split = {"strategy": ModelParallelStrategy(*sizes[how]), "devices": 2} if how in sizes else {"devices": 1}
    monitor = AttentionMonitor(every_n_steps=2, flush_every=2)
    trainer = pl.Trainer(
        max_steps=7,
        val_check_interval=4,
        num_sanity_val_steps=0,
        callbacks=[monitor, *callbacks],
        default_root_dir=directory,
        accelerator="cpu",
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **split,
    )
    pl.seed_everything(1, verbose=False)
    module = Split(how)
    trainer.fit(module, val_dataloaders=DataLoader(Sequences(16), 4))
    return module.losses, trainer.global_rank, torch.from_numpy(monitor.history["entropy"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    found = audits()
    losses, _, entropy = fit("whole", tmp_path_factory.mktemp("whole"), *found)
    return {"losses": losses, "entropy": entropy, "results": contents(found)}


@pytest.mark.parametrize("how", ["sharded", "parallel"])
def test_audits_of_a_model_in_two_parts(how, whole, tmp_path):
    first, second = on_two_processes(SCRIPT, tmp_path, how)
    compare(first["results"], second["results"], tolerance=0)
    compare(first["results"], whole["results"], tolerance=1e-3)
    torch.testing.assert_close(first["entropy"], whole["entropy"], rtol=1e-3, atol=1e-4)
    for process in (first, second):
        assert process["losses"] == process["alone"]


DISAGREEING = """
import sys
import torch
import torch.distributed as dist
from tests.support.models import llama, token_ids
from tests.support.processes import parallel
from tests.callbacks.test_audit_of_split_models import curve

torch.set_num_threads(1)
rank = int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=rank, world_size=2)
torch.save(curve(parallel(llama()), seed=rank), f"{sys.argv[1]}/rank{rank}.pt")
"""


def curve(model: torch.nn.Module, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    batch = {"input_ids": token_ids(2)}
    scores = torch.rand(batch["input_ids"].shape, generator=generator)
    return deletion_curve(model, batch, scores).effects


def test_processes_that_would_hide_other_tokens_hide_those_of_the_first(tmp_path):
    """Each forward is one of both, and of other tokens it would have another shape."""
    expected = curve(llama(), seed=0)
    for found in on_two_processes(DISAGREEING, tmp_path, launch=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert not torch.allclose(curve(llama(), seed=1), expected, atol=1e-2, equal_nan=True)


def compare(found: list, expected: list, tolerance: float) -> None:
    pairs = list(zip(tree_leaves(found), tree_leaves(expected), strict=True))
    assert len(pairs) > 100
    for ours, theirs in pairs:
        if isinstance(ours, str):
            assert ours == theirs
        else:
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)
