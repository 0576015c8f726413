"""Tag persons and places in tokenised sentences with DistilBERT and the transformers Trainer."""

import random
import tempfile

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    DistilBertConfig,
    DistilBertForTokenClassification,
    Trainer,
    TrainingArguments,
    get_linear_schedule_with_warmup,
    set_seed,
)

import attnwatch.transformers
from attnwatch import TrainingCheckup

PAD, CLS, SEP = 0, 1, 2
TITLE, IN = 3, 4
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
PERSONS, PLACES = range(10, 40), range(30, 60)  # ten names are of both
WORDS = range(60, 200)
VOCABULARY = 240
IGNORED = -100


def sentence(rng: random.Random) -> tuple[list[int], list[int]]:
    """Return words with their tags; what stands before a name tells what it names, if the name doesn't."""
    words, tags = [], []
    for _ in range(rng.randint(2, 4)):
        filler = rng.choices(WORDS, k=rng.randint(1, 4))
        is_person = rng.random() < 0.5
        names = rng.choices(PERSONS if is_person else PLACES, k=rng.randint(1, 2))
        words += [*filler, TITLE if is_person else IN, *names]
        tags += [0] * (len(filler) + 1) + [1 if is_person else 3] + [2 if is_person else 4] * (len(names) - 1)
    return words, tags


def tokenize(words: list[int]) -> tuple[list[int], list[int]]:
    """Return the pieces of the words and the word of each piece; every third word has a second piece."""
    pieces, word_ids = [], []
    for index, word in enumerate(words):
        own = [word] if word % 3 else [word, 200 + word % 40]
        pieces += own
        word_ids += [index] * len(own)
    return pieces, word_ids


class Sentences(Dataset):
    def __init__(self, size: int, seed: int = 0):
        rng = random.Random(seed)
        self.examples = [self.encode(*sentence(rng)) for _ in range(size)]

    @staticmethod
    def encode(words: list[int], tags: list[int]) -> dict[str, list[int]]:
        pieces, word_ids = tokenize(words)
        labels = [IGNORED]
        previous = None
        for word in word_ids:
            labels.append(tags[word] if word != previous else IGNORED)
            previous = word
        labels.append(IGNORED)
        return {"input_ids": [CLS, *pieces, SEP], "labels": labels}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.examples[index]


def collate(examples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    longest = max(len(example["input_ids"]) for example in examples)
    batch: dict[str, list] = {"input_ids": [], "attention_mask": [], "labels": []}
    for example in examples:
        missing = longest - len(example["input_ids"])
        batch["input_ids"].append(example["input_ids"] + [PAD] * missing)
        batch["attention_mask"].append([1] * len(example["input_ids"]) + [0] * missing)
        batch["labels"].append(example["labels"] + [IGNORED] * missing)
    return {name: torch.tensor(rows) for name, rows in batch.items()}


def new_model() -> DistilBertForTokenClassification:
    config = DistilBertConfig(
        vocab_size=VOCABULARY - 8,
        dim=64,
        hidden_dim=128,
        n_heads=4,
        n_layers=3,
        max_position_embeddings=64,
        pad_token_id=PAD,
        initializer_range=0.1,
        num_labels=len(TAGS),
    )
    return DistilBertForTokenClassification(config)


def train(steps: int) -> TrainingCheckup:
    set_seed(2)
    model = new_model()
    model.resize_token_embeddings(VOCABULARY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, 5, max(steps, 100))
    monitor = attnwatch.transformers.AttentionMonitor(on_finding="ignore", report=False)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=16,
            logging_steps=10,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=Sentences(2000),
            data_collator=collate,
            optimizers=(optimizer, schedule),
            callbacks=[monitor],
        )
        trainer.train()
    return monitor.checkup
