"""Adapt a Mistral model, pretrained here on counting, to count backwards with LoRA and recomputed activations."""

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import MistralConfig, MistralForCausalLM

from attnwatch import TrainingCheckup

NUMBERS, LENGTH = 32, 20


def counting(batch: int, direction: int, generator: torch.Generator) -> Tensor:
    """Return rows that count by a stride from a random number on, modulo `NUMBERS`."""
    starts = torch.randint(NUMBERS, (batch, 1), generator=generator)
    strides = torch.randint(1, 6, (batch, 1), generator=generator)
    return (starts + direction * strides * torch.arange(LENGTH)) % NUMBERS


def build_base() -> MistralForCausalLM:
    config = MistralConfig(
        vocab_size=NUMBERS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=16,
        attention_dropout=0.1,
        max_position_embeddings=64,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return MistralForCausalLM(config)


def noisy(ids: Tensor, generator: torch.Generator, share: float = 0.15) -> Tensor:
    """Replace a share of the numbers by random ones, as in the raw data that base models are trained on."""
    others = torch.randint(NUMBERS, ids.shape, generator=generator)
    return torch.where(torch.rand(ids.shape, generator=generator) < share, others, ids)


def pretrain(model: nn.Module, generator: torch.Generator, steps: int = 80) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        ids = noisy(counting(32, 1, generator), generator)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def perplexity(model: nn.Module, ids: Tensor) -> float:
    was_training = model.training
    model.eval()
    loss = model(input_ids=ids, labels=ids).loss
    model.train(was_training)
    return loss.exp().item()


def add_adapters(base: nn.Module) -> nn.Module:
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        lora_dropout=0.05,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        modules_to_save=["lm_head"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    return model


def train(steps: int) -> TrainingCheckup:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    base = build_base()
    pretrain(base, generator)
    held_out = counting(64, -1, generator)
    model = add_adapters(base)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=5e-3, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=10)
    print(f"perplexity before: {perplexity(model, held_out):.2f}")
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(steps):
            ids = counting(16, -1, generator)
            with checkup.step(step):
                loss = model(input_ids=ids, labels=ids).loss
                loss.backward()
            nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if step % 50 == 0:
                print(f"{step}: loss {loss.item():.3f}, perplexity {perplexity(model, held_out):.2f}")
    return checkup
