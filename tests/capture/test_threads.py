"""Calls of other threads, and of forwards that raised, are none of the watched module's."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_upper_left

from attnwatch import TokenDropper, attention_statistics
from attnwatch.capture import put_kept_positions, unwatched
from attnwatch.capture.positions import kept_positions
from attnwatch.recorder import AttentionHistory, AttentionRecorder
from attnwatch.statistics import Statistic
from tests.support.models import HEADS, TOKENS, WIDTH, FusedAttention, gpt, llama, seeded, token_ids

OTHER = torch.randn(3, 3, HEADS, TOKENS, 8, generator=torch.Generator().manual_seed(7)) * 3


def in_another_thread(function: Callable[[], object]) -> None:
    errors = []

    def run():
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not errors, errors


class Interrupted(FusedAttention):
    """Something happens in the middle of its forward, before it attends."""

    meanwhile: Callable[[], object] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.meanwhile is not None:
            self.meanwhile()
        return super().forward(x)


def record(model: nn.Module, run: Callable[[], object]) -> AttentionHistory:
    with AttentionRecorder(model, every_n_steps=1, num_query_rows=None) as recorder:
        with recorder.step(0):
            run()
        return recorder.history()


def assert_equal(history: AttentionHistory, expected: AttentionHistory) -> None:
    assert history.coverage == expected.coverage
    for name in Statistic.registry:
        np.testing.assert_array_equal(history[name], expected[name], err_msg=name)


@pytest.mark.parametrize("what", ["the function", "another model", "the same model", "the same attention"])
def test_calls_of_another_thread_do_not_count(what: str):
    model, twin = gpt(Interrupted), gpt()
    expected = record(model, lambda: model(token_ids()))

    def elsewhere():
        first = model.layers[0]["attention"]
        first.meanwhile = None
        if what == "the function":
            F.scaled_dot_product_attention(*OTHER)
        elif what == "another model":
            twin(token_ids(seed=5))
        elif what == "the same model":
            model(token_ids(seed=5))
        else:
            first(torch.randn(2, TOKENS, WIDTH))

    model.layers[0]["attention"].meanwhile = lambda: in_another_thread(elsewhere)
    assert_equal(record(model, lambda: model(token_ids())), expected)


def test_two_trainings_in_two_threads_each_see_their_own():
    models = [gpt(), gpt()]
    with torch.no_grad():
        for parameter in models[1].parameters():
            parameter.mul_(0.5)

    def train(model: nn.Module, histories: list) -> None:
        with AttentionRecorder(model, every_n_steps=1, num_query_rows=None) as recorder:
            for step in range(20):
                with recorder.step(step):
                    model(token_ids(seed=step)).backward()
            histories.append(recorder.history())

    alone: list[list] = [[], []]
    together: list[list] = [[], []]
    for model, histories in zip(models, alone, strict=True):
        train(model, histories)
    threads = [threading.Thread(target=train, args=each) for each in zip(models, together, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, two in zip(alone, together, strict=True):
        assert_equal(two[0], one[0])
    assert type(F.scaled_dot_product_attention).__name__ == "builtin_function_or_method"


class Retried(nn.Module):
    """The attention inside may raise; then the module around it attends in another way."""

    def __init__(self):
        super().__init__()
        self.inner = Interrupted()
        self.error: type[BaseException] | None = None

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.inner(x)
        except (RuntimeError, KeyboardInterrupt):
            F.scaled_dot_product_attention(*OTHER)  # of no watched module
            self.inner.meanwhile = None
            return self.inner(x)


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_forward_that_raised_and_was_retried_counts_once(error: type[Exception]):
    model, x = seeded(Retried), torch.randn(2, TOKENS, WIDTH)
    query, key, _ = model.inner.heads(x)
    expected = attention_statistics(query, key, is_causal=True)

    def fail():
        raise error("kernel failed")

    model.inner.meanwhile = fail
    history = record(nn.ModuleList([model]), lambda: model(x))
    assert history.coverage["0.inner"] == "observed"
    index = history.sites.index("0.inner")
    for name in ("entropy", "max_logit", "logit_spread"):
        if name in Statistic.registry:
            np.testing.assert_allclose(history[name][0, index], getattr(expected, name), rtol=1e-5, atol=1e-6)


def test_tensors_with_an_attention_of_their_own_in_two_threads():
    """Their calls see torch's own function for a while; all patches are there again afterwards."""

    class Masked(nn.Module):
        def forward(self, query: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(query, query, query, causal_upper_left(TOKENS, TOKENS))

    model, query = Masked(), torch.randn(2, HEADS, TOKENS, 8)
    expected = F.scaled_dot_product_attention(query, query, query, is_causal=True)
    with AttentionRecorder(model, every_n_steps=1):
        patched = F.scaled_dot_product_attention
        outputs: list[Tensor] = []
        threads = [threading.Thread(target=lambda: outputs.extend(model(query) for _ in range(50))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert F.scaled_dot_product_attention is patched
    assert len(outputs) == 200
    for output in outputs:
        torch.testing.assert_close(output, expected)


def test_kept_positions_are_those_of_the_thread():
    kept = torch.arange(4).expand(2, -1)
    before = put_kept_positions(kept)
    try:
        in_another_thread(lambda: _assert_none(kept_positions(4)))
        assert kept_positions(4) is kept
    finally:
        put_kept_positions(before)


def _assert_none(value) -> None:
    assert value is None


def test_questions_in_another_thread_leave_the_training_watched():
    """An explanation that is computed beside a training must not pause its recorder."""
    model = gpt(Interrupted)
    expected = record(model, lambda: model(token_ids()))
    asking, done = threading.Event(), threading.Event()

    def ask():
        with unwatched():
            asking.set()
            done.wait(30)

    thread = threading.Thread(target=ask)

    def run():
        thread.start()
        asking.wait(30)
        model(token_ids())
        done.set()
        thread.join()

    assert_equal(record(model, run), expected)


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_layer_that_raised_while_tokens_are_dropped_may_be_tried_again(error: type[Exception]):
    model = llama(layers=4)
    layer = model.model.layers[2]
    failures = iter([error("kernel failed")])

    def fail(module: nn.Module, args: tuple) -> None:
        for failure in failures:
            raise failure

    layer.register_forward_pre_hook(fail)
    states = torch.randn(2, TOKENS, WIDTH)
    embeddings = model.model.rotary_emb(states, torch.arange(TOKENS)[None])
    with TokenDropper(model, keep_ratio=0.5, min_tokens=2, first_layer=1, last_layer=2):
        for _ in range(2):  # as a pipeline stage runs them, without the model around

            def run(x: Tensor) -> Tensor:
                for each in model.model.layers[1:3]:
                    x = each(x, position_embeddings=embeddings)
                return x

            try:
                output = run(states)
            except RuntimeError:
                continue
    assert output.shape == states.shape


def test_evaluation_in_another_thread_is_not_shortened():
    model, twin = llama(layers=4), llama(layers=4)
    expected = twin.eval()(token_ids(seed=5)).logits
    seen: list[Tensor] = []

    def evaluate(module: nn.Module, args: tuple) -> None:
        if seen:
            return
        seen.append(expected)
        in_another_thread(lambda: seen.append(model.eval()(token_ids(seed=5)).logits))
        model.train()

    with TokenDropper(model, keep_ratio=0.5, min_tokens=2, first_layer=1, last_layer=2):
        model.model.layers[2].register_forward_pre_hook(evaluate)
        model.train()(token_ids())
    assert seen[1].equal(expected)
