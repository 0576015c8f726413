"""One history for two processes."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attnwatch import AttentionRecorder
from attnwatch.recorder.processes import flush_bytes
from attnwatch.statistics import Statistic
from tests.support.models import GPT, FusedAttention, llama, seeded, token_ids
from tests.support.processes import WITHIN_A_BATCH, on_two_processes

pytestmark = pytest.mark.slow


SCRIPT = """
import sys
import torch
import torch.distributed as dist
from attnwatch import AttentionRecorder, ConfigurationError, prune_heads
from tests.support.models import llama
from tests.support.processes import parallel, sharded
from tests.recorder.test_processes import OPTIONS, routed, train, with_negative_logits

torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=int(sys.argv[2]), world_size=2)
rank, sent, reduce = dist.get_rank(), [], dist.all_reduce


def counted(tensor, *args, **options):
    sent.append(tensor.numel() * tensor.element_size())
    return reduce(tensor, *args, **options)


def run(model, sequences=slice(2 * rank, 2 * rank + 2), fails=False):
    sent.clear()
    with AttentionRecorder(model, across_processes=True, **OPTIONS) as recorder:
        if fails:
            recorder._capture.fail(recorder._capture.sites[0], ValueError("mine"))
        try:
            dist.all_reduce = counted
            train(model, recorder, sequences)
        except ConfigurationError as error:
            return {"error": str(error), "sent": list(sent)}
        finally:
            dist.all_reduce = reduce
        history = recorder.history()
        again = AttentionRecorder(model, across_processes=True, **OPTIONS)
        again.load_state_dict(recorder.state_dict())
    values = {name: torch.from_numpy(history[name]) for name in (*history.values, *history.layers)}
    steps, loss = torch.from_numpy(history.steps), torch.from_numpy(history.loss)
    resumed = torch.from_numpy(again.history()["entropy"])
    seen = {"sites": history.sites, "values": values, "steps": steps, "loss": loss}
    return {**seen, "resumed": resumed, "sent": list(sent)}


def refusal(model):
    try:
        prune_heads(model, {0: [0]})
    except ConfigurationError as error:
        return str(error)


results = {
    "refused": [refusal(sharded(llama())), refusal(parallel(llama()))],
    "sound": run(llama()),
    "negative": run(parallel(with_negative_logits()), slice(0, 4)),
    "blind": run(llama(), fails=rank == 1),
    "fsdp": run(sharded(llama())),
    "tensor parallel": run(parallel(llama()), slice(0, 4)),
    "routed": run(routed(rank)),
    "other model": run(llama(layers=2 + rank)),
}
torch.save(results, f"{sys.argv[1]}/rank{rank}.pt")
dist.barrier()
"""
OPTIONS = {"every_n_steps": 2, "num_query_rows": 5, "flush_every": 3}


OF_OUTPUTS = ("output_norm", "output_kurtosis", "token_cosine")


def train(model, recorder, sequences: slice) -> None:
    for step in range(13):
        ids = token_ids(4, seed=step)[sequences]
        with recorder.step(step):
            loss = model(input_ids=ids, labels=ids).loss
            recorder.record_loss(loss)
    recorder.flush(finish_step=True)


def with_negative_logits():
    model = llama()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.neg_()
    return model


class Routed(GPT):
    """Runs the last layer and the one of its number."""

    def __init__(self, number: int):
        super().__init__(layers=3)
        for layer in self.layers:
            layer["attention"] = DynamicAttention()
        self.number = number

    def forward(self, input_ids, labels):
        x = self.embedding(input_ids)
        for layer in (self.layers[self.number], self.layers[2]):
            x = x + layer["attention"](layer["norm"](x))
        return SimpleNamespace(loss=self.head(x).square().mean())


class DynamicAttention(FusedAttention):
    """No code tells which function it calls."""

    def forward(self, x):
        attend = importlib.import_module("tests.support.hidden_" + "attention").attend
        return self.output(attend(*self.heads(x)).transpose(1, 2).flatten(2))


def routed(number: int) -> Routed:
    return seeded(lambda: Routed(number))


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> list[dict]:
    return on_two_processes(SCRIPT, tmp_path_factory.mktemp("processes"), launch=True)


def alone(model, sequences=slice(0, 4)):
    with AttentionRecorder(model, **OPTIONS) as recorder:
        train(model, recorder, sequences)
        return recorder.history()


def test_history_is_the_same_on_all_and_that_of_the_whole_batch(processes):
    first, second = (results["sound"] for results in processes)
    expected = alone(llama())
    assert first["steps"].tolist() == expected.steps.tolist() == [0, 2, 4, 6, 8, 10, 12]
    np.testing.assert_allclose(first["loss"], expected.loss, rtol=1e-5)
    assert torch.equal(first["loss"], second["loss"])
    for name in Statistic.registry:
        ours = first["values"][name]
        np.testing.assert_array_equal(ours, second["values"][name], err_msg=name)
        assert np.isfinite(ours.numpy()).all()
        if name not in WITHIN_A_BATCH:
            np.testing.assert_allclose(ours, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    torch.testing.assert_close(first["resumed"], first["values"]["entropy"])
    for name in (*OF_OUTPUTS, "weight_norm"):
        np.testing.assert_array_equal(first["values"][name], second["values"][name], err_msg=name)
        if name not in WITHIN_A_BATCH:
            np.testing.assert_allclose(first["values"][name], expected[name], rtol=1e-4, err_msg=name)
    halves = [alone(llama(), slice(begin, begin + 2))["output_kurtosis"] for begin in (0, 2)]
    np.testing.assert_allclose(first["values"]["output_kurtosis"], np.mean(halves, axis=0), rtol=1e-4)


@pytest.mark.parametrize("case", ["fsdp", "tensor parallel"])
def test_model_that_is_split(case, processes):
    first, second = (results[case] for results in processes)
    expected = alone(llama())
    assert np.isnan(first["values"]["weight_norm"].numpy()).all()  # a process has a part of the weights only
    np.testing.assert_allclose(first["values"]["output_norm"], expected["output_norm"], rtol=1e-3)
    for name in Statistic.registry:
        np.testing.assert_array_equal(first["values"][name], second["values"][name], err_msg=name)
        if name not in WITHIN_A_BATCH or case == "tensor parallel":
            np.testing.assert_allclose(first["values"][name], expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_heads_of_a_model_that_is_split_are_refused_with_the_way_that_works(processes):
    for results in processes:
        for message in results["refused"]:
            assert "its parameters are sharded (DTensor); remove heads before fully_shard" in message


def test_maxima_may_be_negative(processes):
    first, expected = processes[0]["negative"], alone(with_negative_logits())
    assert expected["max_logit"].max() < 0
    np.testing.assert_allclose(first["values"]["max_logit"], expected["max_logit"], rtol=1e-4)


def test_bytes_that_are_sent_are_those_that_are_told(processes):
    """Flushes of three, three and one observed steps of two sites with four heads."""
    for results in processes:
        check, heads, *flushes = results["sound"]["sent"]
        assert check == 32
        assert heads == 12
        assert len(flushes) == 3 * 2
        told = [flush_bytes(num_steps=number, num_sites=2, num_heads=4) for number in (3, 3, 1)]
        assert [sum(flushes[index : index + 2]) for index in (0, 2, 4)] == told


def test_site_that_fails_on_one_of_them_is_seen_on_the_other(processes):
    first, second = (results["blind"] for results in processes)
    torch.testing.assert_close(first["values"], second["values"], rtol=0, atol=0, equal_nan=True)
    assert np.isfinite(first["values"]["entropy"].numpy()).all()


def test_sites_that_calls_show_on_one_of_them_are_known_to_both(processes):
    """Each process calls a layer that the other does not; no code tells that they attend."""
    first, second = (results["routed"] for results in processes)
    torch.testing.assert_close(first["values"], second["values"], rtol=0, atol=0, equal_nan=True)
    assert first["sites"] == second["sites"] == ("layers.0.attention", "layers.1.attention", "layers.2.attention")
    assert np.isfinite(first["values"]["entropy"].numpy()).all()
    torch.testing.assert_close(first["resumed"], first["values"]["entropy"], rtol=0, atol=0)


def test_processes_with_other_models_are_told_before_the_first_step(processes):
    for results in processes:
        assert "the processes differ in their attention sites or settings" in results["other model"]["error"]
        assert len(results["other model"]["sent"]) == 1


DYING = """
import os
import sys
import warnings
import torch
import torch.distributed as dist
from attnwatch import AttentionRecorder
from tests.support.models import llama, token_ids

torch.set_num_threads(1)
directory, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
model = llama()
recorder = AttentionRecorder(model, every_n_steps=1, flush_every=100, across_processes=True)


def step(number):
    with recorder.step(number):
        model(token_ids())


for number in range(2):
    step(number)
recorder.flush(finish_step=True)
step(2)
torch.save({"flushed": len(recorder.history())}, f"{directory}/rank{rank}.pt")
if rank == 1:
    os._exit(0)
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    recorder.flush(finish_step=True)
    step(3)
told = [str(each.message) for each in warned if "the observations since the last flush are lost" in str(each.message)]
torch.save({"flushed": len(recorder.history()), "told": told}, f"{directory}/rank{rank}.pt")
"""


def test_process_that_dies_leaves_the_others_what_they_had(tmp_path):
    survivor, dead = on_two_processes(DYING, tmp_path, launch=True)
    assert dead == {"flushed": 2}
    assert survivor["flushed"] == 2
    assert len(survivor["told"]) == 1
    assert "training continues" in survivor["told"][0]
