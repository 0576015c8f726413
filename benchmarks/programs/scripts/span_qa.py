"""Answer questions by spans of a text with BERT, micro-batches and bfloat16 autocast, in a plain loop."""

import random
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, get_linear_schedule_with_warmup

from attnwatch import TrainingCheckup

PAD, CLS, SEP = 0, 1, 2
KINDS = range(4)  # who, when, where, how many
WORDS = range(100, 180)
MICRO_BATCHES = 2


def example(rng: random.Random) -> dict[str, list[int] | int]:
    """Return a question and a text with a span for each kind of question, one of which answers it."""
    asked = rng.choice(KINDS)
    question = rng.choices(range(3 + 4 * asked, 7 + 4 * asked), k=rng.randint(2, 5))
    context: list[int] = []
    start = end = 0
    for kind in rng.sample(KINDS, k=len(KINDS)):
        context += rng.choices(WORDS, k=rng.randint(1, 5))
        span = rng.choices(range(20 + 20 * kind, 26 + 20 * kind), k=rng.randint(1, 3))
        if kind == asked:
            start, end = len(context), len(context) + len(span) - 1
        context += span
    context += rng.choices(WORDS, k=rng.randint(0, 6))
    offset = len(question) + 2
    return {
        "ids": [CLS, *question, SEP, *context, SEP],
        "types": [0] * offset + [1] * (len(context) + 1),
        "start": start + offset,
        "end": end + offset,
    }


def batches(size: int) -> Iterator[dict[str, Tensor]]:
    rng = random.Random(0)
    while True:
        examples = [example(rng) for _ in range(size)]
        longest = max(len(each["ids"]) for each in examples)
        pad = [[0] * (longest - len(each["ids"])) for each in examples]
        yield {
            "input_ids": torch.tensor([each["ids"] + more for each, more in zip(examples, pad, strict=True)]),
            "token_type_ids": torch.tensor([each["types"] + more for each, more in zip(examples, pad, strict=True)]),
            "starts": torch.tensor([each["start"] for each in examples]),
            "ends": torch.tensor([each["end"] for each in examples]),
        }


class SpanReader(nn.Module):
    def __init__(self):
        super().__init__()
        config = BertConfig(
            vocab_size=180,
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=64,
            initializer_range=0.1,
        )
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(0.1)
        self.start_head = nn.Linear(config.hidden_size, 1)
        self.end_head = nn.Linear(config.hidden_size, 1)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        is_text = input_ids != PAD
        output = self.bert(input_ids, attention_mask=is_text.long(), token_type_ids=token_type_ids)
        states = self.dropout(output.last_hidden_state)
        start_logits = self.start_head(states).squeeze(-1).float()
        end_logits = self.end_head(states).squeeze(-1).float()
        return start_logits.masked_fill(~is_text, -1e4), end_logits.masked_fill(~is_text, -1e4)


def train(steps: int) -> TrainingCheckup:
    torch.manual_seed(4)
    model = SpanReader()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    scheduler = get_linear_schedule_with_warmup(optimizer, 10, max(steps, 300))
    criterion = nn.CrossEntropyLoss()
    data = batches(16)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(steps):
            total = 0.0
            for _ in range(MICRO_BATCHES):
                batch = next(data)
                with checkup.step(step):
                    with torch.autocast("cpu", dtype=torch.bfloat16):
                        start_logits, end_logits = model(batch["input_ids"], batch["token_type_ids"])
                    start_loss = criterion(start_logits, batch["starts"])
                    end_loss = criterion(end_logits, batch["ends"])
                    loss = (start_loss + end_loss) / 2
                    (loss / MICRO_BATCHES).backward()
                total += loss.item() / MICRO_BATCHES
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if step % 10 == 0:
                print(f"step {step}: loss {total:.3f}")
    return checkup
