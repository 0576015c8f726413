"""timm's blocks and models without some heads equal those in which these heads are masked."""

from collections.abc import Callable

import lightning
import pytest
import timm
import torch
from timm.layers import Attention, AttentionRope
from timm.models import eva, swin_transformer, vision_transformer
from torch import nn

from attnwatch import ConfigurationError, prune_heads
from attnwatch.lightning import HeadPruning
from attnwatch.models.timm import early_timm_forward
from tests.support.head_models import (
    PLAIN,
    Batch,
    Family,
    assert_equal_step,
    features,
    mask,
    masked,
    output,
    pruned,
    survivors,
)
from tests.support.models import HEAD_DIM, HEADS, LENGTHS, TOKENS, WIDTH, seeded
from tests.support.snapshot import assert_unchanged, snapshot

BATCH = len(LENGTHS)
HIDDEN = torch.rand(TOKENS, TOKENS, generator=torch.Generator().manual_seed(6)) < 0.6
HIDDEN[:, 0] = True
FLOATS = torch.randn(BATCH, HEADS, TOKENS, TOKENS, generator=torch.Generator().manual_seed(7), dtype=torch.float64)

CALLS = {
    "nothing": {},
    "causal": {"is_causal": True},
    "bool mask": {"attn_mask": HIDDEN},
    "float mask of each sequence": {"attn_mask": FLOATS[:, :1]},
    "float mask of each head": {"attn_mask": FLOATS},
}
BLOCKS = {
    "block": lambda **options: vision_transformer.Block(WIDTH, HEADS, **options),
    "block, scaled": lambda **options: vision_transformer.Block(WIDTH, HEADS, init_values=0.5, **options),
    "post-norm block": lambda **options: vision_transformer.ResPostBlock(WIDTH, HEADS, **options),
    "parallel things": lambda **options: vision_transformer.ParallelThingsBlock(WIDTH, HEADS, 2, **options),
}


def block(name: str, fused: bool = True, **options) -> Callable:
    def build() -> nn.Module:
        model = seeded(lambda: BLOCKS[name](qkv_bias=True, qk_norm=True, **options))
        for module in model.modules():
            if isinstance(module, Attention):
                module.fused_attn = fused
        return model

    return build


def heads_of(name: str) -> dict:
    return PLAIN if name == "parallel things" else {0: [1, 2]}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "by hand"])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name: str, fused: bool, call: dict):
    family = Family(block(name, fused), lambda: {"x": features(TOKENS), **call}, heads_of(name))
    model = family.model()
    entries = survivors(model, family.heads)
    assert_equal_step(masked(model, family.heads), pruned(model, family.heads), family.batch(), entries)
    with torch.no_grad():
        expected, got = (cut(model.eval(), family.heads)(**family.batch()) for cut in (masked, pruned))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("name", ["block", "parallel things"])
def test_blocks_without_heads(name: str, call: dict):
    heads = {0: range(HEADS)}
    others = {} if name == "parallel things" else {"other": nn.MultiheadAttention(2, 2)}
    model = nn.ModuleDict({"tried": Family(block(name), dict, {}).model(), **others}).double()
    batch = {"x": features(TOKENS), **call}
    results = [cut(model, heads)["tried"](**batch) for cut in (masked, pruned)]
    torch.testing.assert_close(results[1], results[0])


def test_arguments_by_position_and_by_name_without_heads():
    """The input is found by its name, whatever comes first."""
    model = nn.ModuleDict({"tried": attention(), "other": nn.MultiheadAttention(2, 2)}).double()
    expected = masked(model, {0: range(HEADS)})["tried"](features(TOKENS))
    headless = pruned(model, {0: range(HEADS)})["tried"]
    for args, options in (((features(TOKENS), HIDDEN), {}), ((), {"attn_mask": HIDDEN, "x": features(TOKENS)})):
        torch.testing.assert_close(headless(*args, **options), expected)


def attention(**options) -> Attention:
    return seeded(lambda: Attention(WIDTH, HEADS, qkv_bias=True, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"gated": True},
        {"attn_head_dim": 6},
        {"dim_out": 20},
        {"gated": True, "qk_norm": True, "norm_layer": nn.RMSNorm},
    ],
    ids=str,
)
@pytest.mark.parametrize("heads", [[0, 2], [3]], ids=str)
def test_kinds_of_attention(options: dict, heads: list):
    family = Family(lambda: attention(**options), lambda: {"x": features(TOKENS)}, {0: heads})
    model = family.model()
    entries = survivors(model, family.heads)
    assert_equal_step(masked(model, family.heads), pruned(model, family.heads), family.batch(), entries)


@pytest.mark.parametrize("call", [call for name, call in CALLS.items() if name != "float mask of each head"], ids=str)
def test_forward_of_early_versions_agrees_while_no_head_is_missing(call: dict):
    """Dropout included."""
    module = attention(attn_drop=0.3, proj_drop=0.3).double()
    results = []
    for forward in (module.forward, lambda *args, **options: early_timm_forward(module, *args, **options)):
        torch.manual_seed(5)
        results.append(forward(features(TOKENS), **call))
    torch.testing.assert_close(results[1], results[0])


REFUSED = {
    "norm over all heads": lambda: attention(scale_norm=True, norm_layer=nn.LayerNorm),
    "norm without weights": lambda: attention(
        scale_norm=True, norm_layer=lambda width, **_: nn.LayerNorm(width, elementwise_affine=False)
    ),
    "attention and MLP in one": lambda: vision_transformer.ParallelScalingBlock(WIDTH, HEADS),
    "differences": lambda: vision_transformer.Block(WIDTH, HEADS, attn_layer="diff"),
    "eva": lambda: eva.EvaAttention(WIDTH, HEADS, scale_norm=False),
    "rotary": lambda: AttentionRope(WIDTH, HEADS),
    "windows": lambda: swin_transformer.WindowAttention(WIDTH, HEADS, window_size=4),
}
REASONS = {
    "norm over all heads": "its norm covers all heads together",
    "norm without weights": "its norm covers all heads together",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_attention_is_refused_by_name(name: str):
    model = nn.ModuleDict({"mine": REFUSED[name](), "other": nn.MultiheadAttention(WIDTH, HEADS)})
    before = snapshot(model)
    with pytest.raises(ConfigurationError, match=REASONS.get(name, "the layout of .* is unknown")):
        prune_heads(model, {0: [1]})
    assert_unchanged(before, model)


def vit(**options) -> nn.Module:
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": WIDTH, "depth": 2, "num_heads": HEADS, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **sizes | options)


def images(number: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(8)
    return {"x": torch.randn(number, 3, 16, 16, generator=generator, dtype=torch.float64)}


def test_model_trains_like_the_masked_one():
    """prune_heads in a loop of one's own."""
    family = Family(lambda: seeded(vit), images, PLAIN)
    models = [family.model(), family.model()]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in models]
    for at in range(6):
        if at == 2:
            entries = survivors(models[0], PLAIN)
            prune_heads(models[1], PLAIN, optimizers=[optimizers[1]])
        if at >= 2:
            mask(models[0], PLAIN)
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            output(model, images()).square().mean().backward()
            for parameter in model.parameters():  # gradients of key biases are rounding errors, which Adam scales up
                parameter.grad[parameter.grad.abs() < 1e-13] = 0
            optimizer.step()
    expected = dict(models[0].named_parameters())
    for name, parameter in models[1].named_parameters():
        torch.testing.assert_close(parameter, expected[name].take(entries[name]), rtol=1e-7, atol=1e-9)


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = vit(reg_tokens=2, global_pool="map")

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.model(batch["x"].float()), torch.arange(len(batch["x"])))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")
def test_model_trains_under_head_pruning(tmp_path):
    callback = HeadPruning(0.5, start=3, end=6, num_cuts=2, guard=None)
    trainer = lightning.Trainer(
        max_steps=9,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    model = Classifier()
    trainer.fit(model, torch.utils.data.DataLoader([{"x": x} for x in images(3)["x"]] * 10, batch_size=3))
    assert [cut.step for cut in callback.cuts] == [3, 6]
    assert sum(block.attn.num_heads for block in model.model.blocks) == HEADS
    assert all(block.attn.attn_dim == HEAD_DIM * block.attn.num_heads for block in model.model.blocks)
