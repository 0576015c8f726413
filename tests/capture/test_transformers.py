"""What is recorded on fused kernels equals what the same weights return as eager attention weights."""

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attnwatch.recorder import AttentionHistory, AttentionRecorder
from attnwatch.statistics import Statistic
from tests.support.models import (
    HEADS,
    LENGTHS,
    TOKENS,
    bart,
    bert,
    doge,
    gemma2,
    gpt2,
    gpt_oss,
    llama,
    mistral,
    padding_mask,
    t5,
    token_ids,
    vit,
)
from tests.support.versions import BEFORE_5, EARLY, lacks

CAUSAL = {
    "llama, eager": (llama, "eager"),
    "llama, sdpa": (llama, "sdpa"),
    "mistral, eager": (mistral, "eager"),
    "mistral, sdpa": (mistral, "sdpa"),
    "gemma2, eager": (gemma2, "eager"),
    "gpt2, eager": (gpt2, "eager"),
    "gpt2, sdpa": (gpt2, "sdpa"),
}
PACKED_POSITIONS = torch.cat([torch.arange(5), torch.arange(3), torch.arange(4)])[None]
NO_CACHE = {"use_cache": False}
IMPLEMENTATIONS = ["eager", "sdpa"]
T5_BY_HAND = lacks(EARLY, "attention of T5 is computed by hand")
BERT_BY_HAND = lacks(BEFORE_5, "eager attention of BERT is computed by hand")
IMPLEMENTATIONS_OF_BERT = [pytest.param("eager", marks=BERT_BY_HAND), "sdpa"]


def record(model, **batch) -> AttentionHistory:
    """One training step in which every query row is looked at."""
    with AttentionRecorder(model, num_query_rows=None) as recorder:
        with recorder.step(0):
            model(**batch)[0].square().mean().backward()
        return recorder.history()


def returned_weights(build: Callable, **batch) -> dict[str, list[Tensor]]:
    """Attention weights [batch, heads, queries, keys] per layer, as the eager model returns them."""
    output = build("eager")(**batch, output_attentions=True)
    return {name: list(value) for name, value in output.items() if name.endswith("attentions")}


def expected_statistics(weights: Tensor, query_mask: Tensor | None = None) -> dict[str, Tensor]:
    """Per head, over the rows that see two keys and are not padding. A hidden key has weight zero."""
    weights = weights.detach().double()
    num_visible = (weights > 0).sum(-1)
    counts = num_visible >= 2
    if query_mask is not None:
        counts &= query_mask.bool()[:, None]
    on_tokens = weights.sum(-1)  # less than one where a head has learned a sink
    weights = weights / on_tokens[..., None]
    entropy = torch.special.entr(weights).sum(-1)
    first_visible = (weights > 0).to(torch.uint8).argmax(-1, keepdim=True)
    rows = {
        "entropy": entropy,
        "normalized_entropy": entropy / num_visible.log(),
        "sink_mass": 1 - on_tokens + on_tokens * weights.gather(-1, first_visible).squeeze(-1),
    }
    return {name: torch.where(counts, row, 0).sum((0, 2)) / counts.sum((0, 2)) for name, row in rows.items()}


def assert_recorded(history: AttentionHistory, layers: dict[str, tuple[Tensor, Tensor | None]]):
    """`layers`: site to its returned weights and query mask."""
    assert set(history.sites) == set(layers)
    assert set(history.coverage.values()) == {"observed"}
    for site, (weights, query_mask) in layers.items():
        for name, expected in expected_statistics(weights, query_mask).items():
            recorded = torch.from_numpy(history[name][0, history.sites.index(site)])
            torch.testing.assert_close(
                recorded.double(), expected, rtol=0, atol=2e-5, msg=lambda text, at=(site, name): f"{at}: {text}"
            )


def in_order(history: AttentionHistory, weights: list[Tensor], query_mask: Tensor | None = None):
    return {site: (layer, query_mask) for site, layer in zip(history.sites, weights, strict=True)}


@pytest.mark.parametrize(("build", "implementation"), CAUSAL.values(), ids=CAUSAL)
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_causal_model(build: Callable, implementation: str, padding: str):
    mask = torch.ones(len(LENGTHS), TOKENS).long() if padding == "none" else padding_mask(padding)
    batch = {"input_ids": token_ids(), "attention_mask": mask, **NO_CACHE}
    history = record(build(implementation), **batch)
    if build is gpt2 and implementation == "sdpa" and EARLY:
        build = functools.partial(gpt2, is_scaled_by_layer=False)  # sdpa ignored it there
    assert_recorded(history, in_order(history, returned_weights(build, **batch)["attentions"], mask))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("build", [llama, mistral], ids=["llama", "mistral"])
def test_packed_documents(build: Callable, implementation: str):
    batch = {"input_ids": token_ids(batch=1), "position_ids": PACKED_POSITIONS, **NO_CACHE}
    history = record(build(implementation), **batch)
    weights = returned_weights(build, **batch)["attentions"]
    assert weights[0][0, 0, 5].count_nonzero() == 1  # the second document begins anew
    assert_recorded(history, in_order(history, weights))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS_OF_BERT)
def test_bert_with_padding(implementation: str):
    batch = {"input_ids": token_ids(), "attention_mask": padding_mask("right")}
    history = record(bert(implementation), **batch)
    weights = returned_weights(bert, **batch)["attentions"]
    assert_recorded(history, in_order(history, weights, batch["attention_mask"]))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vit(implementation: str):
    batch = {"pixel_values": torch.randn(2, 3, 12, 12)}
    history = record(vit(implementation), **batch)
    assert_recorded(history, in_order(history, returned_weights(vit, **batch)["attentions"]))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("build", [pytest.param(t5, marks=T5_BY_HAND, id="t5"), pytest.param(bart, id="bart")])
def test_encoder_decoder(build: Callable, implementation: str):
    batch = {
        "input_ids": token_ids(),
        "attention_mask": padding_mask("right"),
        "decoder_input_ids": token_ids(tokens=8, seed=1),
        **NO_CACHE,
    }
    history = record(build(implementation), **batch)
    weights = returned_weights(build, **batch)
    cross = [site for site in history.sites if "encoder_attn" in site or "EncDec" in site]
    encoder = [site for site in history.sites if site.startswith("encoder")]
    decoder = [site for site in history.sites if site not in (*cross, *encoder)]
    layers = {}
    for sites, name, query_mask in (
        (encoder, "encoder_attentions", batch["attention_mask"]),
        (decoder, "decoder_attentions", None),
        (cross, "cross_attentions", None),
    ):
        layers |= {site: (layer, query_mask) for site, layer in zip(sites, weights[name], strict=True)}
    assert_recorded(history, layers)
    distance = dict(zip(history.sites, history["distance"][0], strict=True))
    assert all(torch.from_numpy(distance[site]).isnan().all() for site in cross)
    assert all(torch.from_numpy(distance[site]).isfinite().all() for site in (*encoder, *decoder))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS_OF_BERT)
def test_cross_attention_counts_every_query_and_has_no_distance(implementation: str):
    """Queries and keys of a cross-attention are different tokens, also where there are equally many."""
    build = functools.partial(bert, is_decoder=True, add_cross_attention=True)
    batch = {
        "input_ids": token_ids(),
        "encoder_hidden_states": torch.randn(len(LENGTHS), TOKENS, 32),
        "encoder_attention_mask": padding_mask("right"),
        **NO_CACHE,
    }
    history = record(build(implementation), **batch)
    weights = returned_weights(build, **batch)
    sites = {"crossattention": weights["cross_attentions"], ".attention.": weights["attentions"]}
    layers = {}
    for part, of_layers in sites.items():
        found = [site for site in history.sites if part in site]
        layers |= {site: (layer, None) for site, layer in zip(found, of_layers, strict=True)}
    assert_recorded(history, layers)
    for site in history.sites:
        distance = torch.from_numpy(history["distance"][0, history.sites.index(site)])
        assert distance.isnan().all() == ("crossattention" in site)


@pytest.mark.filterwarnings("ignore")  # transformers uses what torch deprecates, and torch asks for the compiled kernel
@torch.compiler.set_stance("force_eager")  # compiling the kernel takes longer than all other tests of this file
def test_flex_attention_forward():
    batch = {"input_ids": token_ids(), "attention_mask": padding_mask("left"), **NO_CACHE}
    model = llama("flex_attention")
    with AttentionRecorder(model, num_query_rows=None) as recorder:
        with recorder.step(0), torch.no_grad():  # there is no backward on the CPU
            model(**batch)
        history = recorder.history()
    assert_recorded(history, in_order(history, returned_weights(llama, **batch)["attentions"], batch["attention_mask"]))


def with_sinks(implementation: str = "eager") -> nn.Module:
    model = gpt_oss(implementation)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.copy_(torch.linspace(-2, 3, HEADS))
    return model


@pytest.mark.parametrize("padding", ["left", "right"])
def test_learned_sinks(padding: str):
    """What is missing in a row of the returned weights is on the sink."""
    batch = {"input_ids": token_ids(), "attention_mask": padding_mask(padding), **NO_CACHE}
    history = record(with_sinks(), **batch)
    weights = returned_weights(with_sinks, **batch)["attentions"]
    assert weights[0][:, :, -1].sum(-1).min() < 0.9
    assert_recorded(history, in_order(history, weights, batch["attention_mask"]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch asks a tensor between modules for its gradient
def test_learned_sinks_in_compiled_code():
    model = with_sinks()
    for layer in model.model.layers:
        layer.self_attn.compile(backend="aot_eager", fullgraph=True)
    history = record(model, input_ids=token_ids(), **NO_CACHE)
    expected = record(with_sinks(), input_ids=token_ids(), **NO_CACHE)
    for name in Statistic.registry:
        np.testing.assert_allclose(history[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert np.isfinite(history["sink_mass"]).all()


def test_keys_that_are_chosen_by_their_content_are_not_observed():
    """Padding can't be told from what was left out."""
    history = record(doge(), input_ids=token_ids(), **NO_CACHE)
    assert all("depends on their content" in reason for reason in history.coverage.values())
    for name in Statistic.registry:
        assert torch.from_numpy(history[name]).isnan().all()
