"""Add a statistic, a finding and a criterion to attnwatch, and use them in a training.

    python examples/extending.py [--steps N]

A small Llama learns the bytes of Python's standard library. The statistic is recorded in every layer and head, the finding
is part of the diagnosis, and the criterion decides which heads are removed.
"""

import argparse
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import attnwatch

CONTEXT = 64


@attnwatch.register
class Concentration(attnwatch.Statistic):
    """Sum of the squared attention weights of each query row."""

    name = "concentration"
    summary = "sum of the squared attention weights (1: one key)"
    formula = "Σ_j p_j²"
    low, high = 0, 1
    per_layer = True

    def values(self, rows):
        return rows.weights.square().sum(-1)


@attnwatch.register
@dataclass(frozen=True)
class Concentrated(attnwatch.FindingRule):
    """Attention of a layer is concentrated on few keys."""

    name = "concentrated"
    remedy = "Compare the layer with those of a run that you know is sound."

    enter: float = 0.3
    leave: float = 0.2

    def look(self, evidence):
        concentration = evidence.mean("concentration")
        found = evidence.flags(concentration > self.enter, concentration < self.leave)
        return evidence.symptom(found, "attention is concentrated on few keys", severity=0.5)


@attnwatch.register
class Peaked(attnwatch.HeadCriterion):
    """Concentration of a head's attention: heads that attend to many keys are removed first."""

    name = "peaked"
    reads = ("concentration",)

    def scores(self, data):
        return data["concentration"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps

    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    tokens = torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8).long()
    windows = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    with attnwatch.AttentionRecorder(model, total_steps=steps) as recorder:
        for step in range(steps):
            batch = windows[torch.randint(len(windows), (8,))]
            with recorder.step(step):
                loss = model(input_ids=batch, labels=batch).loss
                recorder.record_loss(loss)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    history = recorder.history()
    print(f"concentration of each layer: {history['concentration'][-1].mean(-1).round(2)}")
    print(attnwatch.diagnose(history))
    importance = attnwatch.head_importance(model, "peaked", history=recorder.history)
    plan = attnwatch.choose_heads(model, importance, target=0.25)
    print(plan)
    plan.apply(model, [optimizer])


if __name__ == "__main__":
    main()
