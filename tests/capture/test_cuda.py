"""Fused kernels, compilation and streams of a GPU: the same numbers, and nothing that waits."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnwatch import AttentionRecorder, HeadImportance, TokenCriterion, TokenDropper, prune_heads
from attnwatch.recorder import AttentionHistory
from tests.support.models import gpt, llama, seeded

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch.compile uses what torch deprecates
    pytest.mark.filterwarnings("ignore::UserWarning"),  # its compiler has advice
]

VOCABULARY, TOKENS = 64, 128
BACKENDS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]


def wide_llama(implementation: str = "sdpa", dtype: torch.dtype = torch.float32) -> hf.LlamaForCausalLM:
    """Wide enough for every kernel, on the device."""
    config = hf.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=TOKENS,
    )
    config._attn_implementation = implementation
    model = seeded(lambda: hf.LlamaForCausalLM(config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.mul_(0.3)  # sharp, and not one key alone
    return model.to("cuda", dtype)


def ids(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (batch, TOKENS), generator=torch.Generator().manual_seed(seed)).cuda()


def step(model: nn.Module, recorder: AttentionRecorder, number: int = 0) -> Tensor:
    with recorder.step(number):
        loss = model(input_ids=ids(seed=number), labels=ids(seed=number), use_cache=False).loss
        loss.backward()
        recorder.record_loss(loss)
    return loss.detach().clone()  # what a CUDA graph returns is overwritten by the next step


def recorded(model: nn.Module, steps: int = 1, **options) -> AttentionHistory:
    with AttentionRecorder(model, every_n_steps=1, **options) as recorder:
        for number in range(steps):
            step(model, recorder, number)
            model.zero_grad()
        return recorder.history()


def from_weights(model: nn.Module) -> np.ndarray:
    """Entropy [layers, heads] in nats, from the weights that eager attention returns; the first row sees one key."""
    weights = model(input_ids=ids(), output_attentions=True, use_cache=False).attentions
    return np.stack([torch.special.entr(w.double()).sum(-1)[:, :, 1:].mean((0, 2)).tolist() for w in weights])


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_fused_kernels_in_bfloat16(backend: SDPBackend):
    with sdpa_kernel(backend):
        history = recorded(wide_llama(dtype=torch.bfloat16), num_query_rows=None)
    assert set(history.coverage.values()) == {"observed"}
    expected = from_weights(wide_llama("eager", torch.bfloat16))
    assert expected.min() < 0.8 * np.log(TOKENS / 2)  # far from uniform
    np.testing.assert_allclose(history["entropy"][0], expected, rtol=0, atol=0.02)


def test_flex_attention():
    history = recorded(wide_llama("flex_attention"), num_query_rows=None)
    assert set(history.coverage.values()) == {"observed"}
    np.testing.assert_allclose(history["entropy"][0], from_weights(wide_llama("eager")), rtol=0, atol=2e-3)


@pytest.mark.parametrize("build", [llama, gpt])
def test_statistics_are_those_of_the_cpu(build: Callable):
    tokens = torch.randint(3, 50, (2, 12), generator=torch.Generator().manual_seed(0))
    histories = []
    for device in ("cpu", "cuda"):
        model = build().to(device)
        with AttentionRecorder(model) as recorder, recorder.step(0):
            model(tokens.to(device))
        histories.append(recorder.history())
    for name, values in histories[0].values.items():
        np.testing.assert_allclose(histories[1][name], values, atol=5e-4, rtol=5e-4, err_msg=name)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_model_with_and_without_cuda_graphs(mode: str):
    expected = recorded(wide_llama(), steps=6)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = wide_llama()
    history = recorded(torch.compile(model, mode=mode, fullgraph=True), steps=6)
    assert history.steps.tolist() == [0, 1, 2, 3, 4, 5]
    for name in ("entropy", "max_logit", "sink_mass"):
        np.testing.assert_allclose(history[name], expected[name], rtol=2e-3, atol=2e-3, err_msg=name)
    if mode == "reduce-overhead":
        assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0


def test_captured_cuda_graph_is_not_observed_and_says_so():
    model = gpt().cuda().eval().requires_grad_(False)
    tokens = torch.randint(3, 50, (2, 12)).cuda()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        model(tokens)
    torch.cuda.synchronize()
    with AttentionRecorder(model, every_n_steps=1) as recorder:
        with recorder.step(0), torch.cuda.graph(graph, stream=stream):
            loss = model(tokens)
        with recorder.step(1):
            graph.replay()
        torch.testing.assert_close(loss, model(tokens))
        assert len(recorder.history()) == 0
        assert all("during the capture of a CUDA graph" in reason for reason in recorder.coverage().values())


@pytest.mark.parametrize("build", [wide_llama, gpt], ids=["llama", "gpt"])
def test_steps_never_wait_for_the_device(build: Callable):
    model, tokens = build().cuda(), ids() % 50
    # transformers itself waits to learn whether a mask hides anything, unless it has four dimensions.
    mask = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool, device="cuda").tril()

    def call() -> Tensor:
        if build is gpt:
            return model(tokens)
        return model(input_ids=tokens, attention_mask=mask, labels=tokens, use_cache=False).loss

    with AttentionRecorder(model, every_n_steps=1, flush_every=100) as recorder:
        call().backward()  # whatever waits once
        with recorder.step(0):
            call().backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for number in range(1, 4):
                with recorder.step(number):
                    loss = call()
                    loss.backward()
                    recorder.record_loss(loss.detach())
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as waits:
                warnings.simplefilter("always")
                recorder.flush(finish_step=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert len([each for each in waits if "synchronizing" in str(each.message)]) == 1  # one packed transfer
        assert len(recorder.history()) == 4


def test_training_is_bit_identical_with_the_recorder():
    def losses(watched: bool) -> list[Tensor]:
        model = wide_llama()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        recorder = AttentionRecorder(model, every_n_steps=1)
        if not watched:
            recorder.close()
        seen = []
        for number in range(5):
            seen.append(step(model, recorder, number))
            optimizer.step()
            optimizer.zero_grad()
        recorder.close()
        return [*seen, *(parameter.detach().clone() for parameter in model.parameters())]

    with sdpa_kernel(SDPBackend.MATH):
        for mine, theirs in zip(losses(True), losses(False), strict=True):
            assert torch.equal(mine, theirs)


def test_heads_are_cut_with_the_optimizer_and_equal_masked_ones():
    model = wide_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    importance = HeadImportance(model)
    model(input_ids=ids(), labels=ids(), use_cache=False).loss.backward()
    importance.update()
    optimizer.step()
    values = importance.values()
    assert all(value.isfinite().all() for value in values.values())
    masked = wide_llama()
    masked.load_state_dict(model.state_dict())
    with torch.no_grad():
        masked.model.layers[1].self_attn.o_proj.weight[:, 64:128] = 0
    prune_heads(model, {1: [1]}, optimizers=[optimizer])
    torch.testing.assert_close(model(ids()).logits, masked(ids()).logits, rtol=1e-4, atol=1e-4)
    model(input_ids=ids(), labels=ids(), use_cache=False).loss.backward()
    optimizer.step()


@pytest.mark.parametrize("criterion", TokenCriterion.registry)
def test_tokens_are_dropped_as_on_the_cpu(criterion: str):
    losses = []
    for device in ("cpu", "cuda"):
        model = seeded(lambda: hf.LlamaForCausalLM(wide_llama().config)).to(device)
        tokens = ids().to(device)
        with TokenDropper(model, keep_ratio=0.5, first_layer=1, last_layer=1, criterion=criterion) as dropper:
            for _ in range(2):
                loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
                loss.backward()
                dropper.synchronize()
            losses.append(loss.item())
            assert dropper.layer_tokens < dropper.all_layer_tokens
    np.testing.assert_allclose(*losses, rtol=2e-3)


def test_tokens_are_dropped_in_cuda_graphs():
    losses = []
    for mode in (None, "reduce-overhead"):
        torch._dynamo.reset()
        model = wide_llama()
        if mode:
            model.compile(mode=mode, fullgraph=True)
        with TokenDropper(model, keep_ratio=0.5, first_layer=1, last_layer=1):
            for number in range(6):  # each with tokens of its own
                loss = model(input_ids=ids(seed=number), labels=ids(seed=number), use_cache=False).loss
                loss.backward()
                model.zero_grad()
                losses.append(loss.item())
    np.testing.assert_allclose(losses[:6], losses[6:], rtol=1e-4)
