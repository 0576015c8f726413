"""Why no attention came from a layer: each reason is the true one, and is given once."""

import functools
import re
import warnings
from collections.abc import Callable

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.utils.data import DataLoader

import attnwatch.lightning
from attnwatch import AttentionRecorder, AttnwatchWarning, NoAttentionError, prune_heads
from attnwatch.recorder import AttentionHistory
from tests.support.models import (
    HEADS,
    LAYERS,
    TOKENS,
    WIDTH,
    CausalSelfAttention,
    FusedAttention,
    gpt,
    llama,
    seeded,
    token_ids,
)


@pytest.fixture(autouse=True)
def _nothing_is_compiled():
    torch._dynamo.reset()


BY_HAND = "its forward ran without calling scaled_dot_product_attention: it computes attention in another way; enable"


def by_hand(dropout: float = 0.0) -> nn.Module:
    """nanoGPT's attention, its fused branch switched off."""
    return CausalSelfAttention(dropout, flash=False)


def said_in(
    model: nn.Module, *, steps: int = 3, inputs: Callable[[int], torch.Tensor] = lambda step: token_ids(seed=step)
) -> tuple[dict[str, str], list[str]]:
    """Coverage, and the warnings of a plain loop."""
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        with AttentionRecorder(model, every_n_steps=1) as recorder:
            for step in range(steps):
                with recorder.step(step):
                    model(inputs(step)).sum().backward()
            return recorder.coverage(), [str(each.message) for each in given if each.category is AttnwatchWarning]


def test_untaken_fused_branch():
    coverage, given = said_in(gpt(by_hand))
    assert len(given) == 1
    for text in (given[0], *coverage.values()):
        assert f"{BY_HAND} its fused attention (flash=True)" in text
    assert given[0].startswith(f"attnwatch: {LAYERS} attention sites are not observed.")


def test_fused_branch_that_is_taken_says_nothing():
    coverage, given = said_in(gpt(CausalSelfAttention))
    assert not given
    assert set(coverage.values()) == {"observed"}


def test_untaken_fused_branch_of_timm():
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
    for block in model.blocks:
        block.attn.fused_attn = False
    coverage, given = said_in(model, inputs=lambda step: torch.randn(2, 3, 32, 32))
    assert len(given) == 1
    assert f"{BY_HAND} its fused attention (fused_attn=True)" in given[0]
    assert len(coverage) == 2


aten_attention = torch.ops.aten.scaled_dot_product_attention


class OperatorAttention(FusedAttention):
    """Calls the operator below the function, which no patch sees."""

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.attend(*self.heads(x)).transpose(1, 2).flatten(2))


class AtenAttention(OperatorAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.ops.aten.scaled_dot_product_attention(q, k, v, None, 0.0, True)


class AtenAliasAttention(OperatorAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return aten_attention(q, k, v, None, 0.0, True)


class AtenHeldAttention(OperatorAttention):
    def __init__(self, dropout: float = 0.0):
        super().__init__(dropout)
        self.attend = functools.partial(aten_attention.default, is_causal=True)


ATEN = "calls torch.ops.aten.scaled_dot_product_attention directly; use torch.nn.functional.scaled_dot_product_att"


def test_operator_below_the_function():
    coverage, given = said_in(gpt(AtenAttention))
    assert len(given) == 1
    for text in (given[0], *coverage.values()):
        assert f"its forward {ATEN}" in text
        assert "in another way" not in text


@pytest.mark.parametrize("kind", [AtenAliasAttention, AtenHeldAttention])
def test_operator_below_the_function_under_another_name(kind: type[nn.Module]):
    model = gpt(kind)
    with pytest.raises(NoAttentionError, match=re.escape(f"layers.0.attention: {ATEN}")):
        AttentionRecorder(model)
    model.layers[1]["attention"] = CausalSelfAttention()
    coverage, _ = said_in(model)
    assert ATEN in coverage["layers.0.attention"]
    assert coverage["layers.1.attention"] == "observed"


class Module(pl.LightningModule):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def training_step(self, batch, batch_idx):
        return self.model(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(module: pl.LightningModule, *, steps: int) -> list[str]:
    """What attnwatch's monitor warns of."""
    monitor = attnwatch.lightning.AttentionMonitor(every_n_steps=1, flush_every=5, checkup=False)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[monitor],
        ).fit(module, DataLoader(token_ids(60), batch_size=2))
    return [str(each.message) for each in given if each.category is AttnwatchWarning]


def test_trainer_gives_the_same_reason_once():
    messages = train(Module(gpt(by_hand)), steps=3)
    assert len(messages) == 1
    assert f"{LAYERS} of {LAYERS} attention sites are not observed." in messages[0]
    assert "(flash=True)" in messages[0]


class Manual(Module):
    """Optimizes by hand and returns nothing."""

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.optimizers().zero_grad()
        self.manual_backward(self.model(batch))
        self.optimizers().step()


def test_trainer_without_any_loss_is_told_once():
    messages = train(Manual(gpt()), steps=25)
    assert len(messages) == 1
    assert "no loss was recorded in 10 observed steps" in messages[0]
    assert ": return it from training_step" in messages[0]


@pytest.mark.parametrize("need_weights", [True, False])
@torch.no_grad()
def test_fast_path_of_multihead_attention(need_weights: bool):
    module, x = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval(), torch.randn(2, TOKENS, WIDTH)
    with AttentionRecorder(module) as recorder:
        with recorder.step(0):
            module(x, x, x, need_weights=need_weights)
        (reason,) = recorder.coverage().values()
    if need_weights:
        assert reason == "observed"
    else:
        assert "PyTorch's inference fast path computed it, as in eval mode without gradients" in reason


def test_layer_without_heads():
    model = llama()
    prune_heads(model, {"model.layers.1.self_attn": range(HEADS)})
    with AttentionRecorder(model) as recorder:
        with recorder.step(0):
            model(input_ids=token_ids(), labels=token_ids()).loss.backward()
        coverage = recorder.coverage()
    assert coverage["model.layers.0.self_attn"] == "observed"
    assert coverage["model.layers.1.self_attn"] == "all of its heads were removed, so it has no attention"


def record(model: nn.Module, *, micro_batches: int = 1) -> AttentionHistory:
    with AttentionRecorder(model, num_query_rows=None) as recorder:
        for _ in range(micro_batches):
            with recorder.step(0):
                model(input_ids=token_ids()).last_hidden_state.sum().backward()
        return recorder.history()


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_shared_weights_are_the_mean_over_the_layers(micro_batches: int):
    def build(**options) -> nn.Module:
        options |= {"vocab_size": 50, "hidden_size": WIDTH, "embedding_size": 16, "intermediate_size": 48}
        config = hf.AlbertConfig(**options, num_attention_heads=HEADS, num_hidden_layers=3, classifier_dropout_prob=0.0)
        config._attn_implementation = "eager"
        return seeded(lambda: hf.AlbertModel(config))

    history = record(build(), micro_batches=micro_batches)
    (said,) = history.coverage.values()
    assert said == "observed; it runs 3 times per forward with the same weights; statistics cover all calls"
    with torch.no_grad():
        weights = build().double().eval()(input_ids=token_ids(), output_attentions=True).attentions
    expected = torch.stack([torch.special.entr(each).sum(-1).mean((0, 2)) for each in weights]).mean(0)
    np.testing.assert_allclose(history["entropy"][0, 0], expected, rtol=0, atol=1e-5)


def test_site_that_does_not_run_beside_others():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = gpt(), gpt()

        def forward(self, ids):
            return self.used(ids)

    with AttentionRecorder(Half()) as recorder:
        assert all("there was none yet; put forward and backward inside" in why for why in recorder.coverage().values())
        with recorder.step(0):
            recorder._capture.module("used.layers.0.attention")  # a site of it
        assert all("a compiled model must be watched" in why for why in recorder.coverage().values())
    coverage, given = said_in(Half())
    assert not given
    assert coverage["used.layers.0.attention"] == "observed"
    assert coverage["unused.layers.0.attention"].endswith("although those of other sites did")


def test_hooks_that_count_are_there_for_one_step():
    """Those on the model, which tell whether its forward raised, and on its layers, for statistics, are in each."""
    model = gpt()
    layers = {name for name, _ in model.named_modules() if re.fullmatch(r"(.*\.)?layers\.\d+", name)}

    def hooks() -> dict[str, int]:
        return {
            name: len(module._forward_hooks) + len(module._forward_pre_hooks)
            for name, module in model.named_modules()
            if name
        }

    with AttentionRecorder(model, every_n_steps=1) as recorder:
        before = hooks()
        for step in range(2):
            with recorder.step(step):
                added = {name for name, number in hooks().items() if number != before[name]}
                assert (added == layers) == (step == 1)
                assert added >= layers
                model(token_ids()).backward()
            assert hooks() == before


def test_loop_without_any_loss_is_told_once():
    _, given = said_in(gpt(), steps=60)
    assert len(given) == 1
    assert "no loss was recorded in 50 observed steps, so the run is judged by attention alone" in given[0]
    assert ": call recorder.record_loss(loss)" in given[0]


def test_loss_outside_of_a_step_is_told_once():
    with AttentionRecorder(gpt()) as recorder:
        with pytest.warns(AttnwatchWarning, match="`record_loss` was called outside of a step"):
            recorder.record_loss(1.0)
        recorder.record_loss(1.0)
