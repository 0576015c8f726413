"""The gate criterion: against gates that are multiplied in, in float64, and what else it promises."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from attnwatch import HeadImportance, head_importance, prune_heads
from tests.support.head_models import EVERYWHERE, output, with_lora
from tests.support.importance_models import KINDS, Kind, stacked
from tests.support.models import HEAD_DIM, HEADS, WIDTH, bert, gpt2, llama, token_ids

each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    result = output(model, batch)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return (result * weights.to(result.dtype)).sum()


def gate_gradients(kind: Kind, model: nn.Module, seed: int) -> Tensor:
    """|∂L/∂ξ|, float64 [sites, heads], for gates ξ = 1 on what the output projection takes of each head."""
    weights = kind.output_weights(model)
    gates = {name: torch.ones(HEADS, dtype=torch.float64, requires_grad=True) for name in weights}
    gated = {
        name: (weight.movedim(kind.dim, -1) * gates[name].repeat_interleave(HEAD_DIM)).movedim(-1, kind.dim)
        for name, weight in weights.items()
    }

    def call(**batch):
        return torch.func.functional_call(model, gated, kwargs=batch)

    loss = loss_of(call, kind.batch(seed))
    return torch.stack(torch.autograd.grad(loss, list(gates.values()))).abs()


def relative(values: Tensor) -> Tensor:
    return values / values.norm(dim=-1, keepdim=True)


def update(importance: HeadImportance, model: nn.Module, batch: dict[str, Tensor], factor: float = 1.0) -> None:
    model.zero_grad()
    (factor * loss_of(model, batch)).backward()
    importance.update()


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@each_kind
def test_gate_is_the_mean_of_the_absolute_gradient_of_a_gate_relative_to_its_layer(kind: Kind, frozen: bool):
    """From the gradient of the output projection where there is one, with gates where it is frozen."""
    model = kind.model(frozen=frozen)
    importance = HeadImportance(model)
    for seed in (0, 1, 2):
        update(importance, model, kind.batch(seed), factor=(-1) ** seed)  # the sign does not matter
    expected = relative(sum(gate_gradients(kind, kind.model(), seed) for seed in (0, 1, 2)))
    values = importance.values()
    assert all(of_site.dtype == torch.float32 for of_site in values.values())
    torch.testing.assert_close(stacked(values).double(), expected, atol=1e-5, rtol=0)


LORA = {
    "llama": (llama, EVERYWHERE, {}),
    "bert": (bert, ("query", "dense"), {}),
    "gpt2": (gpt2, ("c_attn", "c_proj"), {"fan_in_fan_out": True}),
    "not on the output": (llama, ("q_proj", "v_proj"), {}),
}


@pytest.mark.parametrize("is_trained", [False, True], ids=["frozen", "trained too"])
@pytest.mark.parametrize(("build", "targets", "options"), LORA.values(), ids=LORA)
def test_lora_has_the_importance_of_the_merged_model(build, targets, options, is_trained: bool):
    adapted = with_lora(build, *targets, **options)().double()
    if is_trained:
        adapted.requires_grad_()
    merged = copy.deepcopy(adapted).merge_and_unload().requires_grad_()
    importances = []
    for model in (adapted, merged):
        importances.append(HeadImportance(model))
        for seed in (0, 1):
            update(importances[-1], model, {"input_ids": token_ids(seed=seed)})
    torch.testing.assert_close(*map(stacked, importances), atol=1e-5, rtol=0)


def test_micro_batches_are_one_update():
    kind = KINDS["llama"]
    model = kind.model()
    importance = HeadImportance(model)
    for seed in (0, 1):
        loss_of(model, kind.batch(seed)).backward()
    importance.update()
    both = HeadImportance(model)
    model.zero_grad()
    sum(loss_of(model, kind.batch(seed)) for seed in (0, 1)).backward()
    both.update()
    torch.testing.assert_close(stacked(importance), stacked(both), atol=1e-6, rtol=0)


def test_steps_that_a_gradient_scaler_skips_do_not_count():
    model = llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaled, expected = HeadImportance(model), HeadImportance(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    for seed in (0, 1, 2):
        loss = loss_of(model, {"input_ids": token_ids(seed=seed)}) * (torch.inf if seed == 1 else 1.0)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaled.update()
        if seed != 1:
            expected.update()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    torch.testing.assert_close(stacked(scaled), stacked(expected), atol=1e-6, rtol=0)


@each_kind
def test_gates_change_nothing_and_can_be_taken_out(kind: Kind):
    model = kind.model(frozen=True)

    def run() -> list[Tensor]:
        model.zero_grad()
        result = output(model, kind.batch(0))
        result.square().sum().backward()
        return [result.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]

    def contents() -> tuple:
        hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]
        return dict(model.named_parameters()), set(model.state_dict()), hooks

    without, before = run(), contents()
    importance = HeadImportance(model)
    assert contents()[:2] == before[:2]
    assert sum(contents()[2]) > 0
    with_gates = run()
    assert len(with_gates) == len(without)
    assert all(torch.equal(got, expected) for got, expected in zip(with_gates, without, strict=True))
    importance.close()
    assert contents() == before
    assert all(torch.equal(got, expected) for got, expected in zip(run(), without, strict=True))


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@each_kind
def test_validation_in_between_changes_nothing(kind: Kind, frozen: bool):
    values = []
    for validates in (False, True):
        model = kind.model(frozen=frozen)
        importance = HeadImportance(model)
        update(importance, model, kind.batch(0))
        if validates:
            with torch.no_grad():
                loss_of(model.eval(), kind.batch(1))
        update(importance, model.train(), kind.batch(2))
        values.append(stacked(importance))
    assert torch.equal(*values)


def test_output_that_is_frozen_or_thawed_on_the_way_goes_on():
    kind, model = KINDS["llama"], KINDS["llama"].model()
    weight = model.model.layers[0].self_attn.o_proj.weight
    importance = HeadImportance(model)
    expected = relative(gate_gradients(kind, kind.model(), 0))
    for requires_grad in (True, False, True, False):
        weight.requires_grad_(requires_grad)
        importance.update()  # of a step in which it is found out
        importance.reset()
        update(importance, model, kind.batch(0))
        torch.testing.assert_close(stacked(importance).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@each_kind
def test_after_a_pruning_it_goes_on_with_what_is_left(kind: Kind, frozen: bool):
    model = kind.model(frozen=frozen)
    importance = HeadImportance(model)
    update(importance, model, kind.batch(0))
    before = stacked(importance)
    prune_heads(model, {0: [2, 3], 1: [0, 1]})
    gone = torch.zeros(before.shape, dtype=torch.bool)
    gone[0, 2:] = gone[1, :2] = True
    assert torch.equal(stacked(importance).isnan(), gone)
    assert torch.equal(stacked(importance)[~gone], before[~gone])
    importance.reset()
    update(importance, model, kind.batch(1))
    masked = kind.model()
    with torch.no_grad():
        for weight, of_layer in zip(kind.output_weights(masked).values(), gone, strict=True):
            weight.mul_(~of_layer.repeat_interleave(HEAD_DIM).unsqueeze(1 - kind.dim))
    expected = relative(gate_gradients(kind, masked, 1)).masked_fill(gone, torch.nan)
    torch.testing.assert_close(stacked(importance).double(), expected, atol=1e-5, rtol=0, equal_nan=True)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_state_continues_bit_for_bit(frozen: bool):
    kind = KINDS["gpt2"]
    model = kind.model(frozen=frozen)
    uninterrupted = HeadImportance(model)
    update(uninterrupted, model, kind.batch(0))
    file = io.BytesIO()
    state = uninterrupted.state_dict()
    torch.save(state, file)
    update(uninterrupted, model, kind.batch(1))
    for loaded in (state, state, torch.load(io.BytesIO(file.getvalue()), weights_only=True)):
        model = kind.model(frozen=frozen)
        resumed = HeadImportance(model)
        resumed.load_state_dict(loaded)
        update(resumed, model, kind.batch(1))
        assert torch.equal(stacked(resumed), stacked(uninterrupted))


def test_head_importance_reads_the_gradients_that_are_there():
    kind, model = KINDS["llama"], KINDS["llama"].model()
    importance = HeadImportance(model)
    update(importance, model, kind.batch(0))
    assert torch.equal(stacked(head_importance(model)), stacked(importance))


@each_kind
def test_two_at_once(kind: Kind):
    model = kind.model(frozen=True)
    before = dict(model.named_parameters())
    first, second = HeadImportance(model), HeadImportance(model)
    for seed in (0, 1):
        update(first, model, kind.batch(seed))
        second.update()
    assert torch.equal(stacked(first), stacked(second))
    assert dict(model.named_parameters()) == before


def test_forward_that_fails_leaves_the_weights_in_place():
    model = KINDS["torch"].model(frozen=True)
    before = dict(model.named_parameters())
    importance = HeadImportance(model)
    with pytest.raises(AssertionError, match="expecting embedding dimension"):
        model(torch.ones(2, 3, WIDTH + 1))
    assert dict(model.named_parameters()) == before
    update(importance, model, KINDS["torch"].batch(0))
    assert stacked(importance).isfinite().all()
