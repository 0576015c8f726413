"""What transformers' attention functions compute from their arguments: masks, documents, and what is refused."""

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from attnwatch.capture.calls.transformers_interface import read_call
from attnwatch.recorder import AttentionRecorder
from tests.support.models import HEAD_DIM, HEADS, LENGTHS, TOKENS, llama, padding_mask, token_ids
from tests.support.versions import CACHE, EARLY

POSITIONS = torch.arange(TOKENS)
CAUSAL = POSITIONS[:, None] >= POSITIONS
DOCUMENTS = torch.tensor([0] * 5 + [1] * 3 + [2] * 4)
SAME_DOCUMENT = DOCUMENTS[:, None] == DOCUMENTS
BOUNDARIES = {
    "cu_seq_lens_q": torch.tensor([0, 5, 8, 12], dtype=torch.int32),
    "cu_seq_lens_k": torch.tensor([0, 5, 8, 12], dtype=torch.int32),
    "max_length_q": 5,
    "max_length_k": 5,
}
RESTARTING = {"position_ids": torch.cat([torch.arange(5), torch.arange(3), torch.arange(4)])[None]}
SKIPPING = {"position_ids": torch.cat([torch.arange(5), torch.arange(7) + 20])[None]}  # one document
WINDOW = (POSITIONS[:, None] - POSITIONS).abs() < 4

# kwargs of the call and what it sees
FLASH = {
    "causal": ({}, CAUSAL),
    "not causal": ({"is_causal": False}, torch.ones_like(CAUSAL)),
    "sliding window": ({"sliding_window": 4}, CAUSAL & WINDOW),
    "sliding window, not causal": ({"sliding_window": 4, "is_causal": False}, WINDOW),
    "cu_seq_lens": (BOUNDARIES, CAUSAL & SAME_DOCUMENT),
    "cu_seq_lens as tensors": (BOUNDARIES | {"max_length_k": torch.tensor(5)}, CAUSAL & SAME_DOCUMENT),
    "positions that restart": (RESTARTING, CAUSAL & SAME_DOCUMENT),
    "positions that skip": (SKIPPING, CAUSAL),
    "documents, sliding window": (RESTARTING | {"sliding_window": 4}, CAUSAL & SAME_DOCUMENT & WINDOW),
}


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    return llama().model.layers[0].self_attn


def read(implementation: str, module, mask=None, *, batch: int = 1, queries: int = TOKENS, **kwargs):
    query, key = torch.randn(batch, HEADS, queries, HEAD_DIM), torch.randn(batch, 2, TOKENS, HEAD_DIM)
    return read_call(implementation, module, query, key, mask, kwargs)


def visible(inputs) -> Tensor:
    """Bool [batch, queries, keys]."""
    seen = inputs.visible(torch.arange(inputs.num_queries))
    seen = torch.ones(1, 1, 1, 1, dtype=torch.bool) if seen is None else seen
    return seen[:, 0].expand(inputs.batch_size, inputs.num_queries, inputs.num_keys)


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"])
@pytest.mark.parametrize(("kwargs", "expected"), FLASH.values(), ids=FLASH)
def test_flash_attention(module, implementation: str, kwargs: dict, expected: Tensor):
    inputs = read(implementation, module, **kwargs)
    assert visible(inputs)[0].equal(expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_flash_attention_with_padding(module, side: str):
    mask = padding_mask(side)
    inputs = read("flash_attention_2", module, mask, batch=len(LENGTHS), sliding_window=4)
    assert visible(inputs).equal(CAUSAL & WINDOW & mask.bool()[:, None])


def test_flash_attention_of_documents_over_several_rows(module):
    boundaries = torch.tensor([0, 5, 12, 15, 24], dtype=torch.int32)
    kwargs = BOUNDARIES | {"cu_seq_lens_k": boundaries, "cu_seq_lens_q": boundaries}
    inputs = read("flash_attention_2", module, batch=2, **kwargs)
    starts = [POSITIONS >= 5, POSITIONS >= 3]
    expected = torch.stack([CAUSAL & (start[:, None] == start) for start in starts])
    assert visible(inputs).equal(expected)


@pytest.mark.parametrize("create_mask", [create_causal_mask, create_sliding_window_causal_mask])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # transformers uses what torch deprecates
@torch.compiler.set_stance("force_eager")
def test_flex_block_mask_equals_dense_mask(module, create_mask, side: str):
    masks = {}
    states = torch.randn(len(LENGTHS), TOKENS, 32)
    options = {"input_embeds": states, "cache_position": POSITIONS} if EARLY else {"inputs_embeds": states}
    for implementation in ("flex_attention", "eager", "sdpa"):
        config = llama(implementation).config
        config.sliding_window = 4
        options |= {"attention_mask": padding_mask(side), CACHE: None}
        masks[implementation] = create_mask(config, **options)
    seen = {name: visible(read(name, module, mask, batch=len(LENGTHS))) for name, mask in masks.items()}
    assert seen["flex_attention"].equal(seen["sdpa"])
    assert seen["flex_attention"].equal(seen["eager"])


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
def test_scale_and_bias_are_taken_over(module, implementation: str):
    bias = torch.randn(1, HEADS, TOKENS, TOKENS)
    mask = torch.zeros(TOKENS, TOKENS).masked_fill(~CAUSAL, -torch.inf)[None, None]
    inputs = read(implementation, module, mask, scaling=0.3, position_bias=bias)
    key = inputs.key.repeat_interleave(2, dim=1)
    expected = 0.3 * inputs.query @ key.mT + bias + mask
    torch.testing.assert_close(inputs.logits(POSITIONS), expected)


def test_sinks_that_sdpa_ignores_are_ignored(module):
    assert read("sdpa", module, s_aux=torch.zeros(HEADS)).learned_sink is None
    assert read("flex_attention", module, s_aux=torch.zeros(HEADS)).learned_sink is not None


def test_masks_longer_than_the_keys_are_cut(module):
    mask = torch.zeros(1, 1, TOKENS, 40)
    assert read("eager", module, mask).attn_mask.shape == (1, 1, TOKENS, TOKENS)


REFUSED = {
    "unknown implementation": ("paged|sdpa", {}, "implementation 'paged|sdpa' is unknown; use sdpa, eager"),
    "sink logits": ("eager", {"s_aux": torch.zeros(1)}, "its attention-sink logits (s_aux) have shape [1]"),
    "unknown tensor": ("sdpa", {"indices": torch.zeros(1)}, "a tensor whose effect is unknown: indices"),
    "paged cache": ("sdpa", {"cache": object()}, "a paged key-value cache is in use"),
    "flash, shorter queries": ("flash_attention_2", {"queries": 4}, "fewer queries than keys"),
    "flash, shorter queries, window": (
        "flash_attention_2",
        {"queries": 4, "is_causal": False, "sliding_window": 4},
        "fewer queries than keys",
    ),
}


@pytest.mark.parametrize(("implementation", "kwargs", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused_with_a_reason(module, implementation: str, kwargs: dict, reason: str):
    reading = read(implementation, module, **kwargs)
    assert isinstance(reading, str)
    assert reason in reading


@pytest.mark.parametrize(
    ("has", "chooses"),
    [
        ({"indexer": torch.nn.Identity(), "skip_topk": False}, True),
        ({"indexer": None, "skip_topk": True}, True),  # it takes those of another layer
        ({"compressor": torch.nn.Identity()}, True),
        ({"indexer": None, "compressor": None}, False),
    ],
)
def test_module_that_chooses_its_keys_is_refused(has, chooses):
    model = llama()
    for name, value in has.items():
        setattr(model.model.layers[0].self_attn, name, value)
    with AttentionRecorder(model) as recorder, recorder.step(0):
        model(token_ids())
    first, second = recorder.coverage().values()
    assert ("depends on their content" in first) if chooses else first == "observed"
    assert second == "observed"


def test_flash_cross_attention_sees_every_key(module):
    inputs = read("flash_attention_2", module, queries=4, is_causal=False)
    assert visible(inputs).all()


def own_attention(module, query, key, value, attention_mask, *args, **kwargs):
    return query.transpose(1, 2).contiguous(), None


def test_own_attention_function_is_named_in_coverage(monkeypatch):
    monkeypatch.setitem(AttentionInterface._global_mapping, "mine", own_attention)
    model = llama("mine")
    with AttentionRecorder(model) as recorder, recorder.step(0):
        model(token_ids())
    assert all("implementation 'mine' is unknown" in reason for reason in recorder.coverage().values())
    assert model.config._attn_implementation == "mine"
