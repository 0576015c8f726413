"""The layers that see the kept tokens only, against running them by hand on these tokens, in float64.

By hand, positions and masks are made from their definitions; nothing of them comes from the model.
"""

import pytest
import torch
from torch import Tensor

from attnwatch.tokens import TokenDropper
from tests.support.layers_by_hand import (
    BATCH,
    FAMILIES,
    FIRST,
    LAST,
    LAYERS,
    Batch,
    _batch,
    by_hand,
    entering,
    expected_kept,
    run,
    scores,
    whole,
)
from tests.support.models import (
    TOKENS,
    padding_mask,
    token_ids,
)


def padded(side: str) -> Batch:
    mask = padding_mask(side)
    return _batch(mask.bool(), {"attention_mask": mask})


def left_with_positions() -> Batch:
    mask = padding_mask("left")
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    batch = _batch(mask.bool(), {"attention_mask": mask, "position_ids": positions})
    return Batch(batch.given, batch.real, positions, batch.documents)


def packed() -> Batch:
    """Three documents in each sequence, told apart by positions that restart."""
    positions = torch.tensor([[*range(5), *range(4), *range(TOKENS - 9)]] * BATCH)
    documents = (positions == 0).cumsum(1)
    return Batch(
        {"input_ids": token_ids(), "position_ids": positions, "use_cache": False},
        torch.ones(BATCH, TOKENS, dtype=torch.bool),
        positions,
        documents,
    )


BATCHES = {
    "whole": whole,
    "left": lambda: padded("left"),
    "right": lambda: padded("right"),
    "left, with positions": left_with_positions,
    "packed": packed,
}


UNSUPPORTED = {("opt", "packed")}  # it does not tell documents apart
CASES = [
    (name, kind)
    for name, family in FAMILIES.items()
    for kind in BATCHES
    if (family.is_causal or kind in ("whole", "right", "left")) and (name, kind) not in UNSUPPORTED
]


@pytest.mark.parametrize(("name", "kind"), CASES, ids=["-".join(case) for case in CASES])
def test_layers_equal_running_them_by_hand(name: str, kind: str):
    family, batch = FAMILIES[name], BATCHES[kind]()
    model = family.build()
    before = entering(family, model, batch.given)
    number = 7
    kept = [expected_kept(scores(), batch, sequence, number) for sequence in range(BATCH)]
    expected = by_hand(family, model, batch, before, kept)
    with TokenDropper(
        model, keep_ratio=number / TOKENS, min_tokens=2, criterion=lambda tokens: scores(), last_layer=LAST
    ) as dropper:
        _, after, _ = run(family, model, batch.given)
    torch.testing.assert_close(after[batch.real], expected[batch.real], rtol=1e-9, atol=1e-9)
    assert dropper.layer_tokens == BATCH * (LAYERS * TOKENS - 2 * (TOKENS - number))
    assert dropper.all_layer_tokens == BATCH * LAYERS * TOKENS
    for sequence, tokens in enumerate(kept):  # the others rejoin as they were, bit for bit
        dropped = torch.ones(TOKENS, dtype=torch.bool).index_fill_(0, tokens, False)
        torch.testing.assert_close(after[sequence, dropped], before[sequence, dropped], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_keeping_all_equals_the_plain_model_bit_for_bit(name: str):
    family = FAMILIES[name]
    model = family.build()
    # Gemma's eager attention makes nan of rows that see no key.
    batch = whole() if name == "gemma2" else padded("right")

    def step() -> tuple[Tensor, list[Tensor | None]]:
        model.zero_grad()
        output = run(family, model, batch.given)[2]
        output.square().mean().backward()
        return output, [parameter.grad for parameter in model.parameters()]

    expected, expected_gradients = step()
    with TokenDropper(model, keep_ratio=1.0, min_tokens=2):
        output, gradients = step()
    assert torch.equal(output, expected)
    for gradient, before in zip(gradients, expected_gradients, strict=True):
        assert gradient is before or torch.equal(gradient, before)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_equal_those_by_hand_and_reach_dropped_tokens(name: str):
    family = FAMILIES[name]
    model = family.build()
    # Gemma's eager attention makes nan of rows that see no key.
    batch = whole() if name == "gemma2" else padded("right")
    kept = [expected_kept(scores(), batch, sequence, 7) for sequence in range(BATCH)]
    before = entering(family, model, batch.given).requires_grad_()
    weights = torch.rand(before.shape, generator=torch.Generator().manual_seed(1)).double() * batch.real[..., None]
    model.zero_grad()
    (by_hand(family, model, batch, before, kept) * weights).sum().backward()
    expected = {n: p.grad for n, p in family.stack(model)[FIRST : LAST + 1].named_parameters()}
    model.zero_grad()
    with TokenDropper(model, keep_ratio=7 / TOKENS, min_tokens=2, criterion=lambda t: scores(), last_layer=LAST):
        entered, after, _ = run(family, model, batch.given)
        (gradient,) = torch.autograd.grad((after * weights).sum(), entered, retain_graph=True)
        (after * weights).sum().backward()
    close = (
        {"rtol": 1e-5, "atol": 1e-5} if name.startswith("gemma") else {"rtol": 1e-8, "atol": 1e-8}
    )  # its norms are float32
    torch.testing.assert_close(gradient, before.grad, **close)
    for parameter_name, parameter in family.stack(model)[FIRST : LAST + 1].named_parameters():
        torch.testing.assert_close(parameter.grad, expected[parameter_name], **close)
    for sequence, tokens in enumerate(kept):
        dropped = torch.ones(TOKENS, dtype=torch.bool).index_fill_(0, tokens, False) & batch.real[sequence]
        assert torch.equal(gradient[sequence, dropped], weights[sequence, dropped])
