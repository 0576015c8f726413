"""Models of any size and their training steps, for benchmarks of speed."""

from dataclasses import dataclass

import torch
import transformers as hf
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """Sizes of a language model of transformers and of its batches.

    Attributes:
        intermediate_size: width of the MLPs; None takes 8/3 of `hidden_size`.
        head_dim: width of a head; None takes `hidden_size / num_heads`.
        precision: as Lightning's Trainer takes it.
        family: "Llama" or "Mistral".
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    vocab_size: int
    batch_size: int
    num_tokens: int
    intermediate_size: int | None = None
    head_dim: int | None = None
    precision: str = "32-true"
    family: str = "Llama"

    @property
    def tokens_per_batch(self) -> int:
        return self.batch_size * self.num_tokens

    def model(self, seed: int = 0) -> hf.PreTrainedModel:
        """Return a new model in train mode, on the GPU where there is one."""
        torch.manual_seed(seed)
        config = getattr(hf, f"{self.family}Config")(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size or 8 * self.hidden_size // 3,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim or self.hidden_size // self.num_heads,
            max_position_embeddings=self.num_tokens,
            sliding_window=None,
            pad_token_id=None,
        )
        with torch.device(_device()):
            return getattr(hf, f"{self.family}ForCausalLM")(config).train()

    def batch(self) -> Tensor:
        """Return random token ids [batch_size, num_tokens], where `model` puts a model."""
        return torch.randint(self.vocab_size, (self.batch_size, self.num_tokens), device=_device())


class Training:
    """A language model, its optimizer, and a step of both.

    Args:
        all_parameters: the optimizer also works on those that get no gradient.
    """

    def __init__(self, model: hf.PreTrainedModel, *, all_parameters: bool = False):
        self.model = model
        self.all_parameters = all_parameters
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(self, batch: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=not self.all_parameters)
        self.model(input_ids=batch, labels=batch).loss.backward()
        self.optimizer.step()


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
