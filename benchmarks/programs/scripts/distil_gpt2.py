"""Distil a GPT-2 of four layers into one of two, with soft targets, hidden states and the true next words."""

import copy
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from attnwatch import TrainingCheckup

WORDS, LENGTH = 60, 24
TEMPERATURE, SOFT, HIDDEN = 2.0, 0.7, 0.3


class Sentences(Dataset):
    """Sentences of a grammar in which the next word depends on the word before and on the topic, the first word."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        preferences = 2.5 * torch.randn(4, WORDS, WORDS, generator=torch.Generator().manual_seed(99))
        topics = torch.randint(4, (count,), generator=generator)
        words = [topics]
        for _ in range(LENGTH - 1):
            chances = preferences[topics, words[-1]].softmax(-1)
            words.append(torch.multinomial(chances, 1, generator=generator)[:, 0])
        self.ids = torch.stack(words, dim=1)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tensor:
        return self.ids[index]


def gpt2(layers: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=WORDS,
        n_positions=LENGTH,
        n_embd=64,
        n_layer=layers,
        n_head=4,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config)


def train_teacher(data: Dataset, steps: int = 120) -> GPT2LMHeadModel:
    teacher = gpt2(layers=4)
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    loader = DataLoader(data, batch_size=32, shuffle=True)
    for ids in itertools.islice(itertools.cycle(loader), steps):
        loss = teacher(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print("loss of the teacher:", round(loss.item(), 3))
    return teacher


def make_student(teacher: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """Return a student whose blocks start as every other block of the teacher."""
    student = gpt2(layers=2)
    student.transformer.wte.load_state_dict(teacher.transformer.wte.state_dict())
    student.transformer.wpe.load_state_dict(teacher.transformer.wpe.state_dict())
    for index in range(2):
        student.transformer.h[index] = copy.deepcopy(teacher.transformer.h[2 * index])
    return student


def soft_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    student_log_probs = F.log_softmax(student_logits / TEMPERATURE, dim=-1)
    teacher_probs = F.softmax(teacher_logits / TEMPERATURE, dim=-1)
    divergence = F.kl_div(student_log_probs, teacher_probs, reduction="none").sum(-1)
    return divergence.mean() * TEMPERATURE**2


def hidden_loss(student_hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(student_hidden, teacher_hidden, dim=-1)).mean()


def train(steps: int) -> TrainingCheckup:
    torch.manual_seed(0)
    data = Sentences(3000, seed=0)
    teacher = train_teacher(data)
    student = make_student(teacher)
    teacher.requires_grad_(False)
    teacher.eval()
    student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.01)
    loader = DataLoader(data, batch_size=32, shuffle=False, drop_last=True)
    batches = itertools.cycle(loader)
    with TrainingCheckup(student, optimizers=optimizer) as checkup:
        for step in range(steps):
            ids = next(batches)
            with torch.no_grad():
                expected = teacher(input_ids=ids, output_hidden_states=True)
            optimizer.zero_grad()
            with checkup.step(step):
                output = student(input_ids=ids, output_hidden_states=True)
                hard = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
                soft = soft_loss(output.logits[:, :-1], expected.logits[:, :-1])
                hidden = hidden_loss(output.hidden_states[-1], expected.hidden_states[-1])
                loss = SOFT * soft + (1 - SOFT) * hard + HIDDEN * hidden
                loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            if step % 25 == 0:
                print(f"{step}: hard {hard.item():.3f} soft {soft.item():.3f} hidden {hidden.item():.3f}")
    return checkup
