"""Teach a Qwen2 of small size to follow instructions in a chat template, with prompts masked, in the Trainer."""

import random
import tempfile
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer, TrainingArguments, set_seed

from attnwatch import TrainingCheckup
from attnwatch.transformers import AttentionMonitor

WORDS = ["reverse", "repeat", "first", "last", "user", "assistant", "\n", *"abcdefghijklmnop"]
SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>"]
IDS = {word: index for index, word in enumerate(WORDS + SPECIAL)}
PAD, START, END = (IDS[word] for word in SPECIAL)
MAX_LENGTH = 40


def encode(text: str) -> list[int]:
    return [IDS[word] for word in text.split(" ")]


def apply_template(role: str, content: str) -> list[int]:
    return [START, IDS[role], IDS["\n"], *encode(content), END, IDS["\n"]]


def answer(task: str, letters: list[str]) -> str:
    if task == "reverse":
        return " ".join(reversed(letters))
    if task == "repeat":
        return " ".join(letters)
    return letters[0] if task == "first" else letters[-1]


class Instructions(Dataset):
    def __init__(self, size: int, seed: int = 0) -> None:
        rng = random.Random(seed)
        requests, replies = [], []
        for _ in range(size):
            task = rng.choice(["reverse", "repeat", "first", "last"])
            letters = rng.choices("abcdefghijklmnop", k=rng.randint(2, 8))
            requests.append(f"{task} {' '.join(letters)}")
            replies.append(answer(task, letters))
        self.examples = [self._tokenize(*pair) for pair in zip(requests, replies, strict=True)]

    @staticmethod
    def _tokenize(request: str, reply: str) -> dict[str, list[int]]:
        prompt = [*apply_template("user", request), START, IDS["assistant"], IDS["\n"]]
        completion = [*encode(reply), END]
        input_ids = (prompt + completion)[:MAX_LENGTH]
        labels = ([-100] * len(prompt) + completion)[:MAX_LENGTH]
        return {"input_ids": input_ids, "labels": labels}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.examples[index]


class LeftPaddingCollator:
    def __call__(self, features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(feature["input_ids"]) for feature in features)
        input_ids, labels, attention_mask = [], [], []
        for feature in features:
            missing = longest - len(feature["input_ids"])
            input_ids.append([PAD] * missing + feature["input_ids"])
            labels.append([-100] * missing + feature["labels"])
            attention_mask.append([0] * missing + [1] * len(feature["input_ids"]))
        return {
            "input_ids": torch.tensor(input_ids),
            "labels": torch.tensor(labels),
            "attention_mask": torch.tensor(attention_mask),
        }


def build_model() -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def train(steps: int) -> TrainingCheckup:
    set_seed(0)
    model = build_model()
    model.resize_token_embeddings(len(IDS), mean_resizing=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=20)
    monitor = AttentionMonitor(on_finding="ignore", report=False)
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=32,
            logging_steps=20,
            max_grad_norm=1.0,
            **options,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Instructions(4000),
            data_collator=LeftPaddingCollator(),
            optimizers=(optimizer, scheduler),
            callbacks=[monitor],
        )
        trainer.train()
    return monitor.checkup
