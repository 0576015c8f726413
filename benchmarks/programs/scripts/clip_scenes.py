"""Align pictures of two objects with sentences about them by a small CLIP, in the transformers Trainer."""

import tempfile

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import CLIPConfig, CLIPModel, Trainer, TrainingArguments

from attnwatch import TrainingCheckup
from attnwatch.transformers import AttentionMonitor

VOCABULARY = "<pad> <unk> <s> </s> a small large red green blue yellow purple square cross stripe left of"
WORDS = VOCABULARY.split()
PAD, BOS, EOS = 0, 2, 3
SIZE, LONGEST = 24, 14
COLOURS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1]])


def tokenize(sentence: str) -> list[int]:
    return [BOS, *(WORDS.index(word) for word in sentence.split()), EOS]


def draw(form: int) -> Tensor:
    stripe = torch.zeros(10, 10)
    stripe[4:6] = 1.0
    return [torch.ones(10, 10), torch.eye(10) + torch.eye(10).flip(0), stripe][form]


class Scenes(Dataset):
    """A thing, or a thing to the left of another; sometimes the sentence tells the size."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Tensor | list[int]]:
        random = torch.Generator().manual_seed(index)
        image = 0.05 * torch.randn(3, SIZE, SIZE, generator=random)
        parts = []
        for place in range(int(torch.randint(1, 3, (), generator=random))):
            colour, form = (int(torch.randint(end, (), generator=random)) for end in (5, 3))
            is_small = float(torch.rand((), generator=random)) < 0.5
            thing = draw(form)[::2, ::2] if is_small else draw(form)
            top = int(torch.randint(SIZE - len(thing), (), generator=random))
            left = 12 * place + int(torch.randint(12 - len(thing), (), generator=random))
            image[:, top : top + len(thing), left : left + len(thing)] += thing * COLOURS[colour].view(3, 1, 1)
            size = ("small " if is_small else "large ") * (place == 0)
            parts.append(f"a {size}{WORDS[7 + colour]} {WORDS[12 + form]}")
        return {"pixel_values": image, "tokens": tokenize(" left of ".join(parts))}


def collate(items: list[dict]) -> dict[str, Tensor | bool]:
    captions = [item["tokens"] for item in items]
    ids = torch.full((len(items), LONGEST), PAD)
    for row, caption in enumerate(captions):
        ids[row, : len(caption)] = torch.tensor(caption)
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "return_loss": True,
    }


def build_model() -> CLIPModel:
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    text = {"vocab_size": len(WORDS), "max_position_embeddings": LONGEST, **tokens, **tower}
    vision = {"image_size": SIZE, "patch_size": 4, **tower}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32))


def train(steps: int) -> TrainingCheckup:
    torch.manual_seed(0)
    monitor = AttentionMonitor(on_finding="ignore", report=False)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=32,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=5,
            max_grad_norm=1.0,
            logging_steps=10,
            remove_unused_columns=False,
            seed=0,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        )
        model = build_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1)
        trainer = Trainer(
            model,
            arguments,
            data_collator=collate,
            train_dataset=Scenes(32 * steps),
            optimizers=(optimizer, None),
            callbacks=[monitor],
        )
        trainer.train()
    return monitor.checkup
