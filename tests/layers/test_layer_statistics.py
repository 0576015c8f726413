"""Layer statistics against slow float64 loops over everything that the definitions name."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attnwatch import AttentionRecorder
from attnwatch.layers import LayerStatistic
from tests.support.models import HEADS, LAYERS, VOCABULARY, WIDTH, bert, llama, seeded, t5, token_ids


def encoder(*, batch_first: bool) -> nn.Module:
    def build():
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 48, dropout=0.0, batch_first=batch_first)
        return nn.Sequential(
            nn.Embedding(VOCABULARY, WIDTH), nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        )

    return seeded(build)


MODELS = {
    "llama": (llama, lambda model: model.model.layers, True),
    "bert": (bert, lambda model: model.encoder.layer, True),
    "torch, batch first": (lambda: encoder(batch_first=True), lambda model: model[1].layers, True),
    "torch, tokens first": (lambda: encoder(batch_first=False), lambda model: model[1].layers, False),
}


def first_tensor(output) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    output = first_tensor(model(ids) if isinstance(model, nn.Sequential) else tuple(model(input_ids=ids).values()))
    return (output - torch.arange(output.shape[-1])).square().mean()


def norm(tensors) -> float:
    return math.sqrt(sum(entry**2 for tensor in tensors for entry in tensor.detach().double().flatten().tolist()))


def places(number: int, most: int) -> list[int]:
    """The middles of equal parts."""
    size = math.ceil(number / most)
    return [place for place in range(number) if place % size == (size - 1) // 2]


def of_output(states: Tensor) -> dict[str, float]:
    """From states [sequences, tokens, features]."""
    sequences = [
        [states[sequence, token].double().tolist() for token in places(states.shape[1], 64)]
        for sequence in places(len(states), 4)
    ]
    tokens = [token for sequence in sequences for token in sequence]
    sizes = [sum(token[feature] ** 2 for token in tokens) / len(tokens) for feature in range(states.shape[2])]
    cosines = [
        np.dot(first, second) / (np.linalg.norm(first) * np.linalg.norm(second))
        for sequence in sequences
        for first, second in itertools.combinations(sequence, 2)
    ]
    return {
        "output_norm": float(np.mean([np.linalg.norm(token) for token in tokens])),
        "output_kurtosis": float(np.mean(np.square(sizes)) / np.mean(sizes) ** 2),
        "token_cosine": float(np.mean(cosines)),
    }


@pytest.mark.parametrize(("build", "blocks_of", "is_batch_first"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize(("batch", "tokens"), [(3, 12), (9, 40)])
def test_values_are_those_of_the_definition(build, blocks_of, is_batch_first: bool, batch: int, tokens: int):
    model, ids = build(), token_ids(batch, tokens)
    ids = ids if is_batch_first else ids.T
    blocks = list(blocks_of(model))
    outputs: dict[nn.Module, Tensor] = {}
    hooks = [block.register_forward_hook(lambda block, _, output: outputs.update({block: output})) for block in blocks]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with AttentionRecorder(model, optimizers=optimizer) as recorder:
        with recorder.step(0):
            loss_of(model, ids).backward()
        before = [[each.detach().double() for each in block.parameters()] for block in blocks]
        gradients = [[each.grad for each in block.parameters() if each.grad is not None] for block in blocks]
        optimizer.step()
        history = recorder.history()
    for hook in hooks:
        hook.remove()
    for layer, block in enumerate(blocks):
        states = first_tensor(outputs[block])
        change = [0.1 * each.grad for each in block.parameters() if each.grad is not None]
        expected = of_output(states if is_batch_first else states.transpose(0, 1)) | {
            "gradient_norm": norm(gradients[layer]),
            "weight_norm": norm(before[layer]),
            "update_ratio": norm(change) / norm(before[layer]),
        }
        assert expected.keys() == LayerStatistic.registry.keys()
        for name, value in expected.items():
            assert history[name].shape == (1, LAYERS)
            tolerance = 1e-3 if name == "update_ratio" else 1e-4  # weights are rounded after the step
            assert history[name][0, layer] == pytest.approx(value, rel=tolerance), name


@pytest.mark.parametrize("length", [70, 128, 193])
def test_long_sequences_are_sampled_in_the_middle_of_equal_parts(length: int):
    model = nn.Sequential(nn.TransformerEncoderLayer(WIDTH, HEADS, 48, dropout=0.0, batch_first=True))
    x = torch.randn(6, length, WIDTH) * torch.arange(1, length + 1)[:, None]
    with AttentionRecorder(model) as recorder:
        with recorder.step(0):
            output = model(x)
        history = recorder.history()
    for name, value in of_output(output).items():
        assert history[name].item() == pytest.approx(value, rel=1e-4)


def test_collapsed_tokens_have_cosine_one_and_one_feature_has_the_largest_kurtosis():
    class Constant(nn.TransformerEncoderLayer):
        def forward(self, x, *arguments, **options):
            return 0 * super().forward(x) + self.states

    model = nn.Sequential(Constant(WIDTH, HEADS, 48, batch_first=True))
    values = {}
    for name, states in {
        "one direction": torch.arange(1.0, 13)[:, None] * torch.randn(WIDTH),
        "one feature": torch.eye(WIDTH)[3].expand(12, WIDTH),
        "equal features": torch.randn(12, WIDTH).sign(),
        "one token": torch.randn(1, WIDTH),
    }.items():
        model[0].states = states
        with AttentionRecorder(model) as recorder:
            with recorder.step(0):
                model(torch.randn(2, len(states), WIDTH))
            history = recorder.history()
        values[name] = {each: history[each].item() for each in ("token_cosine", "output_kurtosis")}
    assert values["one direction"]["token_cosine"] == pytest.approx(1.0)
    assert values["one feature"]["output_kurtosis"] == pytest.approx(WIDTH)
    assert values["equal features"]["output_kurtosis"] == pytest.approx(1.0)
    assert math.isnan(values["one token"]["token_cosine"])


def test_large_blocks_are_sampled_for_the_update():
    """Each matrix changes by another factor; a sample of entries tells the ratio of the whole block."""
    block = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
    model = nn.Sequential(block)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with AttentionRecorder(model, optimizers=optimizer) as recorder:
        with recorder.step(0):
            model(torch.randn(2, 6, 128)).square().mean().backward()
        for place, parameter in enumerate(block.parameters()):
            parameter.grad = -parameter.detach() * 0.01 * (place + 1)
        before = [each.detach().clone() for each in block.parameters()]
        optimizer.step()
        history = recorder.history()
    change = [after.detach() - each for after, each in zip(block.parameters(), before, strict=True)]
    assert sum(each.numel() for each in before) > 10 * 2**14
    assert history["update_ratio"].item() == pytest.approx(norm(change) / norm(before), rel=0.03)


def test_block_of_two_sites_has_one_number_for_both():
    model = t5()
    with AttentionRecorder(model) as recorder:
        with recorder.step(0):
            model(input_ids=token_ids(), decoder_input_ids=token_ids())
        history = recorder.history()
    norms = dict(zip(history.sites, history["weight_norm"][0].tolist(), strict=True))
    for layer in range(LAYERS):
        path = f"decoder.block.{layer}.layer"
        assert norms[f"{path}.0.SelfAttention"] == norms[f"{path}.1.EncDecAttention"]
    assert len(set(norms.values())) == 2 * LAYERS
