"""Ways to train that run a forward more than once, in other precision, or compiled."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attnwatch import attention_statistics
from attnwatch.capture import delivery
from attnwatch.recorder import AttentionHistory, AttentionRecorder
from attnwatch.statistics import Statistic
from tests.support.models import HEADS, TOKENS, WIDTH, FusedAttention, gpt, llama, seeded, token_ids
from tests.support.versions import enable_checkpointing


def record(model: nn.Module, *batches: Tensor, num_query_rows: int | None = 6, watched: nn.Module | None = None):
    """One training step over the micro-batches."""
    with AttentionRecorder(watched or model, num_query_rows=num_query_rows) as recorder:
        with recorder.step(0):
            for batch in batches:
                loss_of(model, batch).backward()
        return recorder.history()


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    is_transformers = hasattr(model, "config")
    return model(input_ids=ids, labels=ids, use_cache=False).loss if is_transformers else model(ids)


def assert_equal(history: AttentionHistory, expected: AttentionHistory, *, atol: float = 0.0, without=()):
    assert history.sites == expected.sites
    assert history.coverage == expected.coverage
    for name in Statistic.registry:
        if name not in without:
            np.testing.assert_allclose(history[name], expected[name], rtol=0, atol=atol, err_msg=name)


def test_autocast_reads_what_the_kernel_reads():
    module, x = seeded(FusedAttention), torch.randn(2, TOKENS, WIDTH)
    with AttentionRecorder(module, num_query_rows=None) as recorder:
        with recorder.step(0), torch.autocast("cpu", dtype=torch.bfloat16):
            query, key, _ = module.heads(x)
            module(x)
        history = recorder.history()
    assert query.dtype == torch.bfloat16
    expected = attention_statistics(query, key, is_causal=True)
    for name in Statistic.registry:
        np.testing.assert_array_equal(history[name][0, 0], getattr(expected, name))


@pytest.mark.parametrize("need_weights", [True, False], ids=["weights", "no weights"])
def test_autocast_of_multihead_attention(need_weights: bool):
    module, x = seeded(lambda: nn.MultiheadAttention(WIDTH, HEADS)), torch.randn(TOKENS, 2, WIDTH)
    entropies = []
    for enabled in (True, False):
        with AttentionRecorder(module, num_query_rows=None) as recorder:
            with recorder.step(0), torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                module(x, x, x, need_weights=need_weights)
            entropies.append(recorder.history()["normalized_entropy"])
    np.testing.assert_allclose(*entropies, rtol=0, atol=0.05)
    assert not np.array_equal(*entropies)


@pytest.mark.parametrize("build", [llama, gpt])
def test_micro_batches_of_a_step_are_one_batch(build):
    ids = token_ids(batch=4)
    expected = record(build(), ids, num_query_rows=None)
    history = record(build(), *ids.chunk(2), num_query_rows=None)
    # It compares the sequences of one forward.
    assert_equal(history, expected, atol=1e-5, without=("content_sensitivity",))


class Checkpointed(nn.Module):
    def __init__(self, module: nn.Module, use_reentrant: bool):
        super().__init__()
        self.module, self.use_reentrant = module, use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.module, x, use_reentrant=self.use_reentrant)


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_activation_checkpointing_counts_a_forward_once(use_reentrant: bool):
    """A call that is counted twice has the same means, but half the sampling variance."""
    model = gpt()
    for layer in model.layers:
        layer["attention"] = Checkpointed(layer["attention"], use_reentrant)
    history, expected = record(model, token_ids()), record(gpt(), token_ids())
    for name in Statistic.registry:
        np.testing.assert_array_equal(history[name], expected[name])


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_gradient_checkpointing_of_transformers(use_reentrant: bool):
    model = llama()
    enable_checkpointing(model, use_reentrant=use_reentrant)
    assert_equal(record(model, token_ids()), record(llama(), token_ids()))


def train(model, recorder: AttentionRecorder, steps: range) -> None:
    for step in steps:
        with recorder.step(step):
            loss_of(model, token_ids(seed=step)).backward()


@pytest.mark.slow
@pytest.mark.parametrize(("build", "backend"), [(llama, "inductor"), (gpt, "aot_eager")])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what torch deprecates
def test_compiled_model_is_observed_in_one_graph(build, backend: str):
    model = build()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with AttentionRecorder(compiled, every_n_steps=3) as recorder:
        train(compiled, recorder, range(1))
        with torch._dynamo.config.patch(error_on_recompile=True):
            train(compiled, recorder, range(1, 7))
        history = recorder.history()
    eager = build()
    with AttentionRecorder(eager, every_n_steps=3) as recorder:
        train(eager, recorder, range(7))
        expected = recorder.history()
    assert history.steps.tolist() == [0, 3, 6]
    assert_equal(history, expected, atol=2e-5)
    torch.testing.assert_close([p.grad for p in model.parameters()], [p.grad for p in eager.parameters()])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what torch deprecates
def test_compiled_model_reports_to_its_own_recorder():
    model = gpt()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):  # the second recorder meets the graph of the first
        with AttentionRecorder(compiled) as recorder:
            train(compiled, recorder, range(1))
        assert set(recorder.coverage().values()) == {"observed"}
    with AttentionRecorder(gpt()) as recorder:
        train(compiled, recorder, range(1))
    assert not any(reason == "observed" for reason in recorder.coverage().values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what torch deprecates
@pytest.mark.parametrize("copied", [False, True])
def test_compiled_models_that_look_alike_are_told_apart(copied: bool):
    """They share the graph that was compiled for the first of them."""
    torch._dynamo.reset()
    model = gpt()
    with AttentionRecorder(model, num_query_rows=None) as recorder:
        other = copy.deepcopy(model) if copied else gpt()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.5)
        compiled, others = (torch.compile(each, backend="aot_eager") for each in (model, other))
        with recorder.step(0):
            loss_of(compiled, token_ids()).backward()
            loss_of(others, token_ids(seed=1)).backward()
        history = recorder.history()
    assert_equal(history, record(gpt(), token_ids(), num_query_rows=None), atol=2e-5)


def test_number_of_a_module_is_never_given_to_another():
    """Compiled graphs hold them, and outlive the recorder they were traced with."""
    first, second = nn.Identity(), nn.Identity()
    numbers = []
    for module in (first, second, first):
        delivery.subscribe(module, None, "site")
        numbers.append(delivery.site_id(module))
        delivery.unsubscribe(module, None)
    assert numbers[0] == numbers[2] != numbers[1]
