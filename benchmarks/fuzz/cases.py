"""Drawn calls of attention: shapes, strides, dtypes, masks, scales and values that are not finite."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)
BAD = (torch.nan, torch.inf, -torch.inf)
HIDING = (-torch.inf, -1e4, "least")
# What one of the functions takes and `attention_entropy` and `attention_statistics` do not.
MODEL_OPTIONS = ("softcap", "position_bias", "learned_sink", "sliding_window", "key_padding")


@dataclass
class Case:
    """A call of attention.

    Attributes:
        query, key: [batch, heads, queries, head_dim] and [batch, key heads, keys, head_dim].
        options: of `attention_entropy`, by name.
        query_mask: bool [batch, queries], or None; of `attention_statistics`.
        model_options: of `AttentionInputs`; empty where the case has none.
        drawn: what was drawn, in words.
    """

    query: Tensor
    key: Tensor
    options: dict[str, Any]
    query_mask: Tensor | None
    model_options: dict[str, Any]
    drawn: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return self.query.numel() == 0 or self.key.numel() == 0

    @property
    def tensors(self) -> dict[str, Tensor]:
        named = {"query": self.query, "key": self.key, "query_mask": self.query_mask}
        named |= self.options | self.model_options
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def __str__(self) -> str:
        tensors = [
            f"{name} {str(tensor.dtype)[6:]} {list(tensor.shape)} strides {list(tensor.stride())}"
            for name, tensor in self.tensors.items()
        ]
        options = (self.options | self.model_options).items()
        plain = [f"{name}={value}" for name, value in options if value is not None and not isinstance(value, Tensor)]
        return "; ".join([*tensors, *plain, *self.drawn])


def draw_case(seed: int, index: int) -> Case:
    """Draw a case; it depends on the two numbers alone."""
    drawing = _Drawing(seed, index)
    return drawing.case()


class _Drawing:
    def __init__(self, seed: int, index: int):
        self.random = Random(f"{seed}/{index}")
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(63))
        self.words: list[str] = []

    def case(self) -> Case:
        random = self.random
        batch, key_heads, group = random.choice((1, 1, 2, 3)), random.choice((1, 2, 3)), random.choice((1, 1, 2, 3))
        queries, keys = random.randint(1, 9), random.choice((1, 2, 3, 5, 8, 13, 16, 17, 33, 40))
        head_dim = random.choice((1, 2, 3, 4, 7, 8, 16, 17, 32, 64))
        if random.random() < 0.03:
            batch, queries, keys, head_dim = self._with_zero(batch, queries, keys, head_dim)
        self.full = (batch, key_heads * group, queries, keys)
        self.dtype = random.choice(DTYPES)
        query = self._values((batch, key_heads * group, queries, head_dim))
        key = self._values((batch, key_heads, keys, head_dim))
        self._spoil(query, key)
        query, key = self._laid_out("query", query), self._laid_out("key", key)
        options = {
            "attn_mask": self._mask(),
            "is_causal": random.random() < 0.4,
            "scale": self._scale(),
            "enable_gqa": group > 1,
        }
        query_mask = self._laid_out("query_mask", self._uniform((batch, queries)) < 0.7)
        query_mask = random.choice((None, None, query_mask))
        model_options = self._model_options() if random.random() < 0.3 else {}
        return Case(query, key, options, query_mask, model_options, self.words)

    def _with_zero(self, *sizes: int) -> tuple[int, ...]:
        place = self.random.randrange(len(sizes))
        return tuple(0 if index == place else size for index, size in enumerate(sizes))

    def _uniform(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=self.generator)

    def _normal(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(dtype)

    def _values(self, shape: tuple[int, ...]) -> Tensor:
        kind = self.random.choice(("normal", "normal", "common", "integers", "zeros", "large", "tiny"))
        values = self._normal(shape, torch.float64)
        if kind == "common":
            values = values + 30 * self._normal((*shape[:2], 1, shape[3]), torch.float64)
        elif kind == "integers":
            values = values.round()  # ties
        else:
            values = values * {"normal": 1.0, "zeros": 0.0, "large": 30.0, "tiny": 1e-6}[kind]
        return values.to(self.dtype)

    def _spoil(self, query: Tensor, key: Tensor) -> None:
        """Put values that are not finite into one of the tensors, in some cases."""
        kind = self.random.choice((None,) * 7 + ("anywhere", "a token", "all but the first key"))
        if kind is None or query.numel() == 0 or key.numel() == 0:
            return
        value = self.random.choice(BAD)
        self.words.append(f"{value} at {kind}")
        tensor = self.random.choice((query, key))
        if kind == "anywhere":
            for _ in range(self.random.randint(1, 4)):
                tensor.view(-1)[self.random.randrange(tensor.numel())] = value
        elif kind == "a token":
            tensor[:, :, self.random.randrange(tensor.shape[2])] = value
        else:
            query[..., 0] = query[..., 0].abs() + 1
            key[:, :, 1:, 0] = value

    def _scale(self) -> float | None:
        kind = self.random.choice(("None",) * 3 + ("usual", "negative", "zero", "large", "huge", "tiny"))
        size = {"usual": 1, "negative": -1, "zero": 0, "large": 1e3, "tiny": 1e-9, "None": 0}
        if kind == "huge":
            return self.random.choice((1, -1)) * 10.0 ** self.random.randint(5, 36)
        return None if kind == "None" else size[kind] * self.random.uniform(0.1, 3)

    def _mask_shape(self) -> tuple[int, ...]:
        shape = [size if self.random.random() < 0.6 else 1 for size in self.full]
        return tuple(shape[self.random.randrange(4) :])

    def _mask(self) -> Tensor | None:
        kind = self.random.choice(("none", "none", "bool", "bool", "hiding", "bias", "both"))
        if kind == "none":
            return None
        shape = self._mask_shape()
        allowed = self._uniform(shape) < self.random.choice((0.0, 0.3, 0.8, 1.0))
        if kind == "bool":
            return self._laid_out("attn_mask", allowed)
        dtype = self.random.choice((self.dtype, torch.float32))
        mask = self.random.choice((1.0, 20.0)) * self._normal(shape, dtype)
        if kind == "hiding":
            mask = torch.zeros_like(mask)
        if kind != "bias":
            hidden = self.random.choice(HIDING)
            mask = mask.masked_fill(~allowed, torch.finfo(dtype).min if hidden == "least" else hidden)
        if mask.numel() and self.random.random() < 0.15:
            value = self.random.choice(BAD)
            mask.view(-1)[self.random.randrange(mask.numel())] = value
            self.words.append(f"{value} in the mask")
        return self._laid_out("attn_mask", mask)

    def _model_options(self) -> dict[str, Any]:
        """Draw some of the options that models add to attention."""
        batch, heads, _, keys = self.full
        sink = self._normal((heads,), torch.float32) * 3
        if self.random.random() < 0.2 and heads:
            sink[0] = self.random.choice(BAD)
        every = {
            "softcap": self.random.choice((0.0, 0.5, 20.0)),
            "position_bias": self._laid_out("position_bias", 3 * self._normal(self._mask_shape(), torch.float32)),
            "learned_sink": sink,
            "sliding_window": self.random.randint(1, 9),
            "key_padding": self._uniform((batch, keys)) < 0.8,
        }
        return {name: every[name] for name in self.random.sample(MODEL_OPTIONS, self.random.randint(1, 3))}

    def _laid_out(self, name: str, tensor: Tensor) -> Tensor:
        """Return the tensor in another order in memory. Some layouts repeat values."""
        for layout in self.random.sample(LAYOUTS, self.random.choice((0, 0, 1, 2))):
            tensor = layout(tensor, self.random)
        return tensor


def _permuted(tensor: Tensor, random: Random) -> Tensor:
    order = random.sample(range(tensor.ndim), tensor.ndim)
    back = [order.index(dimension) for dimension in range(tensor.ndim)]
    return tensor.permute(order).contiguous().permute(back)


def _swapped(tensor: Tensor, random: Random) -> Tensor:
    return tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor


def _with_gaps(tensor: Tensor, random: Random) -> Tensor:
    """Return a slice with a step, out of a larger tensor whose other elements are nan."""
    dimension, step = random.randrange(tensor.ndim), random.choice((2, 3))
    filling = torch.nan if tensor.is_floating_point() else True
    shape = [size * step if index == dimension else size for index, size in enumerate(tensor.shape)]
    index = [slice(None)] * tensor.ndim
    index[dimension] = slice(random.randrange(step), None, step)
    larger = torch.full(shape, filling, dtype=tensor.dtype)
    larger[tuple(index)] = tensor
    return larger[tuple(index)]


def _repeated(tensor: Tensor, random: Random) -> Tensor:
    dimension = random.randrange(tensor.ndim)
    return tensor.narrow(dimension, 0, 1).expand(tensor.shape) if tensor.shape[dimension] else tensor


def _overlapping(tensor: Tensor, random: Random) -> Tensor:
    """Return rows that begin one element after the row before, as windows over a signal do."""
    tensor = tensor.contiguous()
    if tensor.ndim < 2 or tensor.numel() < sum(tensor.shape[-2:]):
        return tensor
    return tensor.as_strided(tensor.shape, (*tensor.stride()[:-2], 1, 1))


def _at_an_odd_address(tensor: Tensor, random: Random) -> Tensor:
    flat = torch.empty(tensor.numel() + 3, dtype=tensor.dtype)
    offset = random.choice((1, 2, 3))
    flat[offset : offset + tensor.numel()] = tensor.flatten()
    return flat[offset : offset + tensor.numel()].view(tensor.shape)


def _imaginary(tensor: Tensor, random: Random) -> Tensor:
    """Return the imaginary part of conjugated complex numbers: two elements apart, and negated when it is read."""
    if tensor.dtype not in (torch.float32, torch.float64):
        return tensor
    return torch.complex(torch.zeros_like(tensor), -tensor).conj().imag


LAYOUTS: tuple[Callable[[Tensor, Random], Tensor], ...] = (
    _permuted,
    _swapped,
    _with_gaps,
    _repeated,
    _overlapping,
    _at_an_odd_address,
    _imaginary,
)
