"""A kind of attention call from outside of the package: found, recorded and put back as those of attnwatch."""

import contextlib
import functools
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attnwatch
from attnwatch import (
    AttentionCall,
    AttentionRecorder,
    AttnwatchWarning,
    ConfigurationError,
    FunctionCall,
    NoAttentionError,
)
from attnwatch.attention import AttentionInputs
from attnwatch.capture import find_sites
from attnwatch.recorder import AttentionHistory
from attnwatch.statistics import Statistic
from tests.support.models import HEADS, LAYERS, TOKENS, WIDTH, FusedAttention, gpt, seeded, token_ids
from tests.support.oracle import assert_statistics_match, attention_matrix


def my_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, causal: bool = False) -> Tensor:
    """Attention of [batch, tokens, heads, head_dim], as xformers has it."""
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, bias, is_causal=causal).transpose(1, 2)


my_ops = types.ModuleType("my_ops")
my_ops.my_attention = aliased = my_attention


class MyAttention(FunctionCall):
    """Calls of `my_ops.my_attention`."""

    name = "my_attention"
    paths = ("my_ops.my_attention",)

    def read(self, q, k, v, bias=None, causal=False):
        if q.ndim != 4:
            return "my_attention without heads is not observed"
        return AttentionInputs(q.transpose(1, 2), k.transpose(1, 2), attn_mask=bias, is_causal=causal)


class ByAttribute(FusedAttention):
    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.output(self.attend(*self.heads(x), bias).flatten(2))

    def heads(self, x: Tensor) -> list[Tensor]:
        return [part.unflatten(-1, (HEADS, -1)) for part in self.projection(x).chunk(3, -1)]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        return my_ops.my_attention(q, k, v, bias, causal=bias is None)


class ByName(ByAttribute):
    def attend(self, q, k, v, bias):
        return my_attention(q, k, v, bias, bias is None)


class ByAlias(ByAttribute):
    def attend(self, q, k, v, bias):
        return aliased(q, k, v, bias=bias, causal=bias is None)


class ByHelper(ByAttribute):
    def attend(self, q, k, v, bias):
        return _helper(q, k, v, bias)


class ByImport(ByAttribute):
    def attend(self, q, k, v, bias):
        from my_ops import my_attention as imported

        return imported(q, k, v, bias, causal=bias is None)


class ByProcessor(ByAttribute):
    def __init__(self, dropout: float = 0.0):
        super().__init__(dropout)
        self.attend = _Processor()


class _Processor:
    def __call__(self, *args):
        return _helper(*args)


def _helper(q, k, v, bias):
    return my_ops.my_attention(q, k, v, bias, causal=bias is None)


WAYS = {each.__name__: each for each in (ByAttribute, ByName, ByAlias, ByHelper, ByImport, ByProcessor)}
SITES = tuple(f"layers.{layer}.attention" for layer in range(LAYERS))


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_ops", my_ops)
    yield
    assert my_ops.my_attention is aliased is my_attention
    assert isinstance(my_attention, types.FunctionType)


def record(model: nn.Module, *args) -> AttentionHistory:
    with AttentionRecorder(model, num_query_rows=None) as recorder:
        with recorder.step(0):
            model(*args)
        return recorder.history()


def assert_right(history: AttentionHistory, site: str, query: Tensor, key: Tensor, **options) -> None:
    assert history.coverage[site] == "observed"
    recorded = {name: torch.from_numpy(history[name][0, history.sites.index(site)]) for name in Statistic.registry}
    assert_statistics_match(types.SimpleNamespace(**recorded), attention_matrix(query, key, **options))


@pytest.mark.parametrize("kind", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("has_bias", [False, True], ids=["causal", "bias"])
def test_statistics_are_those_of_the_oracle(registered, kind, has_bias: bool):
    registered(MyAttention)
    module, x = seeded(kind), torch.randn(3, TOKENS, WIDTH)
    bias = torch.randn(1, HEADS, TOKENS, TOKENS).masked_fill(torch.rand(TOKENS, TOKENS) < 0.3, -torch.inf)
    bias.diagonal(dim1=-2, dim2=-1).zero_()
    query, key, _ = (each.transpose(1, 2).detach() for each in module.heads(x))
    assert [site.name for site in find_sites(module)] == [kind.__name__]
    history = record(module, x, bias if has_bias else None)
    assert_right(history, kind.__name__, query, key, **({"attn_mask": bias} if has_bias else {"is_causal": True}))


@pytest.mark.parametrize("kind", WAYS.values(), ids=WAYS)
def test_each_call_counts_once_though_it_calls_another_attention_inside(registered, kind):
    """A call that is counted twice has the same means, but half the sampling variance."""
    registered(MyAttention)
    histories = []
    for model in (gpt(), gpt(kind)):
        with AttentionRecorder(model, num_query_rows=6) as recorder:
            with recorder.step(0):
                model(token_ids())
            histories.append(recorder.history())
    assert histories[1].sites == SITES
    for name in Statistic.registry:
        np.testing.assert_array_equal(histories[0][name], histories[1][name])


class Failing(ByAttribute):
    fails = False

    def attend(self, q, k, v, bias):
        mixed = super().attend(q, k, v, bias)
        if self.fails:
            raise RuntimeError("out of memory")
        return mixed


def train(model: nn.Module, *, watched: bool) -> dict:
    torch.manual_seed(3)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    with AttentionRecorder(model, every_n_steps=2) if watched else contextlib.nullcontext() as recorder:
        for step in range(4):
            with recorder.step(step) if watched else contextlib.nullcontext():
                loss = model(token_ids(seed=step))
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        if watched:
            assert recorder.coverage() == dict.fromkeys(SITES, "observed")
            assert recorder.history().steps.tolist() == [0, 2]
    return {"losses": losses, "weights": model.state_dict()}


@pytest.mark.parametrize("kind", WAYS.values(), ids=WAYS)
def test_training_is_bit_identical(registered, kind):
    registered(MyAttention)
    runs = [train(gpt(kind, dropout=0.1), watched=watched) for watched in (True, False)]
    torch.testing.assert_close(*runs, rtol=0, atol=0)


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_everything_is_put_back(registered, error: type[BaseException] | None):
    registered(MyAttention)
    model, other = gpt(Failing), gpt(ByAlias)
    expectation = contextlib.nullcontext() if error is None else pytest.raises(error)
    with AttentionRecorder(other):
        with expectation, AttentionRecorder(model) as recorder, recorder.step(0):
            assert my_ops.my_attention is not aliased
            model.layers[1]["attention"].fails = error is RuntimeError
            model(token_ids())
            if error is not None:
                raise error
        assert my_ops.my_attention is not my_attention  # the other recorder is still open
    for module in (*model.modules(), *other.modules()):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not [name for name in vars(module) if "attnwatch" in name]


def test_call_that_can_not_be_read_is_named(registered):
    class WithoutHeads(ByAttribute):
        def heads(self, x):
            return self.projection(x).unsqueeze(2).chunk(3, -1)

        def attend(self, q, k, v, bias):
            return my_ops.my_attention(*(each.squeeze(2)[None] for each in (q, k, v)))[0]

    class ThreeDimensional(MyAttention):
        def read(self, q, k, v, bias=None, causal=False):
            return super().read(q[0], k[0], v[0], bias, causal)

    registered(ThreeDimensional)
    history = record(seeded(WithoutHeads), torch.randn(3, TOKENS, WIDTH))
    assert history.coverage == {"WithoutHeads": "my_attention without heads is not observed"}


def fails(query, key):
    raise ValueError("no idea")


WRONG = {
    "raises": (fails, "ConfigurationError: {} failed with ValueError: no idea"),
    "wrong type": (
        lambda query, key: query,
        "ConfigurationError: {} must read AttentionInputs or the reason why not; got Tensor",
    ),
    "wrong shape": (
        lambda query, key: AttentionInputs(query.flatten(1, 2), key),
        "ConfigurationError: {} read query [3, 48, 8] and key [3, 12, 4, 8]; expected [batch, heads, tokens, head_dim]",
    ),
    "heads that do not fit": (
        lambda query, key: AttentionInputs(query.transpose(1, 2)[:, :3], key.transpose(1, 2)),
        "ConfigurationError: {} read query [3, 3, 12, 8] and key [3, 4, 12, 8]; expected",
    ),
}


@pytest.mark.parametrize(("read", "message"), WRONG.values(), ids=WRONG)
def test_plugin_that_is_wrong_is_named_once_and_the_training_goes_on(registered, read, message: str):
    class Wrong(MyAttention):
        def read(self, q, k, v, bias=None, causal=False):
            return read(q, k)

    registered(Wrong)
    model = gpt(ByAttribute)
    model.layers[1]["attention"] = seeded(FusedAttention)
    message = message.format(AttentionCall.registry.describe(Wrong))
    expected = model(token_ids())

    def three_steps(recorder: AttentionRecorder) -> None:
        for step in range(3):
            with recorder.step(step):
                assert model(token_ids()).equal(expected)

    with AttentionRecorder(model, every_n_steps=1) as recorder:
        with pytest.warns(AttnwatchWarning) as warned:
            three_steps(recorder)
        coverage = recorder.coverage()
    (warning,) = (str(each.message) for each in warned)
    assert warning.startswith(f"attnwatch: 'layers.0.attention' is no longer watched, training continues: {message}")
    assert coverage["layers.0.attention"].startswith(f"watching failed with {message}")
    assert coverage["layers.1.attention"] == "observed"


class EitherWay(ByAttribute):
    """Calls my_attention or torch's, as models do that use xformers where it is installed."""

    uses_torch = False

    def attend(self, q, k, v, bias):
        if self.uses_torch:
            q, k, v = (each.transpose(1, 2) for each in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return super().attend(q, k, v, bias)


@pytest.mark.parametrize("uses_torch", [True, False])
def test_module_with_two_kinds_of_calls_is_observed_by_either(registered, uses_torch: bool):
    registered(MyAttention)
    module, x = seeded(EitherWay), torch.randn(3, TOKENS, WIDTH)
    module.uses_torch = uses_torch
    query, key, _ = (each.transpose(1, 2).detach() for each in module.heads(x))
    assert_right(record(module, x), "EitherWay", query, key, is_causal=True)


class WithContext(ByAttribute):
    """Cross-attention whose keys are as many as its queries."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.attend(self.heads(x)[0], *self.heads(context)[1:], None)


def test_keys_of_other_tokens_have_no_distance(registered):
    registered(MyAttention)
    history = record(seeded(WithContext), *torch.randn(2, 3, TOKENS, WIDTH))
    assert history.coverage == {"WithContext": "observed"}
    assert np.isnan(history["distance"]).all()
    assert np.isfinite(history["entropy"]).all()


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2)


class HoldsAttention(ByAttribute):
    """Holds the function itself, which can't be patched there."""

    def __init__(self):
        super().__init__()
        self.mix = functools.partial(by_hand)

    def attend(self, q, k, v, bias):
        return self.mix(q, k, v)


@pytest.mark.logs_warnings
def test_reference_that_can_not_be_patched_is_named(registered, monkeypatch):
    monkeypatch.setattr(my_ops, "by_hand", by_hand, raising=False)

    class ByHand(FunctionCall):
        name, paths = "by_hand", ("my_ops.by_hand",)

        def read(self, q, k, v):
            return AttentionInputs(q.transpose(1, 2), k.transpose(1, 2))

    registered(ByHand)
    reason = "its forward holds by_hand itself, whose calls can't be seen; call it by name to have it observed"
    assert record(seeded(HoldsAttention), torch.randn(3, TOKENS, WIDTH)).coverage == {"HoldsAttention": reason}


def test_package_that_can_not_be_imported_leaves_the_training_alone(registered, monkeypatch):
    monkeypatch.delitem(sys.modules, "my_ops")
    registered(MyAttention)
    model = gpt(EitherWay)
    for layer in model.layers:
        layer["attention"].uses_torch = True
    with pytest.warns(AttnwatchWarning, match="calls of my_ops.my_attention are not observed, its import failed"):
        recorder = AttentionRecorder(model)
    with recorder, recorder.step(0):
        model(token_ids())
    assert set(recorder.coverage().values()) == {"observed"}


class ByHandAttention(ByAttribute):
    def attend(self, q, k, v, bias):
        return by_hand(q, k, v)


def test_unknown_function_is_unreadable_and_messages_list_the_plugin(registered):
    registered(MyAttention)
    with pytest.raises(NoAttentionError, match=r"without .*my_attention.*scaled_dot_product_attention"):
        AttentionRecorder(ByHandAttention())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what torch deprecates
def test_compiled_model_is_observed_in_one_graph(registered):
    registered(MyAttention)
    model = gpt(ByAttribute)
    with AttentionRecorder(model, num_query_rows=None) as recorder:
        with recorder.step(0):
            model(token_ids())
        expected = recorder.history()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with AttentionRecorder(compiled, every_n_steps=1, num_query_rows=None) as recorder:
        for step in range(3):
            with recorder.step(step), torch._dynamo.config.patch(error_on_recompile=step > 0):
                compiled(token_ids()).backward()
        history = recorder.history()
    assert set(history.coverage.values()) == {"observed"}
    for name in Statistic.registry:
        np.testing.assert_allclose(history[name][2], expected[name][0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("read", [fails, lambda query, key: query], ids=["raises", "wrong type"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what torch deprecates
def test_plugin_that_is_wrong_leaves_compiled_code_alone(registered, read):
    class Wrong(MyAttention):
        def read(self, q, k, v, bias=None, causal=False):
            return read(q, k)

    registered(Wrong)
    model = gpt(ByAttribute)
    expected = model(token_ids())
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with AttentionRecorder(compiled) as recorder, recorder.step(0):
        torch.testing.assert_close(compiled(token_ids()), expected)
    assert all("my_attention failed in compiled code" in reason for reason in recorder.coverage().values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what torch deprecates
@pytest.mark.parametrize(
    ("name", "value", "kind"), [("scale", 0.3, "float"), ("sliding_window", 2, "int"), ("is_causal", True, "bool")]
)
def test_number_that_is_a_tensor_leaves_compiled_code_alone(registered, name, value, kind):
    class Learned(MyAttention):
        def read(self, q, k, v, bias=None, causal=False):
            numbers = {name: torch.tensor(value, device=q.device)}
            return AttentionInputs(q.transpose(1, 2), k.transpose(1, 2), **numbers)

    registered(Learned)
    model = gpt(ByAttribute)
    expected = model(token_ids())
    compiled = torch.compile(model, backend="eager")
    with AttentionRecorder(compiled) as recorder, recorder.step(0):
        torch.testing.assert_close(compiled(token_ids()), expected)
    reason = f"its {name} can't be read inside torch.compile, because it is not a {kind}"
    assert set(recorder.coverage().values()) == {reason}


INCOMPLETE = {
    "no paths": ({"read": lambda self, q, k, v: ""}, "must have `paths`, a tuple of dotted paths such as"),
    "path of no module": ({"paths": ("my_attention",), "read": lambda self: ""}, "got ('my_attention',)"),
    "no reading": ({"paths": ("my_ops.my_attention",)}, "must define `read`"),
}


@pytest.mark.parametrize(("declared", "message"), INCOMPLETE.values(), ids=INCOMPLETE)
def test_incomplete_declaration_is_refused(declared: dict, message: str):
    with pytest.raises(ConfigurationError) as raised:
        attnwatch.register(type("Incomplete", (FunctionCall,), {"name": "incomplete", **declared}))
    assert "the attention call 'incomplete'" in str(raised.value)
    assert message in str(raised.value)
