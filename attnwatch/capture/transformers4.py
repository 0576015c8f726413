"""What transformers before 5 do otherwise: eager attention functions that read their module, and masks that mean else.

Since transformers 5 an attention function knows nothing but its arguments.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

# What eager functions read of a module without an effect on the weights. A kind of positions has none either, unless it
# comes with an embedding of distances, which is not in this list. Sinks are given to the function too.
_WITHOUT_EFFECT = {
    *("num_key_value_groups", "head_dim", "dropout", "attention_dropout", "attn_dropout", "training"),
    *("position_embedding_type", "max_position_embeddings", "sinks"),
}
# GPT-2's function scales the logits and hides later keys itself. In other implementations the same modules do neither.
_OF_GPT2 = {"scale_attn_weights", "scale_attn_by_inverse_layer_idx", "layer_idx", "is_cross_attention", "bias"}
# Their masks show the tokens of the padding to each other.
_PADDING_SEES_PADDING = ("BambaAttention", "FalconH1Attention")


def names_read_by(eager: Callable) -> tuple[str, ...]:
    """Names in the code of an eager attention function that may be attributes of a module with an effect."""
    return tuple(
        name for name in eager.__code__.co_names if name not in _WITHOUT_EFFECT and not hasattr(nn.Module, name)
    )


def refusal(module: nn.Module, names: tuple[str, ...]) -> str:
    """Why a call can't be read, whatever its arguments; empty where it can. `names`: see `names_read_by`."""
    if type(module).__name__ in _PADDING_SEES_PADDING:
        return (
            "its masks show padding to itself before transformers 5, so that padding can't be told from a second "
            "document; upgrade transformers"
        )
    unknown = [name for name in names if hasattr(module, name) and not (name in _OF_GPT2 and _is_gpt2(module))]
    if unknown:
        return (
            f"its eager attention reads {', '.join(unknown)} of the module, whose effect is not known; use "
            "attn_implementation='sdpa'"
        )
    return ""


def eager_arguments(
    module: nn.Module, query: Tensor, key: Tensor, attention_mask: Tensor | None, kwargs: dict
) -> tuple[Tensor | None, dict]:
    """Mask and keyword arguments that say what the module's eager function does beside what it is given."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    if attention_mask is not None and attention_mask.shape[-1] == 1 != num_keys:
        attention_mask = None  # of heads: factors of the weights
    if _is_gpt2(module):
        scale = query.shape[-1] ** -0.5 if module.scale_attn_weights else 1.0
        kwargs = {**kwargs, "scaling": scale / (module.layer_idx + 1 if module.scale_attn_by_inverse_layer_idx else 1)}
        if not module.is_cross_attention:
            seen = module.bias[:, :, num_keys - num_queries : num_keys, :num_keys]
            if attention_mask is None:
                attention_mask = seen
            else:
                attention_mask = attention_mask[..., :num_keys].masked_fill(~seen, -torch.inf)
    return attention_mask, kwargs


def _is_gpt2(module: nn.Module) -> bool:
    return all(hasattr(module, name) for name in _OF_GPT2)
