"""Statistics are those of the forwards that a step trains on; sampling, references and validation do not count."""

import contextlib
import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from attnwatch import AttentionRecorder
from attnwatch.recorder import AttentionHistory
from attnwatch.statistics import Statistic
from tests.support.models import TOKENS, WIDTH, FusedAttention, bart_for_generation, gpt, gpt2, llama, seeded, token_ids
from tests.support.versions import enable_checkpointing

IDS, OTHER_IDS = token_ids(2), token_ids(2, seed=1)


def train_on(model: nn.Module, ids: Tensor = IDS) -> None:
    model.train()
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss if hasattr(model, "config") else model(ids)
    loss.backward()


def record(model: nn.Module, *passes) -> AttentionHistory:
    """One step in which these passes are made."""
    with AttentionRecorder(model, num_query_rows=6) as recorder:
        with recorder.step(0):
            for each in passes:
                each(model)
        return recorder.history()


def assert_same(history: AttentionHistory, expected: AttentionHistory, *, atol: float = 0.0) -> None:
    assert history.steps.tolist() == expected.steps.tolist()
    assert history.coverage == expected.coverage
    for name in Statistic.registry:
        np.testing.assert_allclose(history[name], expected[name], rtol=0, atol=atol, err_msg=name)


def generate(model: nn.Module) -> None:
    model.generate(OTHER_IDS, max_new_tokens=5, do_sample=True, pad_token_id=0)


def evaluate(model: nn.Module, *, grad: bool = False) -> None:
    was_training = model.training
    model.eval()
    with torch.set_grad_enabled(grad):
        model(OTHER_IDS)
    model.train(was_training)


@torch.no_grad()
def teach(model: nn.Module) -> None:
    """In train mode."""
    model(OTHER_IDS)


@torch.inference_mode()
def infer(model: nn.Module) -> None:
    model(OTHER_IDS)


def run_frozen(model: nn.Module) -> None:
    """With autograd on, though no weight needs a gradient."""
    model.requires_grad_(False)(OTHER_IDS)
    model.requires_grad_(True)


def run_averaged(model: nn.Module) -> None:
    """As with an average of the weights, which none of them is computed from."""
    functional_call(model, {name: weight.detach() for name, weight in model.named_parameters()}, (OTHER_IDS,))


BESIDE = {
    "generate": generate,
    "validation": evaluate,
    "validation with gradients": lambda model: evaluate(model, grad=True),
    "teacher": teach,
    "inference mode": infer,
    "frozen": run_frozen,
    "average of the weights": run_averaged,
}


@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.filterwarnings("ignore::UserWarning:transformers")
def test_only_the_forward_that_is_trained_on_counts(build, beside):
    expected = record(build(), train_on)
    for passes in ((beside, train_on), (train_on, beside), (beside, train_on, beside)):
        assert_same(record(build(), *passes), expected)


@pytest.mark.filterwarnings("ignore::UserWarning:transformers")
def test_encoder_decoder_that_generates():
    assert_same(record(bart_for_generation(), generate, train_on), record(bart_for_generation(), train_on))


def test_micro_batches_all_count():
    expected = record(llama(), lambda model: train_on(model, IDS[:1]), lambda model: train_on(model, IDS[1:]))
    assert_same(
        record(llama(), lambda model: train_on(model, IDS[:1]), teach, lambda model: train_on(model, IDS[1:])), expected
    )


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_reference_with_adapters_switched_off():
    peft = pytest.importorskip("peft")

    def build() -> nn.Module:
        config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        return seeded(lambda: peft.get_peft_model(llama(), config))

    def refer(model: nn.Module) -> None:
        with torch.no_grad(), model.disable_adapter():
            model(input_ids=IDS)

    assert_same(record(build(), refer, train_on), record(build(), train_on))


def test_model_that_trains_in_eval_mode_is_observed():
    def train_in_eval(model: nn.Module) -> None:
        model.eval()(input_ids=IDS, labels=IDS).loss.backward()

    assert_same(record(llama(), teach, train_in_eval), record(llama(), train_in_eval))


def test_model_that_never_sees_a_gradient_is_observed():
    history = record(llama(), teach)
    assert set(history.coverage.values()) == {"observed"}
    assert np.isfinite(history["entropy"]).all()


@pytest.mark.parametrize("beside", [run_frozen, run_averaged])
@pytest.mark.parametrize("need_weights", [True, False], ids=["weights", "no weights"])
def test_frozen_pass_of_multihead_attention(need_weights: bool, beside):
    class SelfAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.attention = nn.Embedding(50, WIDTH), nn.MultiheadAttention(WIDTH, 2)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embedding(ids)
            return self.attention(x, x, x, need_weights=need_weights)[0].sum()

    history = record(seeded(SelfAttention), beside, train_on, beside)
    assert_same(history, record(seeded(SelfAttention), train_on), atol=1e-6)


class FrozenEncoder(nn.Module):
    """Its encoder is frozen by switching autograd off or, with `has_autograd`, by weights that need no gradient."""

    def __init__(self, *, is_frozen: bool = True, has_autograd: bool = False):
        super().__init__()
        self.encoder, self.decoder = FusedAttention(), FusedAttention()
        self.encoder.requires_grad_(not is_frozen)
        self.is_off = is_frozen and not has_autograd

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad() if self.is_off else contextlib.nullcontext():
            x = self.encoder(x)
        return self.decoder(x)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("has_autograd", [True, False])
@pytest.mark.parametrize("backend", [None, pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what torch deprecates
def test_frozen_encoder_stays_observed(backend: str | None, has_autograd: bool, mode: bool):
    torch._dynamo.reset()
    model, x = seeded(lambda: FrozenEncoder(has_autograd=has_autograd)), torch.randn(2, TOKENS, WIDTH)
    model.encoder.train(mode)
    whole = seeded(lambda: FrozenEncoder(is_frozen=False))
    expected = record(whole, lambda model: model(x).sum().backward())
    run = model if backend is None else torch.compile(model, backend=backend)
    with AttentionRecorder(model, num_query_rows=6, every_n_steps=1) as recorder:
        for step in range(3):
            with recorder.step(step):
                run(x).sum().backward()
        history = recorder.history()
    assert set(history.coverage.values()) == {"observed"}
    for name in ("entropy", "max_logit"):
        np.testing.assert_array_equal(history[name][0], expected[name][0])
        assert np.isfinite(history[name]).all()


@pytest.mark.parametrize("beside", [generate, teach], ids=["generate", "teacher"])
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_activation_checkpointing_beside_other_passes(use_reentrant: bool, beside):
    """Reentrant checkpointing trains by forwards that run without gradients."""

    def build() -> nn.Module:
        model = llama()
        model.enable_input_require_grads()
        enable_checkpointing(model, use_reentrant=use_reentrant)
        return model

    assert_same(record(build(), beside, train_on, beside), record(llama(), train_on))


@pytest.mark.parametrize("beside", [run_frozen, run_averaged])
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_activation_checkpointing_beside_a_frozen_pass(use_reentrant: bool, beside):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.attention = nn.Embedding(50, WIDTH), FusedAttention()

        def forward(self, ids: Tensor) -> Tensor:
            return checkpoint(self.attention, self.embedding(ids), use_reentrant=use_reentrant).sum()

    assert_same(record(seeded(Checkpointed), beside, train_on, beside), record(seeded(Checkpointed), train_on))


def test_part_that_is_frozen_later_stays_observed():
    model, x = seeded(lambda: FrozenEncoder(is_frozen=False)), torch.randn(2, TOKENS, WIDTH)
    with AttentionRecorder(model, every_n_steps=1) as recorder:
        for step in range(2):
            model.encoder.requires_grad_(step == 0)
            with recorder.step(step):
                model(x).sum().backward()
        assert np.isfinite(recorder.history()["entropy"]).all()


def test_nested_reentrant_checkpoints():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = FusedAttention()

        def forward(self, x: Tensor) -> Tensor:
            def inner(y: Tensor) -> Tensor:
                return checkpoint(self.attention, y, use_reentrant=True)

            return checkpoint(inner, x, use_reentrant=True)

    x = torch.randn(2, TOKENS, WIDTH, requires_grad=True)

    def beside(model: nn.Module) -> None:
        with torch.no_grad():
            model(torch.randn(2, TOKENS, WIDTH, requires_grad=True))

    def trained(model: nn.Module) -> None:
        model(x).sum().backward()

    assert_same(record(seeded(Nested), beside, trained), record(seeded(Nested), trained))


@pytest.mark.parametrize("kind", ["teacher", "frozen"])
@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what torch deprecates
def test_compiled_model(backend: str, kind: str):
    torch._dynamo.reset()
    model = gpt()
    compiled = torch.compile(model, backend=backend)

    def beside(_) -> None:
        model.requires_grad_(kind != "frozen")
        with torch.set_grad_enabled(kind == "frozen"):
            compiled(OTHER_IDS)
        model.requires_grad_(True)

    history = record(model, beside, lambda _: train_on(compiled), beside)
    assert_same(history, record(gpt(), train_on), atol=2e-5)


class TeachesItself(nn.Module):
    """A teacher's pass lies in the same compiled graph."""

    def __init__(self):
        super().__init__()
        self.model = gpt()

    def forward(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.model(ids.flip(1))
        return self.model(ids) - target


@pytest.mark.parametrize("backend", [None, "eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what torch deprecates
def test_teacher_within_a_forward(backend: str | None):
    torch._dynamo.reset()
    model = TeachesItself()
    run = model if backend is None else torch.compile(model, backend=backend)
    history = record(model.model, lambda _: run(IDS).backward())
    assert_same(history, record(gpt(), train_on), atol=2e-5)


def test_step_that_only_samples_is_no_observation_of_training():
    model = llama()
    with AttentionRecorder(model, every_n_steps=1) as recorder:
        for step, each in enumerate((train_on, teach, train_on)):
            with recorder.step(step):
                each(model)
            assert recorder.has_seen_step
        assert recorder.history().steps.tolist() == [0, 2]
        assert set(recorder.coverage().values()) == {"observed"}


def test_decoding_is_not_computed_beside_a_whole_pass(monkeypatch):
    """It would be for each token that is sampled."""
    model = llama().eval()
    with AttentionRecorder(model) as recorder:
        computed = []
        add = recorder._group.add
        monkeypatch.setattr(recorder._group, "add", lambda *args: computed.append(args[0]) or add(*args))
        with recorder.step(0):
            generate(model)
    assert len(computed) == 2  # the prompt, in each of the layers


def test_resumed_in_the_middle_of_a_step():
    model = llama()
    with AttentionRecorder(model) as recorder:
        with recorder.step(0):
            train_on(model)
        state = copy.deepcopy(recorder.state_dict())
        expected = recorder.history()
    with AttentionRecorder(model) as resumed:
        resumed.load_state_dict(state)
        with resumed.step(0):
            teach(model)
        assert_same(resumed.history(), expected)
