"""Optimizers that are not torch's own: their state is cut where it is shown to have one value for each entry."""

import copy
from functools import partial

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from attnwatch import AttnwatchWarning, ConfigurationError, prune_heads
from attnwatch.heads.optimizer_state import elementwise_state
from tests.support.head_models import mask, survivors
from tests.support.optimizer_training import GPT2, LLAMA, assert_equal_training, step, trained
from tests.support.snapshot import assert_unchanged, snapshot


class Own(Optimizer):
    """One update for each parameter that has a gradient."""

    def __init__(self, params, lr=1e-3, **options):
        super().__init__(params, {"lr": lr, **options})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, parameter.grad, self.state[parameter], group)


class Lion(Own):
    def update(self, parameter, grad, state, group):
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
        parameter.mul_(1 - 0.01 * group["lr"])
        parameter.add_((0.9 * state["exp_avg"] + 0.1 * grad).sign(), alpha=-group["lr"])
        state["exp_avg"].lerp_(grad, 0.01)


class LionOfFunctions(Own):
    """Its constructor keeps functions and renames its options, as the package lion-pytorch does."""

    def __init__(self, params, lr=1e-3, *, decoupled=False, slow=0.01):
        super().__init__(params, lr)
        self._rate, self.decoupled_decay, self.update_fn = slow, decoupled, Lion.update

    def update(self, parameter, grad, state, group):
        assert self._rate == 0.02
        self.update_fn(self, parameter, grad, state, group)


class Eager(Own):
    """Momentum that is there from the start."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr)
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            self.state[parameter]["momentum"] = torch.zeros_like(parameter)

    def update(self, parameter, grad, state, group):
        parameter.sub_(group["lr"] * state["momentum"].mul_(0.9).add_(grad))


class ShampooOfSingles(Own):
    """Its new state is of single precision, whatever the parameter is of."""

    def update(self, parameter, grad, state, group):
        matrix = grad.reshape(len(grad), -1)
        if not state:
            state["left"] = 1e-3 * torch.eye(len(matrix))
        state["left"] += matrix @ matrix.T
        parameter.sub_(group["lr"] * torch.linalg.solve(state["left"], matrix).view_as(parameter))


class Shampoo(Own):
    """For matrices. The sums over rows of a square one have its shape."""

    def update(self, parameter, grad, state, group):
        matrix = grad.reshape(len(grad), -1)
        if not state:
            for side, size in zip(("left", "right"), matrix.shape, strict=True):
                state[side] = 1e-3 * torch.eye(size).to(matrix)
        state["left"] += matrix @ matrix.T
        state["right"] += matrix.T @ matrix
        roots = [self.root(state[side]) for side in ("left", "right")]
        parameter.sub_(group["lr"] * (roots[0] @ matrix @ roots[1]).view_as(parameter))

    def root(self, matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return vectors * values.clamp(min=1e-6).pow(-0.25) @ vectors.T


class Gram(Own):
    """One square matrix, on the side that a cut leaves, and applied from the other: no shape tells."""

    def update(self, parameter, grad, state, group):
        if not state:
            state["rows"] = torch.zeros_like(parameter)
        state["rows"].add_(grad - grad.mean())
        parameter.sub_(group["lr"] * (state["rows"] - state["rows"].mean()))


class EagerShampoo(Shampoo):
    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr)
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            matrix = parameter.detach().reshape(len(parameter), -1)
            for side, size in zip(("left", "right"), matrix.shape, strict=True):
                self.state[parameter][side] = 1e-3 * torch.eye(size).to(matrix)

    def update(self, parameter, grad, state, group):
        state["left"].add_(0)  # a KeyError where it is not there
        super().update(parameter, grad, state, group)


class Quantized(Own):
    """Momentum in 8 bits, one scale for each block; the last block is padded."""

    def __init__(self, params, lr=1e-3, block=64):
        super().__init__(params, lr)
        self.block = block

    def update(self, parameter, grad, state, group):
        if state:
            moment = (state["codes"].double() * state["scales"][:, None] / 127).flatten()[: grad.numel()]
        else:
            moment = grad.flatten() * 0
        moment = 0.9 * moment.view_as(grad) + grad
        blocks = nn.functional.pad(moment.flatten(), (0, -moment.numel() % self.block)).view(-1, self.block)
        state["scales"] = blocks.abs().amax(1).clamp(min=1e-12)
        state["codes"] = (127 * blocks / state["scales"][:, None]).round().to(torch.int8)
        parameter.sub_(group["lr"] * moment)


class Rounded(Own):
    """As that, but kept in the parameter's shape."""

    block = 16

    def update(self, parameter, grad, state, group):
        moment = 0.9 * state.get("moment", torch.zeros_like(parameter)) + grad
        blocks = nn.functional.pad(moment.flatten(), (0, -moment.numel() % self.block)).view(-1, self.block)
        scales = blocks.abs().amax(1, keepdim=True).clamp(min=1e-12) / 7
        state["moment"] = ((blocks / scales).round() * scales).flatten()[: moment.numel()].view_as(moment)
        parameter.sub_(group["lr"] * state["moment"])


class Lamb(Own):
    def update(self, parameter, grad, state, group):
        if not state:
            state["moment"] = torch.zeros_like(parameter)
        update = state["moment"].lerp_(grad, 0.1)
        parameter.sub_(group["lr"] * update * parameter.norm() / update.norm().clamp(min=1e-12))


class Listed(Own):
    """Moments in a list beside the state."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr)
        self.moments = [torch.zeros_like(parameter) for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for parameter, moment in zip(parameters, self.moments, strict=True):
            parameter.sub_(self.defaults["lr"] * moment.mul_(0.9).add_(parameter.grad))


class Keeping(Lion):
    """Parameters in a list beside its groups."""

    def __init__(self, params, lr=1e-3):
        params = list(params)
        super().__init__(params, lr)
        self.kept = {"all": params}


class Rare(Own):
    """A square matrix that is made anew every 50 steps."""

    def update(self, parameter, grad, state, group):
        if not state:
            state.update(count=0, basis=torch.randn_like(parameter))
        state["count"] += 1
        if state["count"] % 50 == 0:
            state["basis"] = grad @ grad.T
        parameter.sub_(group["lr"] * grad)


class Reversed(SGD):
    """A known one's name does not say how it steps."""

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            moment = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
            moment.add_(parameter.grad.flip(0))
            parameter.sub_(0.01 * moment)


class Sharpness(Own):
    """A wrapper of another optimizer, whose groups it shares."""

    def __init__(self, params, base, lr=1e-3):
        super().__init__(params, lr)
        self.base = base(self.param_groups)
        self.param_groups = self.base.param_groups

    def step(self, closure=None):
        self.base.step()


class Thin(Optimizer):
    """A wrapper that has nothing of its own."""

    def __init__(self, inner):
        self.inner = inner

    param_groups = property(lambda self: self.inner.param_groups)
    state = property(lambda self: self.inner.state)

    def step(self, closure=None):
        self.inner.step()

    def zero_grad(self):
        self.inner.zero_grad()


class Renamed(AdamW):
    def __init__(self, params, rate):
        super().__init__(params, lr=rate, weight_decay=0.2)


CUT = {
    "lion": partial(Lion, lr=0.01),
    "lion of functions": lambda params: LionOfFunctions(params, 0.01, slow=0.02),
    "momentum from the start": partial(Eager, lr=0.01),
    "wrapper": lambda params: Sharpness(params, partial(SGD, lr=0.01, momentum=0.9)),
    "subclass": partial(Renamed, rate=0.01),
    "tiny steps": partial(Lion, lr=1e-6),
}


@pytest.mark.parametrize("make", CUT.values(), ids=CUT)
def test_elementwise_state_is_cut_and_goes_on_exactly(make):
    model, optimizer = trained(make, GPT2)
    entries = survivors(model, GPT2.heads)
    masked_model, masked_optimizer = model_of_same_training(make)
    prune_heads(model, GPT2.heads, optimizers=[optimizer])
    for _ in range(3):
        mask(masked_model, GPT2.heads)
        step(model, optimizer, GPT2)
        step(masked_model, masked_optimizer, GPT2)
        inner = [getattr(each, "base", each) for each in (optimizer, masked_optimizer)]
        assert_equal_training((model, inner[0]), (masked_model, inner[1]), entries)


def model_of_same_training(make) -> tuple[nn.Module, Optimizer]:
    """Some optimizers can't be copied."""
    return trained(make, GPT2)


def test_wrapper_that_has_nothing_of_its_own():
    model, optimizer = trained(lambda params: Thin(AdamW(params, lr=0.01)))
    prune_heads(model, LLAMA.heads, optimizers=[optimizer])
    assert set(optimizer.state) == set(model.parameters())
    assert all(state["exp_avg"].shape == parameter.shape for parameter, state in optimizer.state.items())
    step(model, optimizer)


RESET = {
    "sums over rows": partial(Shampoo, lr=0.01),
    "mean over all": partial(Gram, lr=0.01),
    "blocks": partial(Quantized, lr=0.01),
    "blocks in the parameter's shape": partial(Rounded, lr=0.01),
    "norm of the parameter": partial(Lamb, lr=0.01),
    "known name, other step": partial(Reversed, lr=0.01),
}


@pytest.mark.parametrize("make", RESET.values(), ids=RESET)
def test_other_state_starts_anew(make):
    model, optimizer = trained(make)
    with pytest.warns(AttnwatchWarning, match=rf"{type(optimizer).__name__} keeps for \d+ .* is reset") as warned:
        prune_heads(model, LLAMA.heads, optimizers=[optimizer])
    assert len(warned) == 1
    anew = {name for name, parameter in model.named_parameters() if not optimizer.state.get(parameter)}
    assert {"model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.o_proj.weight"} & anew
    assert all("self_attn" in name for name in anew)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for _ in range(2):
        step(model, optimizer)
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all()
        assert not torch.equal(parameter, before[name]), name


def test_state_that_is_always_made_in_single_precision_starts_anew():
    model = LLAMA.model().float()
    optimizer = ShampooOfSingles(model.parameters(), lr=1e-4)
    step(model, optimizer)
    with pytest.warns(AttnwatchWarning, match=r"ShampooOfSingles keeps for \d+ .* is reset"):
        prune_heads(model, LLAMA.heads, optimizers=[optimizer])
    step(model, optimizer)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


REFUSED = {
    "made in the constructor": (EagerShampoo, r"EagerShampoo is not a known optimizer.*\['left', 'right'\]"),
    "moments in a list": (Listed, "Listed is not a known optimizer"),
    "parameters in a list": (Keeping, "Keeping also keeps parameters in its attribute 'kept'"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_go_on_is_refused_before_anything_is_touched(make, message: str):
    model, optimizer = trained(partial(make, lr=0.01))
    before = snapshot(model, optimizer)
    with pytest.raises(ConfigurationError, match=message):
        prune_heads(model, LLAMA.heads, optimizers=[optimizer])
    assert_unchanged(before, model, optimizer)
    step(model, optimizer)


def test_state_that_no_step_has_changed_is_not_cut():
    """A square matrix with the parameter's shape that is made anew every 50 steps."""
    model = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2), "b": nn.MultiheadAttention(8, 2)})
    weight = model["a"].out_proj.weight
    optimizer = Rare([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    with pytest.warns(AttnwatchWarning, match="Rare keeps for 1 pruned parameters can't be cut"):
        prune_heads(model, {0: [0]}, optimizers=[optimizer])


def test_trial_leaves_no_trace():
    model, optimizer = trained(partial(Lion, lr=0.01))
    before = snapshot(model, optimizer)
    random_state = torch.get_rng_state()
    with pytest.raises(ConfigurationError, match="at least one must stay"):
        prune_heads(model, {0: range(4), 1: range(4)}, optimizers=[optimizer])
    plan = prune_heads(copy.deepcopy(model), LLAMA.heads)
    assert plan.heads
    assert_unchanged(before, model, optimizer)
    prune_heads(model, LLAMA.heads, optimizers=[optimizer])
    assert torch.equal(torch.get_rng_state(), random_state)


def test_optimizer_that_has_not_stepped_yet():
    model = LLAMA.model()
    optimizers = [Lion(model.parameters(), lr=0.01), Shampoo(model.parameters(), lr=0.01)]
    prune_heads(model, LLAMA.heads, optimizers=optimizers)
    for optimizer in optimizers:
        before = [parameter.detach().clone() for parameter in model.parameters()]
        step(model, optimizer)
        pairs = zip(before, model.parameters(), strict=True)
        assert all(not torch.equal(old, new) for old, new in pairs if new.numel())


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (Adam, {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}),
        (partial(Renamed, rate=0.1), {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}),
        (partial(Reversed, lr=0.1), None),
        (Lion, None),
        (partial(hf.Adafactor, lr=0.1, relative_step=False), {"exp_avg", "exp_avg_sq"}),
    ],
)
def test_known_optimizers(make, names):
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    optimizer = make([parameter])
    optimizer.step()  # which torch has wrapped, and a schedule wraps once more
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    known = elementwise_state(optimizer)
    assert known == names


def test_adafactor_of_transformers():
    model, optimizer = trained(partial(hf.Adafactor, lr=0.01, scale_parameter=False, relative_step=False))
    with pytest.warns(AttnwatchWarning, match="Adafactor keeps sums over whole rows or columns"):
        prune_heads(model, LLAMA.heads, optimizers=[optimizer])
    step(model, optimizer)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
