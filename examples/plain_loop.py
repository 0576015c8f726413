"""Watch, judge, drop tokens and remove heads in a plain PyTorch loop of thirty lines.

python examples/plain_loop.py [--steps N]
"""

import argparse
import random

import torch
from sentences import code_or_prose, collate_with, minilm_directory
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import attnwatch

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=200)
steps = parser.parse_args().steps

examples = code_or_prose()
random.Random(0).shuffle(examples)
model = AutoModelForSequenceClassification.from_pretrained(
    minilm_directory(), num_labels=2, trust_remote_code=False
).train()
collate = collate_with(AutoTokenizer.from_pretrained(minilm_directory(), trust_remote_code=False))
batches = iter(DataLoader(examples * 100, batch_size=32, collate_fn=collate))
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)

importance = attnwatch.HeadImportance(model)
with (
    attnwatch.AttentionRecorder(model, optimizers=optimizer) as recorder,
    attnwatch.TokenDropper(model, keep_ratio=0.5) as dropper,
):
    for step in range(steps):
        if step == int(0.8 * steps):
            dropper.keep_ratio = 1.0  # the last steps at full length
        with recorder.step(step):
            loss = model(**next(batches)).loss
            recorder.record_loss(loss)
            loss.backward()
        importance.update()
        optimizer.step()
        optimizer.zero_grad()
        if step == int(0.3 * steps):
            plan = attnwatch.choose_heads(model, importance.values(), target=0.5)
            attnwatch.prune_heads(model, plan.heads, optimizers=[optimizer])
            print(f"step {step}: {plan}")
    print(f"the layers computed {dropper.layer_tokens / dropper.all_layer_tokens:.0%} of the tokens")
    history = recorder.history()
    for name in ("gradient_norm", "update_ratio", "token_cosine"):
        print(f"{name} by layer:", ", ".join(f"{number:.2g}" for number in history[name][-1]))
    print(f"attention: {attnwatch.diagnose(history, total_steps=steps)}")
