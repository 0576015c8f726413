"""Models with complex parameters, and with parameters on several devices."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

from attnwatch import AttentionRecorder, TrainingCheckup, check_training
from attnwatch.capture import undisturbed
from attnwatch.utils.random_states import random_states_kept
from tests.support.models import llama

TOKENS, VOCABULARY, WIDTH, SIZE = 12, 40, 16, 6


class Spectral(nn.Module):
    """Filter of the frequencies of a sequence, as in FNet and GFNet, with an attention layer behind it."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, ids):
        states = self.embedding(ids)
        for layer in self.layers:
            states = layer(states)
        return self.head(states)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(TOKENS // 2 + 1, WIDTH, dtype=torch.complex64))
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, states):
        filtered = torch.fft.irfft(torch.fft.rfft(states, dim=1) * self.filter, TOKENS, dim=1)
        return states + filtered + self.attention(states, states, states, need_weights=False)[0]


def trained(model, *, clear=True, steps=9, device="cpu"):
    """Return the checkup and the history of a training, and random numbers that are drawn after it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    checkup = TrainingCheckup(model, optimizers=optimizer)
    recorder = AttentionRecorder(model, every_n_steps=1, optimizers=optimizer)
    with checkup, recorder:
        for step in range(steps):
            ids = torch.randint(1, VOCABULARY, (SIZE, TOKENS))
            with checkup.step(step), recorder.step(step):
                F.cross_entropy(model(ids).flatten(0, 1), ids.flatten().to(device)).backward()
            optimizer.step()
            if clear:
                optimizer.zero_grad()
    return checkup, recorder.history(), torch.rand(3, device=device)


def norms_of(model, tensors):
    """Return the norm of the tensors of each block, in the order of the sites."""
    return [
        sum(tensor.abs().double().square().sum() for tensor in map(tensors, layer.parameters())).sqrt().item()
        for layer in model.layers
    ]


def test_complex_parameters_are_checked_and_measured():
    torch.manual_seed(0)
    model = Spectral()
    before = norms_of(model, lambda parameter: parameter.detach())
    checkup, history, _ = trained(model)
    assert not [reason for reason in checkup.skipped.values() if "failed" in reason]
    assert {"gradients_not_cleared", "rate_too_high", "lost_updates", "no_gradient"} <= checkup.answered
    assert not [finding for finding in checkup.findings if not finding.is_note], checkup
    np.testing.assert_allclose(history["weight_norm"][0], before, rtol=1e-5)
    for name in ("weight_norm", "gradient_norm", "update_ratio"):
        assert np.isfinite(history[name]).all(), name


def test_gradients_of_complex_parameters_are_measured():
    torch.manual_seed(0)
    model = Spectral()
    _, history, _ = trained(model, steps=1, clear=False)
    expected = norms_of(model, lambda parameter: parameter.grad)
    np.testing.assert_allclose(history["gradient_norm"][0], expected, rtol=1e-5)


def test_old_gradients_of_complex_parameters_are_told():
    checkup, *_ = trained(Spectral(), clear=False)
    finding = next(each for each in checkup.findings if each.kind.value == "gradients_not_cleared")
    assert any("filter" in site for site in finding.sites)


@pytest.mark.parametrize("has_positions", [True, False])
def test_embedding_that_counts_positions_itself_is_not_given_them(has_positions):
    """OPT's embedding of positions is given the attention mask, which is 1 everywhere in a batch without padding."""
    sizes = {"hidden_size": WIDTH, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"word_embed_proj_dim": WIDTH, "vocab_size": VOCABULARY, "max_position_embeddings": TOKENS}
    torch.manual_seed(0)
    model = OPTForCausalLM(OPTConfig(**sizes)).train()
    if not has_positions:
        nn.init.zeros_(model.model.decoder.embed_positions.weight.requires_grad_(False))
    ids = torch.randint(3, VOCABULARY, (SIZE, TOKENS))
    checkup = check_training(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids})
    found = [finding.kind.value for finding in checkup.findings]
    assert found == ["order_ignored"] * (not has_positions), checkup


class OnTwoDevices(nn.Module):
    """Embedding on the CPU, and layers with dropout, whether they train or not, on another device."""

    def __init__(self, device):
        super().__init__()
        self.embedding, self.device = nn.Embedding(VOCABULARY, WIDTH), device
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True) for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.layers.to(device), self.head.to(device)

    def forward(self, ids):
        states = F.dropout(self.embedding(ids).to(self.device), 0.1, training=True)
        for layer in self.layers:
            states = layer(states)
        return self.head(states)


@pytest.mark.cuda
def test_random_states_of_all_devices_are_restored():
    states = []
    for steps in (0, 3):
        torch.manual_seed(0)
        model = OnTwoDevices("cuda")
        if steps:
            torch.manual_seed(1)
            checkup, _, numbers = trained(model, steps=steps, device="cuda")
            assert "batch_mixing" in checkup.answered, checkup
        else:
            torch.manual_seed(1)
            numbers = plainly_trained(model, steps=3)
        states.append((numbers, torch.cuda.get_rng_state()))
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def plainly_trained(model, steps):
    """Return random numbers that are drawn after a training that nobody watches."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        ids = torch.randint(1, VOCABULARY, (SIZE, TOKENS))
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten().to("cuda")).backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.rand(3, device="cuda")


def test_random_states_are_restored_and_seeded():
    state = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with random_states_kept([torch.device("cpu"), torch.device("meta")], seed=0):
            drawn.append(torch.rand(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*drawn)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), drawn[0])


def test_seed_of_repeated_forwards_reaches_no_other_device(monkeypatch):
    """`torch.manual_seed` seeds every device, also those whose states nobody restores."""

    def fail(seed):
        raise AssertionError("every device was seeded")

    monkeypatch.setattr(torch, "manual_seed", fail)
    states = random.getstate(), np.random.get_state()[1].tolist()
    with undisturbed(Spectral(), seed=0):
        torch.rand(1), random.random(), np.random.rand()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler
def test_compiled_model_is_checked_by_its_parameters_and_updates():
    torch.manual_seed(0)
    model = llama()
    held = [each for name, each in model.named_parameters() if "q_proj" not in name]
    optimizer = torch.optim.AdamW(held, lr=1e-3)
    compiled = torch.compile(model, backend="aot_eager")
    update = torch.compile(optimizer.step, backend="aot_eager")
    with TrainingCheckup(compiled, optimizers=optimizer) as checkup:
        for step in range(12):
            ids = torch.randint(1, VOCABULARY, (4, 12))
            with checkup.step(step):
                compiled(input_ids=ids, labels=ids).loss.backward()
            optimizer.step() if step < 10 else update()
            optimizer.zero_grad()
    (found,) = checkup.findings
    assert found.kind.value == "not_in_optimizer"
    assert {"rate_too_high", "lost_updates", "loss_rises"} <= checkup.answered
    for name in ("blind_attention", "labels_shifted_twice", "gradients_not_cleared"):
        assert checkup.skipped[name].startswith("the forward of compiled models is not observed")
