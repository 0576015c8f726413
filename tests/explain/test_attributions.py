"""Attention received, rollout and gradient × input, against literal products and derivatives; and their agreement."""

import copy

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from attnwatch import ConfigurationError, NoAttentionError
from attnwatch.explain import (
    MeanOverSequences,
    attention_attribution,
    compare,
    gradient_times_input,
    occlude,
    rank_correlation,
)
from attnwatch.explain.comparison import agrees
from tests.support.classifiers import LABELS, batch_of, classifier
from tests.support.models import TOKENS, doge, llama, seeded, t5_for_generation, token_ids


def eager_weights(model: nn.Module, batch: dict) -> list[torch.Tensor]:
    """float64 [batch, heads, tokens, tokens] of each layer, as the model itself returns them."""
    eager = copy.deepcopy(model).eval()  # in float64 it is nan in rows that see nothing
    eager.set_attn_implementation("eager")
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return [each.double() for each in eager(**given, output_attentions=True).attentions]


@pytest.mark.parametrize("readout", ["first", "last", "mean"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rollout_is_the_literal_product(side, readout):
    batch = batch_of(side)
    found = attention_attribution(classifier(), batch, readout=readout)
    for sequence in range(3):
        real = batch["attention_mask"][sequence].nonzero()[:, 0]
        product = np.eye(len(real))
        for layer, weights in enumerate(eager_weights(classifier(), batch)):
            one = weights[sequence][:, real][:, :, real].mean(0).numpy()
            product = (0.5 * one + 0.5 * np.eye(len(real))) @ product
            expected = {"first": product[0], "last": product[-1], "mean": product.mean(0)}[readout]
            np.testing.assert_allclose(found.rollout[layer, sequence, real], expected, atol=1e-5)
        assert (found.rollout[:, sequence, batch["attention_mask"][sequence] == 0] == 0).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_received_is_relative_to_uniform(side):
    model, batch = llama(), batch_of(side)
    found = attention_attribution(model, batch)
    for layer, weights in enumerate(eager_weights(model, batch)):
        for sequence in range(3):
            real = batch["attention_mask"][sequence].nonzero()[:, 0].tolist()
            for key in real:
                rows = [row for row in real if row >= key]
                relative = [weights[sequence, :, row, key].mean() * (1 + real.index(row)) for row in rows]
                expected = float(torch.stack(relative).mean())
                assert found.received[layer, sequence, key].item() == pytest.approx(expected, rel=1e-3)
    assert found.sites == ("model.layers.0.self_attn", "model.layers.1.self_attn")


def test_readout_follows_the_model():
    batch = batch_of("right")
    assert attention_attribution(classifier(), batch).readout == "first"
    assert attention_attribution(llama(), batch).readout == "mean"
    config = llama().config
    config.num_labels = 2
    causal = seeded(lambda: hf.LlamaForSequenceClassification(config))
    assert attention_attribution(causal, batch).readout == "last"
    own = attention_attribution(classifier(), batch, forward=lambda model, given: model(**given))
    assert own.readout == "mean"


def test_attention_that_is_not_seen_says_so():
    with pytest.raises(NoAttentionError, match="depends on their content"):
        attention_attribution(doge(), batch_of("right"))
    with pytest.raises(ConfigurationError, match="`readout` must be one of 'first', 'last', 'mean' or None"):
        attention_attribution(llama(), batch_of("right"), readout="middle")


@pytest.mark.parametrize("reduce", ["sum", "l1"])
@pytest.mark.parametrize("kind", ["label", "loss", "kl"])
def test_gradient_times_input(kind, reduce):
    batch = batch_of("left")
    model = llama() if kind == "loss" else classifier()
    if kind == "kl":
        del batch["labels"]
    found = gradient_times_input(model, batch, effect=kind if kind != "loss" else None, reduce=reduce)
    double = copy.deepcopy(model).double().eval()
    real = batch["attention_mask"].bool()
    embedded = double.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    logits = double(inputs_embeds=embedded, attention_mask=batch["attention_mask"]).logits
    if kind == "loss":
        losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")
        counts = real[:, 1:] & real[:, :-1]
        asked = ((losses * counts).sum(1) / counts.sum(1)).sum()
    else:
        target = LABELS if kind == "label" else logits.argmax(-1)
        asked = -F.cross_entropy(logits, target, reduction="sum")
    asked.backward()
    products = embedded.grad * embedded.detach()
    expected = products.sum(-1).abs() if reduce == "sum" else products.abs().sum(-1)
    torch.testing.assert_close(found[real].double(), expected[real], rtol=1e-3, atol=1e-5)
    assert found[~real].isnan().all()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks


def test_gradient_is_the_finite_difference():
    batch, model = batch_of("right"), classifier().double()
    found = gradient_times_input(model, batch)
    embedding = model.get_input_embeddings()

    def log_p(scale: float) -> float:
        def shrink(module, args, output):
            output = output.clone()
            output[0, 3] *= scale
            return output

        handle = embedding.register_forward_hook(shrink)
        with torch.no_grad():
            logits = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        handle.remove()
        return logits.log_softmax(-1)[0, LABELS[0]].item()

    expected = abs(log_p(1 + 1e-4) - log_p(1 - 1e-4)) / 2e-4
    assert found[0, 3].item() == pytest.approx(expected, rel=1e-3)


def test_gradient_has_its_errors():
    with pytest.raises(ConfigurationError, match="`reduce` must be one of 'sum', 'l1', got 'max'"):
        gradient_times_input(llama(), batch_of("right"), reduce="max")
    with pytest.raises(ConfigurationError, match="outputs, and it is unknown which"):
        gradient_times_input(t5_for_generation(), {**batch_of("right"), "decoder_input_ids": token_ids(tokens=4)})


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=12))
def test_rank_correlation_is_that_of_scipy(pairs):
    first, second = (torch.tensor(values, dtype=torch.float32) for values in zip(*pairs, strict=True))
    found = rank_correlation(first[None], second[None])[0].item()
    if len(first.unique()) == 1 or len(second.unique()) == 1:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(scipy.stats.spearmanr(first, second).statistic, abs=1e-9)


def test_rank_correlation_leaves_out_what_is_not_known():
    nan = torch.nan
    first = torch.tensor([[1.0, 2.0, 3.0, nan, 9.0], [1.0, nan, nan, 2.0, 3.0]])
    second = torch.tensor([[3.0, 5.0, 4.0, 1.0, nan], [1.0, 2.0, 3.0, nan, 3.0]])
    found = rank_correlation(first, second)
    assert found[0].item() == pytest.approx(0.5)
    assert found[1].isnan()  # two values say nothing


def test_mean_over_sequences_against_scipy():
    values = torch.tensor([0.1, torch.nan, 0.5, 0.3])
    found = MeanOverSequences.of(values)
    known = values[~values.isnan()].double().numpy()
    assert found.mean == pytest.approx(known.mean())
    assert found.stderr == pytest.approx(scipy.stats.sem(known))
    assert found.num_sequences == 3
    assert np.isnan(MeanOverSequences.of(values[:1]).stderr)
    assert np.isnan(MeanOverSequences.of(values[1:2]).mean)


def test_attention_agrees_where_it_is_certain():
    assert agrees(MeanOverSequences(0.5, 0.1, 9))
    assert not agrees(MeanOverSequences(0.1, 0.01, 9))
    assert not agrees(MeanOverSequences(0.5, 0.3, 9))  # not above zero for certain
    assert agrees(MeanOverSequences(0.5, float("nan"), 1))
    assert agrees(MeanOverSequences(float("nan"), float("nan"), 0))
    assert not agrees(MeanOverSequences(0.5, 0.1, 9), threshold=0.6)


@pytest.mark.parametrize("build", [llama, classifier], ids=["llama", "classifier"])
def test_comparison_is_by_magnitude(build):
    model, batch = build(), batch_of("right")
    occlusion = occlude(model, batch, max_units=8)
    found = compare(model, batch, occlusion)
    hidden = ~occlusion.importance[0].isnan()
    size = occlusion.importance[0, hidden].abs()
    for layer in range(2):
        received = found.attribution.received[layer, 0, hidden]
        expected = scipy.stats.spearmanr(received, size).statistic
        assert found.attention[layer, 0].item() == pytest.approx(expected, abs=1e-6)
        rollout = found.attribution.rollout[layer, 0, hidden]
        expected = scipy.stats.spearmanr(rollout, size).statistic
        assert found.rollout[layer, 0].item() == pytest.approx(expected, abs=1e-6)
    expected = scipy.stats.spearmanr(found.gradient_scores[0, hidden], size).statistic
    assert found.gradient[0].item() == pytest.approx(expected, abs=1e-6)
    assert found.attention.shape == (2, 3)
    assert found.scores()["attention"].shape == (3, TOKENS)


def test_comparison_without_attention_has_its_reason():
    batch = batch_of("right")
    model = doge()
    found = compare(model, batch, occlude(model, batch))
    assert found.attention.shape == (0, 3)
    assert "depends on their content" in found.why_no_attention
    assert list(found.scores()) == ["gradient"]
    assert found.gradient.isfinite().all()


def test_comparison_with_another_batch_is_refused():
    batch = batch_of("right")
    occlusion = occlude(llama(), batch)
    with pytest.raises(ConfigurationError, match="`occlusion` is from a batch of shape"):
        compare(llama(), {"input_ids": token_ids(2)}, occlusion)
