"""Exact attention entropy of all queries without the attention matrix."""

from collections.abc import Callable

import torch
from torch import Tensor

from attnwatch.attention.inputs import AttentionInputs, checked_inputs
from attnwatch.attention.rows import AttentionRows
from attnwatch.attention.sampling import row_blocks

_KernelResult = tuple[Tensor, Tensor]
_Kernel = Callable[[Tensor, Tensor, Tensor | None, bool, float], _KernelResult]


@torch.no_grad()
def attention_entropy(
    query: Tensor,
    key: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute the entropy of softmax(scale · query · keyᵀ + mask) for all queries in O(keys) memory.

    With logits z_ij = scale · q_i · k_j and weights p_ij,

        H_i = -Σ_j p_ij log p_ij = lse_i - Σ_j p_ij z_ij = lse_i - scale · q_i · SDPA(q, k, value=k)_i,

    so one pass of a fused kernel that returns its log-sum-exp is enough. A finite float mask has a term that no kernel
    returns. With such a mask, and on devices without such a kernel, blocks of query rows are computed instead.
    Half-precision tensors are computed in float32, where the error grows with the logits, to about 1e-6 of the largest
    one. Tensors may have any strides.

    Arguments have the same meaning as in `torch.nn.functional.scaled_dot_product_attention`.

    Args:
        query: queries [batch, heads, queries, head_dim], floating point.
        key: keys [batch, key heads, keys, head_dim].
        attn_mask: mask broadcastable to [batch, heads, queries, keys]; bool (True: allowed) or float (added to the
            logits; -1e4 or less hides a key).
        is_causal: True if query i sees only keys 0 to i; combined with `attn_mask` if both are given.
        scale: factor of the dot products; None means 1 / sqrt(head_dim).
        enable_gqa: allow fewer key heads than query heads.

    Returns:
        Entropy in nats [batch, heads, queries], float32 (float64 for float64 inputs), without gradient; nan for rows
        that see no key, or whose logit for a visible key is not finite (nan, infinite or, in float32, beyond 1e30).

    Raises:
        ConfigurationError: a shape, dtype, layout or device does not fit.

    Example:
        >>> import torch
        >>> attention_entropy(torch.zeros(1, 1, 2, 8), torch.randn(1, 1, 4, 8)).exp()
        tensor([[[4., 4.]]])
    """
    inputs = checked_inputs(query, key, attn_mask=attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)
    with torch.autocast(query.device.type, enabled=False):
        kernel = _KERNELS.get(query.device.type)
        entropy = _entropy_by_kernel(inputs, kernel) if kernel is not None and _fits_kernel(inputs) else None
        return _entropy_by_blocks(inputs) if entropy is None else entropy


def _fits_kernel(inputs: AttentionInputs) -> bool:
    """Return whether shapes, dtypes and options suit the fused kernels, which do no checks themselves."""
    float_mask = inputs.attn_mask is not None and inputs.attn_mask.dtype != torch.bool
    # The CUDA kernel does not support float64, reads 16 bytes at a time and launches a block per head and sequence.
    fits_cuda = (
        inputs.compute_dtype == torch.float32
        and inputs.query.shape[-1] % 4 == 0
        and max(inputs.query.shape[:2]) <= _MAX_CUDA_BLOCKS
    )
    # With a negative or zero scale, a kernel hides the wrong keys.
    return not float_mask and inputs.effective_scale > 0 and (fits_cuda or not inputs.query.is_cuda)


def _entropy_by_blocks(inputs: AttentionInputs) -> Tensor:
    rows = torch.arange(inputs.num_queries, device=inputs.query.device)
    blocks = [_entropy_of_rows(AttentionRows(inputs, block)) for block in row_blocks(inputs, rows)]
    return torch.cat(blocks, dim=-1)


def _entropy_of_rows(rows: AttentionRows) -> Tensor:
    entropy = rows.entropy.clamp(min=0).masked_fill(rows.num_visible == 1, 0.0)
    return entropy.masked_fill((rows.num_visible == 0) | ~rows.is_finite, torch.nan)


def _entropy_by_kernel(inputs: AttentionInputs, kernel: _Kernel) -> Tensor | None:
    """Return the entropy of all rows, or None if the numbers are too large for the result to be accurate."""
    query, key, scale = (
        inputs.query.to(inputs.compute_dtype),
        inputs.key.to(inputs.compute_dtype),
        inputs.effective_scale,
    )
    visible, bias = inputs.attn_mask, None
    if visible is not None:
        visible = visible[(None,) * (4 - visible.ndim)]
        bias = torch.zeros_like(visible, dtype=query.dtype).masked_fill_(~visible, -torch.inf)
        seen = visible.any(2).any(1)[:, None, :, None]
        key = key.masked_fill(~seen, 0)  # padding may hold anything
    # A constant added to all logits of a row does not change its entropy. Without the keys' common part, which is
    # often the larger part, the two terms subtracted below are small.
    key = key - key.mean(2, keepdim=True)
    if not (_largest_product(query, key) * scale < _MAX_KERNEL_LOGIT):  # also true for nan
        return None
    query = _packed(query)
    mean_key, lse = kernel(query, _packed(key), None if bias is None else _packed(bias), inputs.is_causal, scale)
    entropy = lse.sub(mean_key.mul_(query).sum(-1), alpha=scale).clamp_(min=0)
    if visible is None:
        return entropy
    rows = torch.arange(inputs.num_queries, device=key.device)
    first_visible = visible.to(torch.uint8).argmax(-1)
    sees_key = visible.any(-1) & ((first_visible <= rows) | (not inputs.is_causal))
    return torch.where(sees_key, entropy, torch.nan)


def _largest_product(query: Tensor, key: Tensor) -> Tensor:
    """Upper bound of |query · key|, a scalar; nan or inf if any element is."""
    longest_query, longest_key = (torch.linalg.vector_norm(tensor, dim=-1).amax() for tensor in (query, key))
    return longest_query * longest_key


def _packed(tensor: Tensor) -> Tensor:
    """Return the same values, contiguous and aligned to 16 bytes, as required by the kernels.

    `scaled_dot_product_attention` checks the strides before calling them; the kernels would read arbitrary memory.
    """
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _cpu_kernel(query: Tensor, key: Tensor, bias: Tensor | None, is_causal: bool, scale: float) -> _KernelResult:
    key = key.repeat_interleave(
        query.shape[1] // key.shape[1], dim=1
    )  # with fewer key heads, PyTorch 2.8 reads out of bounds
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, key, 0.0, is_causal, attn_mask=bias, scale=scale
    )


def _cuda_kernel(query: Tensor, key: Tensor, bias: Tensor | None, is_causal: bool, scale: float) -> _KernelResult:
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    if bias is not None:
        num_keys = key.shape[2]
        bias = bias.expand(*bias.shape[:3], num_keys).contiguous()
        bias = torch.nn.functional.pad(bias, (0, -num_keys % 4))[..., :num_keys]  # rows start at multiples of 16 bytes
        bias = bias.expand(*query.shape[:3], num_keys)
    mean_key, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, key, bias, True, 0.0, is_causal, scale=scale
    )
    return mean_key, lse[..., : query.shape[2]]  # the kernel pads the log-sum-exp to a multiple of 32


# Fused kernels that return (attention over the keys themselves, log-sum-exp), by device type.
_KERNELS = {"cpu": _cpu_kernel, "cuda": _cuda_kernel}
# Maximum of a CUDA grid's second and third dimension.
_MAX_CUDA_BLOCKS = 65535
# The two terms that the entropy is the difference of are as large as the logits: above this, little precision would be
# left. Blocks of rows have no such terms. Sharp attention has logits of several hundred.
_MAX_KERNEL_LOGIT = 1e4
