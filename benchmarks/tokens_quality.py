"""What dropping tokens does to the loss that a training reaches in a given time: a Llama on bytes of source code.

    python -m benchmarks.tokens_quality [--quick] [--seconds N] [--seeds N] [--runs DIRECTORY] [--out PATH]

Each way trains for the same time, on the source text of Python's standard library; every tenth file is held out. The
learning rate and the share of kept tokens follow the time. Tokens are dropped in all layers but the first and the last,
and the last 20% of the time is at full length. Time is that of the process's CPU, so that it does not matter what else
the machine does; it runs on one thread. Validation, which takes no part in the time, is always at full length. Reported
are the loss at the end, how many steps there were, and after which share of its time a way has reached the loss at
which training on all tokens ends, with the same seed. With --runs, finished runs are kept there and not repeated. Last
line of the output: JSON.
"""

import argparse
import dataclasses
import itertools
import json
import math
import sysconfig
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from attnwatch import KeepSchedule, TokenCriterion, TokenDropper
from benchmarks.common import publish, results_path

GOAL = 0.75
_CONTEXT, _BATCH_SIZE, _LEARNING_RATE, _WARM_UP_STEPS = 256, 8, 2e-3, 40
_VALIDATIONS = 20


@dataclass(frozen=True)
class Way:
    """One way to train; no criterion keeps all tokens."""

    criterion: str = ""
    keep_ratio: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.criterion} {self.keep_ratio:.0%}" if self.criterion else "all tokens"

    def dropper(self, model: LlamaForCausalLM, seed: int) -> TokenDropper | None:
        return TokenDropper(model, criterion=self.criterion, seed=seed) if self.criterion else None


WAYS = (Way(), *(Way(criterion, 0.5) for criterion in TokenCriterion.registry), Way("random", 0.25))


@dataclass(frozen=True)
class Run:
    """One finished training: (share of the time, validation loss) pairs, and steps."""

    curve: list[tuple[float, float]]
    steps: int
    layer_tokens: int

    @property
    def loss(self) -> float:
        return self.curve[-1][1]

    def reaches(self, loss: float) -> float | None:
        """Share of the time after which the loss is reached, between validations interpolated; None where it is not."""
        for (before, higher), (after, lower) in itertools.pairwise(self.curve):
            if lower <= loss < higher:
                return before + (after - before) * (higher - loss) / (higher - lower)
        return None


def source_bytes() -> tuple[np.ndarray, np.ndarray]:
    """(to train on, held out)."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    held_out = files[::10]
    parts = ([file for file in files if file not in held_out], held_out)
    return tuple(np.frombuffer(b"\n".join(file.read_bytes() for file in part), dtype=np.uint8) for part in parts)


def windows(text: np.ndarray, rng: np.random.Generator, number: int) -> Tensor:
    starts = rng.integers(0, len(text) - _CONTEXT, number)
    return torch.from_numpy(np.stack([text[start : start + _CONTEXT] for start in starts]).astype(np.int64))


def batches(text: np.ndarray, seed: int) -> Iterator[Tensor]:
    rng = np.random.default_rng(seed)
    while True:
        yield windows(text, rng, _BATCH_SIZE)


def build(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_CONTEXT,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def train(way: Way, seed: int, seconds: float) -> Run:
    text, held_out = source_bytes()
    validation = windows(held_out, np.random.default_rng(0), 64)
    model = build(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.1)
    schedule = KeepSchedule.constant(way.keep_ratio)
    dropper = way.dropper(model, seed)
    curve, steps, spent = [(0.0, validate(model, validation))], 0, 0.0
    with dropper or nullcontext():
        for batch in batches(text, seed):
            begin, progress = time.process_time(), spent / seconds
            if dropper is not None:
                dropper.keep_ratio = schedule(progress)
            warm_up = min((steps + 1) / _WARM_UP_STEPS, 1)
            for group in optimizer.param_groups:
                group["lr"] = _LEARNING_RATE * warm_up * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))
            optimizer.zero_grad()
            model(input_ids=batch, labels=batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            steps += 1
            spent += time.process_time() - begin
            if spent >= seconds or spent / seconds >= len(curve) / _VALIDATIONS:
                curve.append((min(spent / seconds, 1.0), validate(model, validation)))
            if spent >= seconds:
                break
    tokens = steps * _BATCH_SIZE * _CONTEXT * 8 if dropper is None else dropper.layer_tokens
    return Run(curve, steps, tokens)


@torch.no_grad()
def validate(model: LlamaForCausalLM, ids: Tensor) -> float:
    """Nats per byte."""
    model.eval()
    losses = [model(input_ids=part, labels=part).loss.item() for part in ids.split(16)]
    model.train()
    return sum(losses) / len(losses)


def kept_run(options: argparse.Namespace, way: Way, seed: int) -> Run:
    file = options.runs and options.runs / f"{way.name.replace(' ', '-')}-{seed}.json"
    if file and file.exists():
        stored = json.loads(file.read_text())
        return Run([tuple(point) for point in stored["curve"]], stored["steps"], stored["layer_tokens"])
    run = train(way, seed, options.seconds)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(dataclasses.asdict(run)))
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180.0, help="of CPU time for each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, help="directory where finished runs are kept")
    parser.add_argument("--quick", action="store_true", help="a few steps of one seed: does it run?")
    parser.add_argument("--out", type=Path, help="where the JSON goes (default: benchmarks/results, unless --quick)")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.seeds = 3.0, 1
    torch.set_num_threads(1)

    runs: dict[str, list[Run]] = {way.name: [] for way in WAYS}
    for seed, way in itertools.product(range(options.seeds), WAYS):
        run = kept_run(options, way, seed)
        runs[way.name].append(run)
        print(f"seed {seed}, {way.name:<14} loss {run.loss:.4f} after {run.steps} steps", flush=True)

    measured: dict[str, Any] = {"seconds": options.seconds, "ways": {}}
    print(f"\n{'':<16}{'loss of each seed':<28}{'less than all tokens':<24}time to reach their loss")
    for name, of_way in runs.items():
        whole = runs[Way().name]
        gains = [other.loss - run.loss for run, other in zip(of_way, whole, strict=True)]
        reached = [run.reaches(other.loss) for run, other in zip(of_way, whole, strict=True)]
        measured["ways"][name] = {
            "loss": [run.loss for run in of_way],
            "less_than_all_tokens": gains,
            "time_to_their_loss": reached,
            "steps": [run.steps for run in of_way],
            "layer_tokens": [run.layer_tokens for run in of_way],
            "curves": [run.curve for run in of_way],
        }
        shown = ["–" if share is None else f"{share:.2f}" for share in reached]
        print(
            f"{name:<16}{' '.join(f'{run.loss:.3f}' for run in of_way):<28}"
            f"{' '.join(f'{gain:+.3f}' for gain in gains):<24}{' '.join(shown)}"
        )
    publish("tokens_quality", measured, options.out or (None if options.quick else results_path("tokens_quality")))


if __name__ == "__main__":
    main()
