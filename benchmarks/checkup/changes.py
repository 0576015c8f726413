"""Changes of models and batches, of which faults and odd scripts are made."""

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.checkup.data import IGNORED, Batch
from benchmarks.checkup.nets import HEADS, PAD, Attention, Net
from benchmarks.checkup.scripts import Prepare

LAYER = r"(^|.*\.)(layers|blocks|block|h|encoder\.layer)\.\d+"
QUERIES_AND_KEYS = r".*\.(q|k|q_proj|k_proj|query|key|c_attn|in_proj)(\.|_)(weight|bias)"
VALUES_AND_OUTPUTS = r".*\.(v|v_proj|value|out|o|o_proj|out_proj|attn\.c_proj|attention\.output\.dense)\.(weight|bias)"
FEED_FORWARD = r".*\.(mlp|linear1|linear2|intermediate|DenseReluDense|\d\.output\.dense)\..*"
NORMS_AND_BIASES = r".*(norm|ln_)\w*\.(weight|bias)|.*bias"
EMBEDDINGS = r".*(embed|wte|wpe|shared|tokens|positions).*"
EMBEDDING = r"(.*\.)?(tokens|embed_tokens|wte|word_embeddings|shared|patch_embeddings)"
HEAD = r"(head|lm_head|classifier|score|qa_outputs|cls)(\..*)?"
LAST_NORM = r"(norm|model\.norm|transformer\.ln_f|.*transform\.LayerNorm|decoder\.final_layer_norm|vit\.layernorm)"
ATTENTION_OUTPUT = r".*\.(attention\.out|o_proj|attn\.c_proj|attention\.output\.dense|SelfAttention\.o)"


def named(model: nn.Module, pattern: str) -> Iterator[nn.Module]:
    """Yield the modules whose whole name fits; at least one does."""
    found = [module for name, module in model.named_modules() if re.fullmatch(pattern, name)]
    if not found:
        raise LookupError(f"No module of {type(model).__name__} has a name like {pattern!r}.")
    yield from found


def freeze(pattern: str, *, all_but: bool = False) -> Prepare:
    """Return the change that freezes parameters by the whole name, or all others."""

    def prepare(model: nn.Module) -> None:
        frozen = [each for name, each in model.named_parameters() if bool(re.fullmatch(pattern, name)) != all_but]
        if not frozen:
            raise LookupError(f"No parameter of {type(model).__name__} has a name like {pattern!r}.")
        for parameter in frozen:
            parameter.requires_grad_(False)

    return prepare


def on_outputs(pattern: str, function: Callable[[Tensor], Tensor], *, first_only: bool = False) -> Prepare:
    """Return the change that applies a function to what modules return."""

    def hook(module: nn.Module, inputs: object, output: Tensor | tuple) -> Tensor | tuple:
        return (function(output[0]), *output[1:]) if isinstance(output, tuple) else function(output)

    def prepare(model: nn.Module) -> None:
        for module in list(named(model, pattern))[: 1 if first_only else None]:
            module.register_forward_hook(hook)

    return prepare


def on_modules(pattern: str, function: Callable[[nn.Module], object]) -> Prepare:
    """Return the change that gives modules to a function."""

    def prepare(model: nn.Module) -> None:
        for module in named(model, pattern):
            function(module)

    return prepare


def on_matrices(function: Callable[[Tensor], object]) -> Prepare:
    """Return the change that gives all weights with two axes or more to a function."""

    def prepare(model: nn.Module) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    function(parameter)

    return prepare


def with_attributes(kind: type[nn.Module], **values: object) -> Prepare:
    """Return the change that sets attributes of all modules of a class."""

    def prepare(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, kind):
                for name, value in values.items():
                    setattr(module, name, value)

    return prepare


def with_scale(scale_of: Callable[[int], float]) -> Prepare:
    """Return the change that sets the scale of attention to a function of the heads' width."""

    def scaled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        scale = scale_of(q.shape[-1])
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal and mask is None, scale=scale)

    def prepare(model: nn.Module) -> None:
        changed = 0
        for module in model.modules():
            if isinstance(module, Attention):
                module.attend = scaled
                changed += 1
            elif isinstance(getattr(module, "scaling", None), float):
                module.scaling = scale_of(round(module.scaling**-2))
                changed += 1
        if not changed:
            raise LookupError(f"{type(model).__name__} has no scale.")

    return prepare


def new_head(model: nn.Module) -> None:
    """Replace the head by a new one of the same size."""
    name = next(each for each in ("head", "lm_head", "classifier") if hasattr(model, each))
    old = getattr(model, name)
    head = nn.Linear(old.in_features, old.out_features, bias=old.bias is not None)
    nn.init.normal_(head.weight, std=0.02)
    setattr(model, name, head)


def parameters_made_anew(model: nn.Module) -> None:
    """Replace all parameters of the layers by copies."""
    for layer in named(model, LAYER):
        for module in layer.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(copy.deepcopy(parameter.data)))


def with_mask(allowed: Callable[[int], Tensor]) -> Callable[[Batch], Batch]:
    """Return the change of batches that gives a mask [batch, 1, tokens, tokens] of all pairs that may be seen."""

    def change(batch: Batch) -> Batch:
        size, tokens = batch["input_ids"].shape
        mask = allowed(tokens).expand(size, 1, tokens, tokens)
        real = batch["attention_mask"].bool()[:, None, None, :] if "attention_mask" in batch else mask
        itself = torch.eye(tokens, dtype=torch.bool) & allowed(tokens)
        return batch | {"attention_mask": mask & real | itself}

    return change


def square(tokens: int) -> Tensor:
    """Return the mask in which each token sees all."""
    return torch.ones(tokens, tokens, dtype=torch.bool)


def without(*names: str) -> Callable[[Batch], Batch]:
    """Return the change of batches that leaves inputs out."""
    return lambda batch: {name: value for name, value in batch.items() if name not in names}


def same_positions(batch: Batch) -> Batch:
    """Give all tokens position 0."""
    return batch | {"position_ids": torch.zeros_like(batch["input_ids"])}


def true_positions(batch: Batch) -> Batch:
    """Return the batch with positions that count the real tokens."""
    return batch | {"position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)}


def inverted_mask(batch: Batch) -> Batch:
    """Swap real tokens and padding in the mask."""
    return batch | {"attention_mask": 1 - batch["attention_mask"]}


def labelled_padding(label: int = PAD) -> Callable[[Batch], Batch]:
    """Return the change of batches that gives padding a label."""

    return lambda batch: batch | {"labels": batch["labels"].masked_fill(batch["attention_mask"] == 0, label)}


def shifted_labels(batch: Batch) -> Batch:
    """Move labels to the token before."""
    labels = batch["labels"].roll(-1, 1)
    labels[:, -1] = IGNORED
    return batch | {"labels": labels}


def no_labels(batch: Batch) -> Batch:
    """Ignore all labels."""
    return batch | {"labels": torch.full_like(batch["labels"], IGNORED)}


def one_class(batch: Batch) -> Batch:
    """Give all samples the same label."""
    return batch | {"labels": torch.zeros_like(batch["labels"])}


def padding_only(batch: Batch) -> Batch:
    """Replace all tokens by padding."""
    empty = {name: torch.zeros_like(batch[name]) for name in ("input_ids", "attention_mask")}
    return batch | empty


def cut_into_tokens(batch: Batch) -> Batch:
    """Make each token a sequence of its own."""
    return {name: value.reshape(-1, 1) for name, value in batch.items()}


def in_dtype(dtype: torch.dtype) -> Callable[[Batch], Batch]:
    """Return the change of batches that casts images."""
    return lambda batch: {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()
    }


def no_positions(model: nn.Module) -> None:
    """Let an own net give all tokens the first position."""
    if not isinstance(model, Net):
        raise TypeError("Not an own net.")
    positions = model.positions

    def embed(input_ids: Tensor) -> Tensor:
        return model.dropout(model.tokens(input_ids) + positions(torch.zeros_like(input_ids)))

    model.embed = embed


def heads_not_transposed(states: Tensor) -> Tensor:
    """Split states into heads by a view alone, which mixes tokens."""
    batch, tokens, width = states.shape
    return states.view(batch, HEADS, tokens, width // HEADS)


def heads_over_batch(states: Tensor) -> Tensor:
    """Split states into heads with the axes of batch and tokens swapped."""
    batch, tokens, width = states.shape
    return states.transpose(0, 1).reshape(tokens, batch, HEADS, width // HEADS).transpose(1, 2)


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, states: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return states.view_as(states)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return context.factor * gradient, None


def with_gradient_times(factor: float) -> Callable[[Tensor], Tensor]:
    """Return the function that returns a tensor, and multiplies its gradient by a factor."""
    return lambda states: _ScaledGradient.apply(states, factor)
