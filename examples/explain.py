"""Measure what a fine-tuned encoder relies on, with three callbacks during training and by hand afterwards.

    python examples/explain.py [--steps N]
    tensorboard --logdir explain

The encoder, MiniLM, learns whether a line of Python's standard library is code or prose. The trained model is saved in
explain/model. `attnwatch inspect explain/model --text explain/lines.txt` writes a report about it.
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
        callbacks=[audit, probes, confidence],  # the only change
        default_root_dir=options.out,
        accelerator="cpu",
        enable_checkpointing=False,
    )
    module = Classifier(encoder, num_labels=2, learning_rate=5e-5)
    trainer.fit(module, DataLoader(examples[256:], batch_size=32, shuffle=True, collate_fn=collate), validation)
    print(f"\nProbes of each layer:\n{probes.results[-1][1]}")
    print(f"\nCalibration:\n{confidence.results[-1][1]}")

    batch = next(iter(validation))  # the same without a trainer, on any model
    occlusion = occlude(module, batch, tokenizer=tokenizer)
    comparison = compare(module, batch, occlusion)
    curve = deletion_curve(module, batch, occlusion.importance, tokenizer=tokenizer)
    print(f"\nOcclusion: {occlusion}\nAttention: {comparison}\nCurve: {curve}")

    module.model.save_pretrained(options.out / "model")
    tokenizer.save_pretrained(options.out / "model")
    lines = "".join(f"{line}\t{label}\n" for line, label in examples[:256])
    (options.out / "lines.txt").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
