"""No tensor grows with queries · keys."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attnwatch import attention_entropy, attention_statistics

CALLS: dict[str, tuple[Callable, dict]] = {
    "entropy": (attention_entropy, {}),
    "entropy, causal": (attention_entropy, {"is_causal": True}),
    "entropy, bool key padding": (attention_entropy, {"mask": torch.bool}),
    "entropy, causal with bool key padding": (attention_entropy, {"mask": torch.bool, "is_causal": True}),
    "entropy, causal with float key padding": (attention_entropy, {"mask": torch.float32, "is_causal": True}),
    "statistics": (attention_statistics, {}),
    "statistics, causal with bool key padding": (attention_statistics, {"mask": torch.bool, "is_causal": True}),
    "statistics of 32 rows": (attention_statistics, {"is_causal": True, "num_query_rows": 32}),
}


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest storage behind any result of an operator."""

    num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.num_bytes = max(self.num_bytes, leaf.untyped_storage().nbytes())
        return result


def largest_tensor_bytes(call: Callable, tokens: int, mask: torch.dtype | None = None, **options) -> int:
    query, key = torch.randn(1, 1, tokens, 8), torch.randn(1, 1, tokens, 8)
    if mask is not None:
        options["attn_mask"] = (torch.arange(tokens) < tokens - 5).to(mask)
    with LargestTensor() as largest:
        call(query, key, **options)
    return largest.num_bytes


@pytest.mark.parametrize("name", CALLS)
def test_largest_tensor_grows_linearly(name: str):
    call, options = CALLS[name]
    at_2048, at_4096 = (largest_tensor_bytes(call, tokens, **options) for tokens in (2048, 4096))
    assert at_2048 > 0
    assert at_4096 <= 2 * at_2048
    assert at_4096 < 4096**2  # less than a byte for each query and key


def test_a_materialised_matrix_would_be_seen():
    def materialised(query: Tensor, key: Tensor) -> Tensor:
        return torch.special.entr((query @ key.mT).softmax(-1)).sum(-1)

    assert largest_tensor_bytes(materialised, 2048) >= 4 * 2048**2
