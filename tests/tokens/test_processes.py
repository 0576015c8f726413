"""Token dropping on two processes."""

from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from attnwatch import TokenCriterion, TokenDropper
from tests.support.models import llama, token_ids
from tests.support.processes import on_two_processes, run_script

pytestmark = pytest.mark.slow

SCRIPT = """
import sys, warnings
import lightning.pytorch as pl
import torch
from tests.support.lightning_training import batches
from tests.support.lightning_training import Deep
from attnwatch.lightning import TokenDropping

warnings.simplefilter("ignore")
torch.set_num_threads(1)
dropping = TokenDropping(0.5, criterion=sys.argv[2], min_tokens=2)
kept = []


class Noting(Deep):
    def training_step(self, batch, batch_idx):
        chooser = dropping.dropper.chooser
        choose = chooser.choose
        chooser.choose = lambda *args: kept.append(choose(*args)) or kept[-1]
        try:
            return super().training_step(batch, batch_idx)
        finally:
            del chooser.choose


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
    learned = [each["criteria"][criterion].pop("losses", {"means": torch.zeros(1)}) for each in (state, other_state)]
    means, other_means = (each["means"] for each in learned)
    assert state == other_state
    torch.testing.assert_close(means, other_means, equal_nan=True, rtol=0, atol=0)
    assert criterion == "random" or not means.isnan().all()


SPLIT = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tests.support.processes import parallel, sharded
from attnwatch import TokenCriterion
from tests.tokens.test_processes import deep, train

torch.set_num_threads(1)
rank = int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=rank, world_size=2)
results, mine = {}, slice(2 * rank, 2 * rank + 2)
for criterion in TokenCriterion.registry:
    results[criterion] = {
        "ddp": train(DistributedDataParallel(deep()), criterion, mine),
        "fsdp": train(sharded(deep()), criterion, mine),
        "tensor parallel": train(parallel(deep()), criterion, slice(0, 4)),
    }
torch.save(results, f"{sys.argv[1]}/rank{rank}.pt")
dist.barrier()
"""


def deep():
    return llama(layers=4)


def train(model, criterion: str, sequences: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The kept tokens, and the weights after it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    dropper, kept = TokenDropper(model.train(), keep_ratio=0.5, min_tokens=2, criterion=criterion), []
    choose = dropper.chooser.choose
    dropper.chooser.choose = lambda *args: kept.append(choose(*args)) or kept[-1]
    with dropper:
        for step in range(4):
            ids = token_ids(4, seed=step)[sequences]
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            dropper.synchronize()
    weights = {name.removeprefix("module."): whole(value).clone() for name, value in model.state_dict().items()}
    return torch.stack(kept), weights


def whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> list[dict]:
    return on_two_processes(SPLIT, tmp_path_factory.mktemp("split"), launch=True)


@pytest.mark.parametrize("criterion", TokenCriterion.registry)
def test_sharded_model_trains_as_a_replicated_one(split, criterion):
    for results in split:
        (kept, weights), (expected_kept, expected) = results[criterion]["fsdp"], results[criterion]["ddp"]
        assert torch.equal(kept, expected_kept)
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)
    assert not torch.equal(*(results[criterion]["fsdp"][0] for results in split))  # each has tokens of its own


@pytest.mark.parametrize("criterion", TokenCriterion.registry)
def test_processes_that_share_the_tokens_choose_alike_and_train_as_one(split, criterion):
    expected_kept, expected = train(deep(), criterion, slice(0, 4))
    for results in split:
        kept, weights = results[criterion]["tensor parallel"]
        assert torch.equal(kept, expected_kept)
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-3)


LATE = """
import sys
import torch
import torch.distributed as dist
from tests.support.models import token_ids
from attnwatch import TokenDropper
from tests.tokens.test_processes import deep

rank = int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=rank, world_size=2)
with TokenDropper(deep().train(), keep_ratio=0.5, min_tokens=2, criterion="loss") as dropper:
    for step in range(3):
        dropper.synchronize()
        ids = token_ids(2, seed=step)
        labels = {"labels": ids} if step and rank == 0 else {}
        dropper._stack.model(input_ids=ids, **labels)
    dropper.synchronize()
torch.save(dropper.state_dict()["criteria"]["loss"]["losses"]["means"], f"{sys.argv[1]}/rank{rank}.pt")
"""


def test_process_without_losses_learns_from_the_others(tmp_path):
    first, second = on_two_processes(LATE, tmp_path, launch=True)
    assert not first.isnan().all()
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


MESHES = """
import sys
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore
from tests.support.models import llama
from tests.support.processes import parallel, sharded
from attnwatch.capture import TensorParallelGroup
from attnwatch.tokens.stacks import choose_stack

dist.init_process_group("fake", store=FakeStore(), rank=7, world_size=8)
flat = init_device_mesh("cpu", (8,))
two = init_device_mesh("cpu", (4, 2), mesh_dim_names=("shards", "heads"))
three = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("replicas", "shards", "heads"))


def unsharded(model):
    # As in a forward.
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
    return model


def parallel_mlps(model):
    plan = {f"mlp.{name}_proj": ColwiseParallel() for name in ("gate", "up")} | {"mlp.down_proj": RowwiseParallel()}
    for layer in model.model.layers:
        parallelize_module(layer, two["heads"], plan)
    return model


def planned(model):
    # As transformers leaves it, where a plan of its own splits what is no DTensor.
    model._device_mesh, model._tp_size = init_device_mesh("cpu", (4, 2), mesh_dim_names=("fsdp", "tp")), 2
    return model


for model, leader in (
    (llama(), 7),
    (sharded(llama(), flat), 7),
    (sharded(llama(), three["replicas", "shards"]), 7),
    (parallel(llama(), flat), 0),
    (parallel(llama(), two["heads"]), 6),
    (sharded(parallel(llama(), two["heads"]), two["shards"]), 6),
    (sharded(parallel(llama(), three["heads"]), three["replicas", "shards"]), 6),
    (unsharded(sharded(llama(), flat)), 7),
    (unsharded(sharded(parallel(llama(), two["heads"]), two["shards"])), 6),
    (unsharded(sharded(parallel(llama(), three["heads"]), three["replicas", "shards"])), 6),
    (parallel_mlps(llama()), 6),
    (sharded(parallel_mlps(llama()), two["shards"]), 6),
    (planned(llama()), 6),
):
    stack = choose_stack(model, None)
    assert TensorParallelGroup(model, stack.layers[0]).leader == leader, (model, leader)
"""


def test_processes_with_the_same_tokens_are_found_in_any_mesh(tmp_path):
    """Seen from the last of eight processes."""
    run_script(MESHES, tmp_path)
