"""Attention that is reached through references that no name in the module's own code tells of."""

import functools
import importlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_upper_left

from attnwatch import AttnwatchWarning, attention_statistics
from attnwatch.recorder import AttentionHistory, AttentionRecorder
from attnwatch.statistics import Statistic
from tests.support.models import HEADS, TOKENS, WIDTH, FusedAttention, gpt, seeded, token_ids

SDPA = F.scaled_dot_product_attention
TABLE = {"causal": functools.partial(SDPA, is_causal=True)}


class Hidden(FusedAttention):
    """Attends by `attend`, which subclasses have in their ways."""

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.attend(*self.heads(x)).transpose(1, 2).flatten(2))


class InstancePartial(Hidden):
    def __init__(self, dropout: float = 0.0):
        super().__init__(dropout)
        self.attend = functools.partial(SDPA, is_causal=True)


class ClassAttribute(Hidden):
    attend = staticmethod(functools.partial(SDPA, is_causal=True))


class BareClassAttribute(Hidden):
    function = SDPA

    def attend(self, q, k, v):
        return self.function(q, k, v, is_causal=True)


class OwnTable(Hidden):
    def __init__(self, dropout: float = 0.0):
        super().__init__(dropout)
        self.functions = {"slow": None, "fused": SDPA}

    def attend(self, q, k, v):
        return self.functions["fused"](q, k, v, is_causal=True)


class GlobalTable(Hidden):
    def attend(self, q, k, v):
        return TABLE["causal"](q, k, v)


class DefaultArgument(Hidden):
    def attend(self, q, k, v, function=SDPA):
        return function(q, k, v, is_causal=True)


def _closed_over():
    function = SDPA
    return lambda q, k, v: function(q, k, v, is_causal=True)


class Closure(Hidden):
    def __init__(self, dropout: float = 0.0):
        super().__init__(dropout)
        self.attend = _closed_over()


class Processor:
    def __call__(self, attention: nn.Module, x: Tensor) -> Tensor:
        q, k, v = attention.heads(x)
        return attention.output(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class WithProcessor(FusedAttention):
    def __init__(self, dropout: float = 0.0):
        super().__init__(dropout)
        self.processor = Processor()

    def forward(self, x: Tensor) -> Tensor:
        return self.processor(self, x)


class AttentionFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    @staticmethod
    def backward(ctx, gradient):
        with torch.enable_grad():
            inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
            output = F.scaled_dot_product_attention(*inputs, is_causal=True)
        return torch.autograd.grad(output, inputs, gradient)


class WithAutogradFunction(Hidden):
    def attend(self, q, k, v):
        return AttentionFunction.apply(q, k, v)


class DynamicHelper(Hidden):
    def attend(self, q, k, v):
        return importlib.import_module("tests.support.hidden_" + "attention").attend(q, k, v)


class ByGetattr(Hidden):
    def attend(self, q, k, v):
        return getattr(F, "scaled_dot_product_attention")(q, k, v, is_causal=True)  # noqa: B009


class ByComposedName(Hidden):
    def attend(self, q, k, v):
        return getattr(torch.nn.functional, "_".join(["scaled", "dot", "product", "attention"]))(
            q, k, v, is_causal=True
        )


class TransformLayer(DynamicHelper):
    """Not even its name says attention."""


KINDS = [
    InstancePartial,
    ClassAttribute,
    BareClassAttribute,
    OwnTable,
    GlobalTable,
    DefaultArgument,
    Closure,
    WithProcessor,
    WithAutogradFunction,
    DynamicHelper,
    ByGetattr,
    ByComposedName,
    TransformLayer,
]
KINDS = {kind.__name__: kind for kind in KINDS}


def record(model: nn.Module, *args, steps: int = 1, every: int = 1, **options) -> AttentionHistory:
    with AttentionRecorder(model, every_n_steps=every, num_query_rows=None, **options) as recorder:
        for step in range(steps):
            with recorder.step(step):
                output = model(*args)
                output.square().mean().backward()
        return recorder.history()


def assert_same(history: AttentionHistory, name: str, query: Tensor, key: Tensor, *, step: int = 0, **options):
    assert history.coverage[name] == "observed"
    expected = attention_statistics(query.double(), key.double(), **options)
    for statistic in Statistic.registry:
        recorded = torch.from_numpy(history[statistic][step, history.sites.index(name)])
        torch.testing.assert_close(recorded, getattr(expected, statistic).float(), equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_layer_is_observed_from_the_first_step_on(kind):
    model = gpt(kind)
    states = []
    handles = [
        layer["attention"].register_forward_pre_hook(lambda module, args: states.append(module.heads(args[0])))
        for layer in model.layers
    ]
    history = record(model, token_ids(), steps=3)
    for handle in handles:
        handle.remove()
    assert history.sites == ("layers.0.attention", "layers.1.attention")
    assert set(history.coverage.values()) == {"observed"}
    for step in range(3):
        for layer, name in enumerate(history.sites):
            query, key, _ = states[2 * step + layer]
            assert_same(history, name, query, key, step=step, is_causal=True)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_layer_beside_one_that_reading_finds(kind):
    model = gpt()
    model.layers[0]["attention"] = seeded(kind)
    history = record(model, token_ids(), steps=2)
    assert history.sites == ("layers.0.attention", "layers.1.attention")
    assert not np.isnan(history["entropy"]).any()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_training_is_bit_identical_and_nothing_is_left(kind):
    def train(watched: bool):
        model, losses = gpt(kind, dropout=0.1), []
        torch.manual_seed(3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        recorder = AttentionRecorder(model, every_n_steps=2) if watched else None
        for step in range(4):
            with recorder.step(step) if watched else torch.enable_grad():
                loss = model(token_ids(seed=step))
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        if watched:
            recorder.close()
        return losses, model

    (losses, model), (expected, unwatched) = train(True), train(False)
    assert losses == expected
    torch.testing.assert_close(model.state_dict(), unwatched.state_dict(), rtol=0, atol=0)
    assert F.scaled_dot_product_attention is SDPA
    assert not torch.overrides._get_current_function_mode_stack()
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "_attnwatch_mark" not in vars(module)
        assert "__reduce_ex__" not in vars(module)


class WithContext(nn.Module):
    """Cross-attention whose keys are as many as its queries."""

    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mix = functools.partial(SDPA)

    def heads(self, projection: nn.Linear, x: Tensor) -> Tensor:
        return projection(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        other = x if context is None else context
        query, key = self.heads(self.query, x), self.heads(self.key, other)
        return self.mix(query, key, key).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("is_cross", [True, False])
def test_keys_of_other_tokens_are_known_as_cross_attention(is_cross: bool):
    module, x, context = seeded(WithContext), torch.randn(2, TOKENS, WIDTH), torch.randn(2, TOKENS, WIDTH)
    args = (x, context) if is_cross else (x,)
    history = record(module, *args)
    assert history.coverage == {"WithContext": "observed"}
    assert np.isnan(history["distance"]).all() == is_cross


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu()


@pytest.mark.logs_warnings
def test_model_that_calls_no_attention_is_named_after_the_first_step():
    module, x = Mlp(), torch.randn(2, TOKENS, WIDTH)
    with AttentionRecorder(module, every_n_steps=1) as recorder:
        message = r"`model` \(Mlp\) has no attention: no module calls .*scaled_dot"
        with pytest.warns(AttnwatchWarning, match=message), recorder.step(0):
            module(x)
        recorder.record_loss(1.0)
        for step in range(1, 8):
            with recorder.step(step):
                module(x)
        assert recorder.coverage() == {}
        assert recorder.history().sites == ()


def test_run_is_resumed_with_the_sites_that_calls_have_shown():
    model = gpt(DynamicHelper)

    def steps(recorder: AttentionRecorder, numbers) -> None:
        for step in numbers:
            with recorder.step(step):
                model(token_ids(seed=step))

    with AttentionRecorder(model, every_n_steps=1, num_query_rows=3) as recorder:
        steps(recorder, range(3))
        state = recorder.state_dict()
        steps(recorder, range(3, 6))
        expected = recorder.history()
    with AttentionRecorder(model, every_n_steps=1, num_query_rows=3) as recorder:
        recorder.load_state_dict(state)
        assert recorder.history().sites == expected.sites
        steps(recorder, range(3, 6))
        history = recorder.history()
    assert history.steps.tolist() == list(range(6))
    for name in Statistic.registry:
        np.testing.assert_array_equal(history[name], expected[name])


def test_state_from_before_the_sites_were_known_is_loaded():
    model = gpt(DynamicHelper)
    with AttentionRecorder(model, every_n_steps=1) as recorder:
        state = recorder.state_dict()
        with recorder.step(0):
            model(token_ids())
        recorder.load_state_dict(state)
        with recorder.step(0):
            model(token_ids())
        assert not np.isnan(recorder.history()["entropy"]).any()


def test_patterns_select_among_what_calls_show():
    model = gpt(DynamicHelper)
    history = record(model, token_ids(), steps=2, sites=["*.1.attention"])
    assert history.sites == ("layers.1.attention",)
    assert not np.isnan(history["entropy"]).any()


class Biased(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = functools.partial(SDPA)

    def forward(self, query: Tensor) -> Tensor:
        return self.attend(query, query, query, causal_upper_left(TOKENS, TOKENS))


def test_causal_bias_is_recognised_through_any_reference():
    """It compares the function with torch's, in whose place another one stands while something is watched."""
    module, query = Biased(), torch.randn(2, HEADS, TOKENS, 8)
    expected = SDPA(query, query, query, is_causal=True)
    with AttentionRecorder(module, num_query_rows=None) as recorder:
        torch.testing.assert_close(module(query), expected)
        with recorder.step(0):
            torch.testing.assert_close(module(query), expected)
        history = recorder.history()
    assert_same(history, "Biased", query, query, is_causal=True)
    torch.testing.assert_close(module(query), expected)
