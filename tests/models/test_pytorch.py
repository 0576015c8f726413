"""PyTorch's own attention and layers without some heads equal those in which these heads are masked."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attnwatch.heads.head_map import layout_of
from tests.support.head_models import (
    COPIES,
    CROSS,
    PLAIN,
    Family,
    assert_equal_step,
    features,
    masked,
    output,
    pruned,
    survivors,
)
from tests.support.models import HEAD_DIM, HEADS, LENGTHS, TOKENS, WIDTH, seeded

GONE = [0, 2]
LEFT = [1, 3]
BATCH = len(LENGTHS)
KEYS = 9

MODULES = {
    "batch first": {"batch_first": True},
    "sequence first": {},
    "no bias": {"batch_first": True, "bias": False},
    "kdim and vdim": {"batch_first": True, "kdim": 20, "vdim": 24},
}


def padding(keys: int = KEYS) -> Tensor:
    """True where a key is padding: every row keeps some."""
    return torch.arange(keys) >= torch.tensor([keys, 5, 7])[:, None]


def hidden(*shape: int) -> Tensor:
    """True where attention is not allowed; never for the first key."""
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(6)) < 0.4
    mask[..., 0] = False
    return mask


def floats(mask: Tensor) -> Tensor:
    noise = torch.randn(mask.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return noise.masked_fill(mask, -torch.inf)


CALLS = {
    "nothing": {},
    "no weights": {"need_weights": False},
    "weights of each head": {"average_attn_weights": False},
    "bool mask": {"attn_mask": hidden(TOKENS, KEYS)},
    "bool mask, no weights": {"attn_mask": hidden(TOKENS, KEYS), "need_weights": False},
    "float mask": {"attn_mask": floats(hidden(TOKENS, KEYS))},
    "bool mask of each head": {"attn_mask": hidden(BATCH * HEADS, TOKENS, KEYS)},
    "float mask of each head": {"attn_mask": floats(hidden(BATCH * HEADS, TOKENS, KEYS)), "need_weights": False},
    "padding": {"key_padding_mask": padding()},
    "float padding": {"key_padding_mask": floats(padding()), "need_weights": False},
    "causal hint": {"attn_mask": torch.ones(TOKENS, KEYS).triu(1).bool(), "is_causal": True, "need_weights": False},
    "bool mask and padding": {
        "attn_mask": hidden(TOKENS, KEYS),
        "key_padding_mask": padding(),
        "average_attn_weights": False,
    },
    "float mask of each head and padding": {
        "attn_mask": floats(hidden(BATCH * HEADS, TOKENS, KEYS)),
        "key_padding_mask": floats(padding()),
        "need_weights": False,
    },
}


def attention(**options) -> Family:
    return Family(lambda: seeded(lambda: nn.MultiheadAttention(WIDTH, HEADS, **options)), dict, {0: GONE})


def tokens(module: nn.MultiheadAttention) -> dict[str, Tensor]:
    values = {
        "query": features(TOKENS),
        "key": features(KEYS, width=module.kdim, seed=4),
        "value": features(KEYS, width=module.vdim, seed=5),
    }
    return values if module.batch_first else {name: value.transpose(0, 1) for name, value in values.items()}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("options", MODULES.values(), ids=MODULES)
def test_multihead_attention(options: dict, call: dict):
    model = attention(**options).model()
    mask, without = masked(model, {0: GONE}), pruned(model, {0: GONE})
    batch = {**tokens(model), **call}
    assert_equal_step(mask, without, batch, survivors(model, {0: GONE}))
    weights = without(**batch)[1]
    if call.get("need_weights", True):
        of_all = mask(**{**batch, "average_attn_weights": False})[1][:, LEFT]
        torch.testing.assert_close(weights, of_all.mean(1) if call.get("average_attn_weights", True) else of_all)
    else:
        assert weights is None
    assert (without.num_heads, without.head_dim, without.embed_dim) == (2, HEAD_DIM, WIDTH)


@pytest.mark.parametrize("call", ["nothing", "no weights", "bool mask", "padding", "weights of each head"])
def test_multihead_attention_without_a_batch(call: str):
    model = attention().model()
    mask, without = masked(model, {0: GONE}), pruned(model, {0: GONE})
    batch = {name: value[:, 0] for name, value in tokens(model).items()}
    batch |= {name: value[1] if name == "key_padding_mask" else value for name, value in CALLS[call].items()}
    batch |= {"attn_mask": floats(hidden(HEADS, TOKENS, KEYS))} if call == "weights of each head" else {}
    assert_equal_step(mask, without, batch, survivors(model, {0: GONE}))
    weights = without(**batch)[1]
    assert weights is None or weights.shape == ((2,) if call == "weights of each head" else ()) + (TOKENS, KEYS)


@pytest.mark.parametrize("call", ["nothing", "no weights", "bool mask and padding"])
@pytest.mark.parametrize("options", MODULES.values(), ids=MODULES)
def test_forward_agrees_while_no_head_is_missing(options: dict, call: str):
    """Dropout and the weights that are returned included."""
    module = attention(**options, dropout=0.3).model()
    results = []
    for forward in (module.forward, lambda **batch: layout_of(module).forward(module, **batch)):
        torch.manual_seed(5)
        results.append(forward(**tokens(module), **CALLS[call]))
    torch.testing.assert_close(results[1], results[0])


def encoder_layer(**options) -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, HEADS, 48, 0.0, **{"batch_first": True, **options})


def encoder(**options) -> nn.Module:
    return nn.TransformerEncoder(encoder_layer(**options), 3, enable_nested_tensor=not options)


def decoder(**options) -> nn.Module:
    layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 48, 0.0, batch_first=True, **options)
    return nn.TransformerDecoder(layer, 2)


def source() -> dict[str, Tensor]:
    return {"src": features(TOKENS), "src_key_padding_mask": padding(TOKENS)}


def causal_source() -> dict[str, Tensor]:
    return {"src": features(TOKENS), "mask": nn.Transformer.generate_square_subsequent_mask(TOKENS).double()}


def target() -> dict[str, Tensor]:
    mask = nn.Transformer.generate_square_subsequent_mask(TOKENS).double()
    memory = {"memory": features(KEYS, seed=4), "memory_key_padding_mask": padding()}
    return {"tgt": features(TOKENS), "tgt_mask": mask, "tgt_is_causal": True, **memory}


LAYERS = {
    "encoder layer": Family(encoder_layer, source, {0: GONE}),
    "encoder layer, norm first": Family(lambda: encoder_layer(norm_first=True), source, {0: GONE}),
    "encoder, first layer": Family(encoder, source, {0: GONE}),
    "encoder, last layer": Family(encoder, source, {2: GONE}),
    "encoder, all layers": Family(encoder, source, {0: [1], 1: range(HEADS), 2: [0, 2, 3]}),
    "encoder, causal": Family(encoder, causal_source, PLAIN),
    "encoder, norm first": Family(lambda: encoder(norm_first=True), source, PLAIN),
    "decoder": Family(decoder, target, {0: [1], 1: [0, 3], 2: [0, 1, 2], 3: range(HEADS)}),
    "decoder, norm first": Family(lambda: decoder(norm_first=True), target, CROSS),
}


@pytest.mark.parametrize("family", LAYERS.values(), ids=LAYERS)
def test_layers_in_training(family: Family):
    model = family.model()
    heads = family.heads
    assert_equal_step(masked(model, heads), pruned(model, heads), family.batch(), survivors(model, heads))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("family", LAYERS.values(), ids=LAYERS)
def test_layers_in_evaluation(family: Family, grad: Callable):
    """PyTorch has a fused path of its own there."""
    model = family.model().eval()
    with grad():
        expected, got = (output(cut(model, family.heads), family.batch()) for cut in (masked, pruned))
    torch.testing.assert_close(got, expected)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", ["encoder, first layer", "encoder, last layer", "encoder, all layers"])
def test_layers_whose_padding_is_taken_out(name: str):
    """nn.TransformerEncoder makes a nested tensor of its input there, whichever layers are pruned."""
    without = pruned(LAYERS[name].model(), LAYERS[name].heads).eval()
    with torch.no_grad():
        is_zero = (output(without, LAYERS[name].batch()) == 0).all(-1)
    assert torch.equal(is_zero, padding(TOKENS))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("name", ["encoder, all layers", "decoder"])
def test_copies(name: str, duplicate: Callable):
    model = pruned(LAYERS[name].model(), LAYERS[name].heads).eval()
    with torch.no_grad():
        before, other = output(model, LAYERS[name].batch()), duplicate(model)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(output(other, LAYERS[name].batch()), before)
