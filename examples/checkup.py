"""Three faults that the loss hides, each named in the first step.

    python examples/checkup.py

A small BERT is trained to fill in words: right, without its padding mask, in eval mode, and with an optimizer that was
made before the head was replaced.
"""

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

import attnwatch

VOCABULARY, TOKENS = 64, 24


def batch() -> dict[str, torch.Tensor]:
    """Return sequences of different lengths, with a seventh of the tokens to be filled in."""
    lengths = torch.randint(TOKENS // 2, TOKENS, (8, 1))
    mask = (torch.arange(TOKENS) < lengths).long()
    tokens = torch.randint(3, VOCABULARY, (8, TOKENS)) * mask
    hidden = (torch.rand(8, TOKENS) < 0.15) & mask.bool()
    return {
        "input_ids": tokens.masked_fill(hidden, 1),
        "attention_mask": mask,
        "labels": tokens.masked_fill(~hidden, -100),
    }


def model() -> BertForMaskedLM:
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    return BertForMaskedLM(config).train()


def first_steps(bert: BertForMaskedLM, optimizer: torch.optim.Optimizer, *, with_mask: bool = True) -> None:
    """Train for three steps and print what the checkup finds."""
    with attnwatch.TrainingCheckup(bert, optimizers=optimizer) as checkup:
        for step in range(3):
            inputs = batch()
            if not with_mask:
                del inputs["attention_mask"]
            with checkup.step(step):
                bert(**inputs).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    print("\n".join(map(str, checkup.findings)) or "nothing was found")


def main() -> None:
    torch.manual_seed(0)

    print("\nA sound script:")
    sound = model()
    first_steps(sound, torch.optim.AdamW(sound.parameters(), lr=1e-3))

    print("\nThe collator forgets the padding mask:")
    forgetful = model()
    first_steps(forgetful, torch.optim.AdamW(forgetful.parameters(), lr=1e-3), with_mask=False)

    print("\nThe model is left in eval mode:")
    evaluated = model().eval()
    first_steps(evaluated, torch.optim.AdamW(evaluated.parameters(), lr=1e-3))

    print("\nThe head is replaced after the optimizer was made:")
    changed = model()
    optimizer = torch.optim.AdamW(changed.parameters(), lr=1e-3)
    changed.cls.predictions.transform.dense = nn.Linear(32, 32)
    first_steps(changed, optimizer)


if __name__ == "__main__":
    main()
