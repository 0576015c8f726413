"""The block of a site: the layer of the model that its attention belongs to."""

import pytest
from torch import nn

from attnwatch.capture import find_sites
from attnwatch.capture.blocks import find_blocks
from tests.support.models import HEADS, LAYERS, WIDTH, bert, gpt, llama, t5


def blocks(model: nn.Module) -> dict[str, str]:
    """Path of the block by name of the site."""
    paths = {module: path for path, module in model.named_modules()}
    found = find_blocks(model, {site.name: site.module for site in find_sites(model)})
    return {site: paths[block] for site, block in found.items()}


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (llama, {f"model.layers.{i}.self_attn": f"model.layers.{i}" for i in range(LAYERS)}),
        (bert, {f"encoder.layer.{i}.attention.self": f"encoder.layer.{i}" for i in range(LAYERS)}),
        (gpt, {f"layers.{i}.attention": f"layers.{i}" for i in range(LAYERS)}),
        (lambda: llama(layers=1), {"model.layers.0.self_attn": "model.layers.0"}),
    ],
    ids=["llama", "bert", "by hand", "one layer"],
)
def test_block_is_the_entry_of_the_list_of_layers(build, expected):
    assert blocks(build()) == expected


def test_list_of_the_parts_of_a_layer_is_no_list_of_layers():
    found = blocks(t5())
    for stack, parts in {"encoder": ["0.SelfAttention"], "decoder": ["0.SelfAttention", "1.EncDecAttention"]}.items():
        for layer in range(LAYERS):
            for part in parts:
                assert found[f"{stack}.block.{layer}.layer.{part}"] == f"{stack}.block.{layer}"


def test_innermost_of_nested_lists():
    stages = nn.ModuleList(
        nn.ModuleDict({"blocks": nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, HEADS) for _ in range(2))})
        for _ in range(2)
    )
    model = nn.ModuleDict({"stages": stages})
    assert set(blocks(model).values()) == {f"stages.{i}.blocks.{j}" for i in range(2) for j in range(2)}


def test_attention_without_a_list_around_it_is_its_own_block():
    model = nn.TransformerDecoderLayer(WIDTH, HEADS)
    assert blocks(model) == {"self_attn": "self_attn", "multihead_attn": "multihead_attn"}
    assert blocks(nn.MultiheadAttention(WIDTH, HEADS)) == {"MultiheadAttention": ""}


def test_lists_of_attention_alone():
    assert blocks(nn.ModuleList([nn.MultiheadAttention(WIDTH, HEADS) for _ in range(2)])) == {"0": "0", "1": "1"}
