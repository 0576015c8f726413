"""Watch and prune in an Accelerate loop, on one process or several. The history covers the data of all processes.

python examples/accelerate_loop.py [--steps N]
accelerate launch --cpu --num_processes 2 examples/accelerate_loop.py
"""

import argparse
import random

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from sentences import code_or_prose, collate_with, minilm_directory
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import attnwatch

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--cpu", action="store_true", help="use the CPU even if there is a GPU")
options = parser.parse_args()
steps, accelerator = options.steps, Accelerator(cpu=options.cpu)

examples = code_or_prose()
random.Random(0).shuffle(examples)
model = AutoModelForSequenceClassification.from_pretrained(
    minilm_directory(), num_labels=2, trust_remote_code=False
).train()
collate = collate_with(AutoTokenizer.from_pretrained(minilm_directory(), trust_remote_code=False))

# Prune before `prepare`, because wrappers keep references to parameters. Importance is the norm of the loaded weights.
plan = attnwatch.choose_heads(model, attnwatch.head_importance(model, "weight"), target=0.25)
(heads,) = broadcast_object_list([dict(plan.heads)])
attnwatch.prune_heads(model, heads)

optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
batches = DataLoader(examples * 100, batch_size=32, collate_fn=collate)
wrapped, optimizer, batches = accelerator.prepare(model, optimizer, batches)

with attnwatch.AttentionRecorder(model, across_processes=True) as recorder:
    for step, batch in zip(range(steps), batches, strict=False):
        with recorder.step(step):
            loss = wrapped(**batch).loss
            recorder.record_loss(loss)
            accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    recorder.flush(finish_step=True)
accelerator.print(f"attention: {attnwatch.diagnose(recorder.history(), total_steps=steps)}")
accelerator.print(attnwatch.PruningPlan.of(model))
accelerator.end_training()
