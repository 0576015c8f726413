"""Diffusers' models, whose attention sits in processor objects that hang on the modules."""

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attnwatch.recorder import AttentionRecorder
from attnwatch.statistics import Statistic
from tests.support.models import seeded

BATCH, IMAGE_TOKENS, TEXT_TOKENS, HEADS, HEAD_DIM = 2, 16, 16, 4, 8
WIDTH = HEADS * HEAD_DIM


def unet() -> nn.Module:
    """The text has as many tokens as the image, so that their numbers do not tell cross-attention."""
    return diffusers.UNet2DConditionModel(
        sample_size=4,
        layers_per_block=1,
        block_out_channels=(WIDTH, WIDTH),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=HEADS,
        norm_num_groups=8,
    )


def sd3() -> nn.Module:
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        out_channels=4,
        pos_embed_max_size=16,
    )


def flux() -> nn.Module:
    return diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
    )


def dit() -> nn.Module:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_num_groups=4,
    )


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


TEXT, POOLED, TIME = random(BATCH, TEXT_TOKENS, WIDTH), random(BATCH, WIDTH), torch.tensor([3, 7])
INPUTS = {
    "unet": {"sample": random(BATCH, 4, 4, 4), "timestep": TIME, "encoder_hidden_states": TEXT},
    "sd3": {
        "hidden_states": random(BATCH, 4, 8, 8),
        "timestep": TIME,
        "encoder_hidden_states": TEXT,
        "pooled_projections": POOLED,
    },
    "flux": {
        "hidden_states": random(BATCH, IMAGE_TOKENS, 4),
        "timestep": TIME / 10,
        "encoder_hidden_states": TEXT,
        "pooled_projections": POOLED,
        "img_ids": torch.arange(IMAGE_TOKENS)[:, None].float() * torch.tensor([0.0, 0.5, 1.0]),
        "txt_ids": torch.zeros(TEXT_TOKENS, 3),
    },
    "dit": {
        "hidden_states": random(BATCH, 4, 8, 8),
        "timestep": TIME,
        "class_labels": torch.tensor([1, 2]),
    },
}
MODELS = {"unet": unet, "sd3": sd3, "flux": flux, "dit": dit}
# Attention modules of each, and how many of them are cross-attention.
NUMBERS = {"unet": (8, 4), "sd3": (2, 0), "flux": (2, 0), "dit": (2, 0)}


class Weights:
    """Weights of attention modules in float64, by hand, from what their projections give."""

    def __init__(self, model: nn.Module):
        self.of: dict[str, Tensor] = {}
        self._given: dict[str, dict[str, Tensor]] = {}
        for name, module in model.named_modules():
            if hasattr(module, "to_q"):
                self._watch(name, module)

    def _watch(self, name: str, module: nn.Module) -> None:
        given = self._given[name] = {}
        for part in ("to_q", "to_k", "add_q_proj", "add_k_proj", "norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            if isinstance(getattr(module, part, None), nn.Module):
                getattr(module, part).register_forward_hook(
                    lambda _, args, output, part=part: given.__setitem__(part, output.detach().double())
                )
        module.register_forward_hook(lambda module, args, kwargs, _: self._compute(name, kwargs), with_kwargs=True)

    def _compute(self, name: str, kwargs: dict) -> None:
        given = self._given[name]
        own, added = [], []
        for side in "qk":
            own.append(self._heads(given.get(f"norm_{side}", given[f"to_{side}"])))
            if f"add_{side}_proj" in given:
                added.append(self._heads(given.get(f"norm_added_{side}", given[f"add_{side}_proj"])))
        if added:  # SD3 has the text behind the image, Flux before it
            is_flux = kwargs.get("image_rotary_emb") is not None
            pairs = zip(added, own, strict=True) if is_flux else zip(own, added, strict=True)
            own = [torch.cat(pair, 2) for pair in pairs]
        if kwargs.get("image_rotary_emb") is not None:
            own = [rotated(heads, kwargs["image_rotary_emb"]) for heads in own]
        query, key = own
        self.of[name] = (query @ key.mT / HEAD_DIM**0.5).softmax(-1)

    @staticmethod
    def _heads(features: Tensor) -> Tensor:
        features = features.flatten(2) if features.ndim == 4 else features
        return features.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)


def rotated(heads: Tensor, embedding: tuple[Tensor, Tensor]) -> Tensor:
    """Pairs of neighbouring features, turned by the angles of their positions."""
    cos, sin = (part.double() for part in embedding)
    real, imaginary = heads.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-imaginary, real], -1).flatten(-2)
    return heads * cos + turned * sin


@pytest.mark.parametrize("name", MODELS)
def test_attention_is_observed_in_full(name: str):
    torch.manual_seed(0)
    model = seeded(MODELS[name]).eval()
    with AttentionRecorder(model, num_query_rows=None) as recorder:
        weights = Weights(model)
        with recorder.step(0):
            output = model(**INPUTS[name])[0]
            output.square().mean().backward()
        history = recorder.history()
    assert set(history.coverage.values()) == {"observed"}
    number, num_cross = NUMBERS[name]
    assert set(history.sites) == set(weights.of)
    assert len(history.sites) == number
    for index, site in enumerate(history.sites):
        entropy = torch.special.entr(weights.of[site]).sum(-1).mean((0, 2))
        np.testing.assert_allclose(history["entropy"][0, index], entropy, rtol=1e-4, atol=1e-5)
        max_weight = weights.of[site].amax(-1).mean((0, 2))
        np.testing.assert_allclose(history["max_weight"][0, index], max_weight, rtol=1e-4, atol=1e-5)
    is_cross = np.isnan(history["distance"][0]).all(1)
    assert [site.endswith("attn2") for site in history.sites] == is_cross.tolist()
    assert is_cross.sum() == num_cross


@pytest.mark.parametrize("name", MODELS)
def test_training_is_bit_identical(name: str):
    def train(watched: bool) -> dict:
        torch.manual_seed(0)
        model = seeded(MODELS[name])
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        recorder = AttentionRecorder(model, every_n_steps=2) if watched else None
        for step in range(3):
            with recorder.step(step) if watched else torch.enable_grad():
                model(**INPUTS[name])[0].square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        if watched:
            recorder.close()
        return model.state_dict()

    torch.testing.assert_close(train(True), train(False), rtol=0, atol=0)


@pytest.mark.slow
def test_compiled_transformer_is_observed():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = seeded(dit).eval()
    with AttentionRecorder(model, num_query_rows=None) as recorder:
        with recorder.step(0):
            model(**INPUTS["dit"])
        expected = recorder.history()
    compiled = torch.compile(model, backend="eager")
    with AttentionRecorder(model, every_n_steps=1, num_query_rows=None) as recorder:
        for step in range(2):
            with recorder.step(step):
                compiled(**INPUTS["dit"])
        history = recorder.history()
    assert set(history.coverage.values()) == {"observed"}
    for name in Statistic.registry:
        np.testing.assert_allclose(history[name][1], expected[name][0], rtol=1e-4, atol=1e-5)
