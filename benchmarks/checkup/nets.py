"""Small nets as people write them themselves."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, LAYERS, VOCABULARY, TOKENS, CLASSES = 32, 2, 2, 40, 16, 4
PAD, BEGIN, MASK, END, FIRST_WORD = 0, 1, 2, 3, 4
FEATURES, DROPOUT = 6, 0.1


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Attend; queries, keys and values are [batch, heads, tokens, width], and a mask is True where a key is seen."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal and mask is None)


def split_heads(states: Tensor) -> Tensor:
    """Return states [batch, tokens, width] as [batch, heads, tokens, width of a head]."""
    batch, tokens, width = states.shape
    return states.view(batch, tokens, HEADS, width // HEADS).transpose(1, 2)


def causal_mask(attention_mask: Tensor | None, tokens: int) -> Tensor | None:
    """Return the mask of earlier real tokens; each token sees itself. None where the causal flag is enough."""
    if attention_mask is None:
        return None
    if attention_mask.dim() == 4:  # the script made it
        return attention_mask.bool()
    earlier = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    return earlier & attention_mask.bool()[:, None, None, :] | torch.eye(tokens, dtype=torch.bool)


def padding_mask(attention_mask: Tensor | None, tokens: int) -> Tensor | None:
    """Return the mask of all real tokens."""
    if attention_mask is None or attention_mask.dim() == 4:
        return attention_mask
    return attention_mask.bool()[:, None, None, :]


class Attention(nn.Module):
    """Self-attention.

    Attributes:
        attend, split_heads: functions that faults replace.
    """

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.attend: Callable[..., Tensor] = attend
        self.split_heads: Callable[[Tensor], Tensor] = split_heads

    def forward(self, states: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        q, k, v = (self.split_heads(layer(states)) for layer in (self.q, self.k, self.v))
        return self.out(self.attend(q, k, v, mask, is_causal).transpose(1, 2).reshape(states.shape))


class Block(nn.Module):
    """Pre-norm layer of attention and a feed-forward net.

    Attributes:
        has_residuals: add what a part returns to what it was given.
    """

    def __init__(self, width: int = WIDTH, dropout: float = DROPOUT):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        self.mlp: nn.Module = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)
        self.has_residuals = True

    def forward(self, states: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        keep = 1.0 if self.has_residuals else 0.0
        states = keep * states + self.dropout(self.attention(self.norm1(states), mask, is_causal))
        return keep * states + self.dropout(self.mlp(self.norm2(states)))


class Net(nn.Module):
    """Transformer of token ids.

    Args:
        is_causal: each token sees earlier ones only.
        classes: outputs for the mean of the real tokens; None means outputs for each token.
        has_positions: learned positions are added.
        layers: number of blocks.
        dropout: of embeddings and blocks.
        default_init: keep PyTorch's initialisation, instead of that of GPT-2.
    """

    def __init__(
        self,
        *,
        is_causal: bool,
        classes: int | None = None,
        has_positions: bool = True,
        layers: int = LAYERS,
        dropout: float = DROPOUT,
        default_init: bool = False,
    ):
        super().__init__()
        self.is_causal, self.is_pooled = is_causal, classes is not None
        self.tokens = nn.Embedding(VOCABULARY, WIDTH, padding_idx=PAD)
        self.positions = nn.Embedding(TOKENS, WIDTH) if has_positions else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, classes or VOCABULARY)
        self.make_mask: Callable[[Tensor | None, int], Tensor | None] = causal_mask if is_causal else padding_mask
        if not default_init:
            self.apply(small_init)

    def embed(self, input_ids: Tensor) -> Tensor:
        states = self.tokens(input_ids)
        if self.positions is not None:
            states = states + self.positions(torch.arange(input_ids.shape[1]))
        return self.dropout(states)

    def encode(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = self.make_mask(attention_mask, states.shape[1])
        for block in self.blocks:
            states = block(states, mask, self.is_causal)
        return self.norm(states)

    def pooled(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states = self.encode(self.embed(input_ids), attention_mask)
        return mean_of_real(states, attention_mask)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if self.is_pooled:
            return self.head(self.pooled(input_ids, attention_mask))
        return self.head(self.encode(self.embed(input_ids), attention_mask))


class TorchEncoder(nn.Module):
    """Classifier of texts, of PyTorch's own layers."""

    def __init__(self, batch_first: bool = True):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH, padding_idx=PAD)
        self.positions = nn.Parameter(torch.randn(1, TOKENS, WIDTH) * 0.02)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def positions_of(self, tokens: int) -> Tensor:
        return self.positions[:, :tokens]

    def key_padding_mask(self, attention_mask: Tensor | None) -> Tensor | None:
        """Return the mask that is True at padding."""
        return None if attention_mask is None else attention_mask == 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states = self.tokens(input_ids) + self.positions_of(input_ids.shape[1])
        states = self.encoder(states, src_key_padding_mask=self.key_padding_mask(attention_mask))
        return self.head(mean_of_real(states, attention_mask))


def mean_of_real(states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the mean over the tokens that are no padding."""
    if attention_mask is None:
        return states.mean(1)
    weights = attention_mask.to(states.dtype)[:, :, None]
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def small_init(module: nn.Module) -> None:
    """Initialise as GPT-2 does."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
