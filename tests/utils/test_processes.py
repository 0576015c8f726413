"""What one of two processes can't do, none does: all raise, and none waits for another."""

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from attnwatch.utils.processes import gathered, together
from tests.support.processes import on_two_processes

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from tests.utils.test_processes import CASES

torch.set_num_threads(1)
directory, name, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
torch.manual_seed(0)
torch.save(CASES[name](rank), f"{directory}/rank{rank}.pt")
dist.destroy_process_group()
"""


def _raised(call) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _importance(rank: int, backward_on: tuple[int, ...], layers_of=lambda rank: 2):
    """What `values` of a process says, that of one has seen gradients or other sites."""
    from attnwatch import HeadImportance
    from tests.support.models import llama, token_ids

    model = llama()
    importance = HeadImportance(model)
    if rank in backward_on:
        model(input_ids=token_ids(), labels=token_ids()).loss.backward()
        for layer in model.model.layers[layers_of(rank) :]:
            layer.self_attn.o_proj.weight.grad = None
        importance.update()
    found = {}

    def values():
        found.update(importance.values())

    return _raised(values), found


def _pruner(model, optimizer, guard):
    """Of half of the heads after step 1."""
    from attnwatch import HeadImportance
    from attnwatch.heads.options import PruningOptions
    from attnwatch.heads.pruner import HeadPruner
    from attnwatch.heads.schedule import PruningSchedule

    def of_the_first(value):
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    importance = HeadImportance(model, criterion="weight")
    options = PruningOptions(0.5, criterion="weight", start=1, end=2, num_cuts=1, ranking="layer", guard=guard)
    return HeadPruner(
        lambda: [(model, [optimizer])], importance, options, PruningSchedule((1,), (0.5,)), broadcast=of_the_first
    )


def _cut_that_one_process_can_not_make(rank: int):
    from tests.support.models import llama

    model, other = llama(), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([other] if rank else model.parameters())  # the second trains nothing of the model
    pruner = _pruner(model, optimizer, None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cuts = pruner.after_step(1)
    return len(cuts), pruner.heads_left, [str(each.message) for each in caught]


def _metric_that_only_the_first_process_logs(rank: int):
    from attnwatch.heads.guard import Guard
    from tests.support.models import llama

    model = llama()
    pruner = _pruner(model, torch.optim.AdamW(model.parameters()), Guard("accuracy", mode="max", recovery_steps=0))
    taken_back = []
    for step, value in enumerate([0.9, 0.9, 0.1, 0.1]):
        if rank == 0:
            pruner.record(value)
        taken_back.append([cut.taken_back for cut in pruner.after_step(step)])
    return taken_back, pruner.heads_left


def _together(rank: int):
    def make():
        if rank == 1:
            raise ValueError("no memory")
        return "made"

    return _raised(lambda: together(make)), together(lambda: rank)


CASES = {
    "together": _together,
    "a cut": _cut_that_one_process_can_not_make,
    "a metric": _metric_that_only_the_first_process_logs,
    "no gradients on one": lambda rank: _importance(rank, (0,)),
    "no gradients on the first": lambda rank: _importance(rank, (1,)),
    "no gradients anywhere": lambda rank: _importance(rank, ()),
    "other sites": lambda rank: _importance(rank, (0, 1), lambda rank: 2 - rank),
}


def test_without_processes():
    assert gathered(3) == [3]
    assert together(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        together(lambda: 1 // 0)


def test_an_error_of_one_process_is_raised_by_all(tmp_path: Path):
    first, second = on_two_processes(SCRIPT, tmp_path, "together", launch=True)
    assert first == ("RuntimeError: process 1 of 2 failed: ValueError: no memory", 0)
    assert second == ("ValueError: no memory", 1)


def test_what_one_process_can_not_cut_none_cuts(tmp_path: Path):
    first, second = on_two_processes(SCRIPT, tmp_path, "a cut", launch=True)
    assert first[:2] == second[:2] == (0, 1.0)
    assert (len(first[2]), len(second[2])) == (1, 0)  # said once for all processes
    assert "process 1 of 2 failed: ConfigurationError" in first[2][0]


def test_a_metric_that_only_the_first_process_logs_is_judged_by_all(tmp_path: Path):
    first, second = on_two_processes(SCRIPT, tmp_path, "a metric", launch=True)
    assert first == second
    assert first[0][2] == ["accuracy went from 0.9 to 0.1"]
    assert first[1] == 1.0


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("no gradients on one", " on process 1 of 2"),
        ("no gradients on the first", " on process 0 of 2"),
        ("no gradients anywhere", " on process 0, 1 of 2"),
    ],
)
def test_importance_without_gradients_raises_the_same_everywhere(name: str, where: str, tmp_path: Path):
    (first, values), (second, other_values) = on_two_processes(SCRIPT, tmp_path, name, launch=True)
    assert first == second
    assert f"`importance`: no gradients were seen yet{where}; call update() after backward" in first
    assert values == other_values == {}


def test_importance_of_sites_that_one_process_has_not_used_is_the_same_everywhere(tmp_path: Path):
    (raised, values), (_, other_values) = on_two_processes(SCRIPT, tmp_path, "other sites", launch=True)
    assert raised == ""
    assert len(values) == 2
    assert values.keys() == other_values.keys()
    assert all(value.equal(other_values[name]) for name, value in values.items())
