"""Train a small T5 to sort and to clean lists of numbers, with its own collate function, in the Seq2SeqTrainer."""

import random
import tempfile

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from attnwatch import TrainingCheckup
from attnwatch.transformers import AttentionMonitor

PAD, EOS = 0, 1
TASKS = {"sort ascending:": 2, "sort descending:": 3, "remove repeats:": 4}
FIRST_NUMBER, NUMBERS = 5, 20
MAX_SOURCE, MAX_TARGET = 14, 14


def solve(task: str, numbers: list[int]) -> list[int]:
    if task == "remove repeats:":
        return list(dict.fromkeys(numbers))
    return sorted(numbers, reverse=task == "sort descending:")


class Lists(Dataset):
    def __init__(self, size: int, seed: int) -> None:
        rng = random.Random(seed)
        self.rows = []
        for _ in range(size):
            task = rng.choice(list(TASKS))
            self.rows.append((task, rng.choices(range(NUMBERS), k=rng.randint(3, 9))))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        task, numbers = self.rows[index]
        source = [TASKS[task], *(FIRST_NUMBER + number for number in numbers)]
        target = [FIRST_NUMBER + number for number in solve(task, numbers)]
        return {"input_ids": [*source[: MAX_SOURCE - 1], EOS], "labels": [*target[: MAX_TARGET - 1], EOS]}


def pad(rows: list[list[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def collate(features: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    input_ids = pad([feature["input_ids"] for feature in features], PAD)
    labels = pad([feature["labels"] for feature in features], -100)
    return {"input_ids": input_ids, "attention_mask": (input_ids != PAD).long(), "labels": labels}


def build_model() -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=FIRST_NUMBER + NUMBERS,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        dropout_rate=0.05,
        feed_forward_proj="gated-gelu",
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=PAD,
    )
    return T5ForConditionalGeneration(config)


def train(steps: int) -> TrainingCheckup:
    set_seed(1)
    model = build_model()
    monitor = AttentionMonitor(on_finding="ignore", report=False)
    with tempfile.TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=32,
            learning_rate=2e-3,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=20,
            weight_decay=0.01,
            max_grad_norm=1.0,
            logging_steps=25,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        )
        trainer = Seq2SeqTrainer(
            model=model,
            args=arguments,
            train_dataset=Lists(5000, seed=0),
            data_collator=collate,
            callbacks=[monitor],
        )
        trainer.train()
    return monitor.checkup
