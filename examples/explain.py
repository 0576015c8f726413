"""What does a fine-tuned encoder rely on? Three callbacks ask it while it trains; then the same by hand.

    python examples/explain.py [--steps N]
    tensorboard --logdir explain

Sorts lines of Python's standard library into code and prose, with MiniLM. What comes out is in explain/model;
`attnwatch inspect explain/model --text explain/lines.txt` writes a page about it.
"""

import argparse
import random
from pathlib import Path

import lightning.pytorch as pl
from finetune_minilm import Classifier
from sentences import code_or_prose, collate_with, minilm_directory
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from attnwatch.explain import compare, deletion_curve, occlude
from attnwatch.lightning import ConfidenceProbe, LayerProbe, OcclusionAudit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("explain"))
    options = parser.parse_args()

    pl.seed_everything(0)
    examples = code_or_prose()
    random.Random(0).shuffle(examples)
    encoder = minilm_directory()
    tokenizer = AutoTokenizer.from_pretrained(encoder, trust_remote_code=False)
    collate = collate_with(tokenizer)
    validation = DataLoader(examples[:256], batch_size=32, collate_fn=collate)

    probes = LayerProbe(every_n_steps=50, num_batches=8, tokenizer=tokenizer)
    audit = OcclusionAudit(every_n_steps=50, tokenizer=tokenizer)
    confidence = ConfidenceProbe(every_n_steps=50)
    trainer = pl.Trainer(
        max_steps=options.steps,
        callbacks=[audit, probes, confidence],  # this is all there is to do
        default_root_dir=options.out,
        accelerator="cpu",
        enable_checkpointing=False,
    )
    module = Classifier(encoder, num_labels=2, learning_rate=5e-5)
    trainer.fit(module, DataLoader(examples[256:], batch_size=32, shuffle=True, collate_fn=collate), validation)
    print(f"\nWhat each layer knows:\n{probes.results[-1][1]}")
    print(f"\nHow sure it is:\n{confidence.results[-1][1]}")

    batch = next(iter(validation))  # by hand, on any model
    found = occlude(module, batch, tokenizer=tokenizer)
    told = compare(module, batch, found)
    curve = deletion_curve(module, batch, found.importance, tokenizer=tokenizer)
    print(f"\nHiding: {found}\nAttention: {told}\nCurve: {curve}")

    module.model.save_pretrained(options.out / "model")
    tokenizer.save_pretrained(options.out / "model")
    lines = "".join(f"{line}\t{label}\n" for line, label in examples[:256])
    (options.out / "lines.txt").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
