"""Choose the right answer to a question among four with RoBERTa and the transformers Trainer."""

import random
import tempfile

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import RobertaConfig, RobertaForMultipleChoice, Trainer, TrainingArguments, set_seed

import attnwatch.transformers
from attnwatch import TrainingCheckup

BOS, PAD, EOS = 0, 1, 2
TOPICS = 6
CHOICES = 4
WORDS = range(80, 150)
ODD = range(150, 160)


def question_of(topic: int, rng: random.Random) -> list[int]:
    words = rng.choices(range(3 + 4 * topic, 7 + 4 * topic), k=2) + rng.choices(WORDS, k=rng.randint(2, 8))
    rng.shuffle(words)
    return words


def answer_of(topic: int, rng: random.Random) -> list[int]:
    return rng.choices(range(40 + 5 * topic, 45 + 5 * topic), k=rng.randint(1, 4))


class Questions(Dataset):
    """Questions with one answer of their own topic and three of others, some of them with an odd word."""

    def __init__(self, size: int):
        rng = random.Random(0)
        self.examples = [self.example(rng) for _ in range(size)]

    @staticmethod
    def example(rng: random.Random) -> dict[str, list[int] | list[list[int]] | int]:
        topics = rng.sample(range(TOPICS), k=CHOICES)
        question = question_of(topics[0], rng)
        right, *wrong = [answer_of(topic, rng) for topic in topics]
        answers = [right, *(answer + rng.choices(ODD, k=rng.randint(0, 1)) for answer in wrong)]
        rng.shuffle(answers)
        return {"question": question, "answers": answers, "label": answers.index(right)}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, list[int] | list[list[int]] | int]:
        return self.examples[index]


def collate(examples: list[dict]) -> dict[str, Tensor]:
    """Return a row for each pair of a question and an answer, as (question, choice, token)."""
    texts = [
        [BOS, *example["question"], EOS, EOS, *answer, EOS] for example in examples for answer in example["answers"]
    ]
    longest = max(len(text) for text in texts)
    ids = torch.tensor([text + [PAD] * (longest - len(text)) for text in texts])
    ids = ids.view(len(examples), CHOICES, longest)
    return {
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "labels": torch.tensor([example["label"] for example in examples]),
    }


def new_model() -> RobertaForMultipleChoice:
    config = RobertaConfig(
        vocab_size=160,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=40,
        type_vocab_size=1,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        initializer_range=0.1,
    )
    return RobertaForMultipleChoice(config)


def train(steps: int) -> TrainingCheckup:
    set_seed(10)
    model = new_model()
    monitor = attnwatch.transformers.AttentionMonitor(on_finding="ignore", report=False)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=1e-3,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=10,
            weight_decay=0.01,
            remove_unused_columns=False,
            logging_steps=10,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        )
        trainer = Trainer(model, arguments, data_collator=collate, train_dataset=Questions(2500), callbacks=[monitor])
        trainer.train()
    return monitor.checkup
