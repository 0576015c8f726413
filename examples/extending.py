"""A statistic, a finding and a head criterion of your own: recorded, judged and used to prune a model.

python examples/extending.py [--steps N]
"""

import argparse
import dataclasses
import random

import torch
from sentences import code_or_prose, collate_with, minilm_directory
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import attnwatch


@attnwatch.register
class Gini(attnwatch.Statistic):
    """Gini coefficient of the attention weights of each query row."""

    name = "gini"
    summary = "Gini coefficient of the attention weights (0: uniform)"
    formula = "Σ_j (2j - n - 1) p_(j) / n"
    low, high = 0.0, 1.0
    per_layer = True

    def values(self, rows):
        weights = rows.weights.sort(-1).values  # hidden keys have no weight and come first
        number = rows.num_visible.unsqueeze(-1)
        rank = torch.arange(1, weights.shape[-1] + 1, device=rows.device) - (weights.shape[-1] - number)
        return ((2 * rank - number - 1) * weights).sum(-1) / rows.num_visible


@attnwatch.register
@dataclasses.dataclass(frozen=True)
class UnequalAttention(attnwatch.FindingRule):
    """The attention of a layer is concentrated on few tokens."""

    name = "unequal_attention"
    remedy = "Look at the tokens that get all of the attention."
    note = "Nothing needs to be done."

    enter: float = 0.6
    leave: float = 0.5

    def look(self, evidence):
        gini = evidence.mean("gini")
        found = evidence.flags(gini > self.enter, gini < self.leave, patience=2)
        return evidence.symptom(found, "attention is concentrated", severity=0.5)


@attnwatch.register
class EvenHeads(attnwatch.HeadCriterion):
    """Heads whose attention is spread evenly are the least important."""

    name = "even_heads"
    reads = ("gini",)

    def scores(self, data):
        return data["gini"]


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=120)
steps = parser.parse_args().steps

examples = code_or_prose()
random.Random(0).shuffle(examples)
model = AutoModelForSequenceClassification.from_pretrained(
    minilm_directory(), num_labels=2, trust_remote_code=False
).train()
collate = collate_with(AutoTokenizer.from_pretrained(minilm_directory(), trust_remote_code=False))
batches = iter(DataLoader(examples * 100, batch_size=32, collate_fn=collate))
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)

with attnwatch.AttentionRecorder(model, every_n_steps=5) as recorder:
    for step in range(steps):
        with recorder.step(step):
            loss = model(**next(batches)).loss
            recorder.record_loss(loss)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

history = recorder.history()
print("Gini coefficient by layer:", ", ".join(f"{layer:.2f}" for layer in history["gini"][-1].mean(1)))
print(attnwatch.diagnose(history, total_steps=steps))
importance = attnwatch.head_importance(model, "even_heads", history=recorder.history)
plan = attnwatch.choose_heads(model, importance, target=0.25)
attnwatch.prune_heads(model, plan.heads)
print(f"removed: {plan}")
