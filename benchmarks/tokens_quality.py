"""Loss that a training reaches in a given time when tokens are dropped: a Llama on bytes of source code.

    python -m benchmarks.tokens_quality [--quick] [--seconds N] [--seeds N] [--runs DIRECTORY] [--out PATH]

Each way trains for the same time, on the source text of Python's standard library; every tenth file is held out. The
learning rate and the share of kept tokens follow the time. Tokens are dropped in all layers but the first and the last,
and the last 20% of the time is at full length. Time is that of the process's CPU, so that it does not matter what else
the machine does; it runs on one thread. Validation, which takes no part in the time, is always at full length. Reported
are the loss at the end, how many steps there were, and after which share of its time a way has reached the loss at
which training on all tokens ends, with the same seed. With --runs, finished runs are kept there and not repeated. Last
line of the output: JSON.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from attnwatch import KeepSchedule, TokenCriterion, TokenDropper
from benchmarks.common import Benchmark, add_seeds, over_seeds, progress, show
from benchmarks.models import Sizes
from benchmarks.texts import source_code

BENCHMARK = Benchmark(
    "tokens_quality",
    __doc__,
    duration="about 50 minutes on 2 CPU cores: five ways, each with three seeds, 3 minutes each; with --runs, a "
    "benchmark that was stopped goes on where it was",
    quick="3 seconds and one seed each",
)
_LEARNING_RATE, _WARM_UP_STEPS = 2e-3, 40
SIZES = Sizes(
    hidden_size=128,
    num_layers=8,
    num_heads=4,
    num_key_value_heads=2,
    vocab_size=256,
    batch_size=8,
    num_tokens=256,
    intermediate_size=384,
)
_VALIDATIONS = 20


@dataclass(frozen=True)
class Way:
    """A way to train; without a criterion, all tokens are kept."""

    criterion: str = ""
    keep_ratio: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.criterion} {self.keep_ratio:.0%}" if self.criterion else "all tokens"

    def dropper(self, model: LlamaForCausalLM, seed: int) -> TokenDropper | None:
        return TokenDropper(model, criterion=self.criterion, seed=seed) if self.criterion else None


_WAYS = (Way(), *(Way(criterion, 0.5) for criterion in TokenCriterion.registry), Way("random", 0.25))
WAYS = {way.name: way for way in _WAYS}


@dataclass(frozen=True)
class Run:
    """A finished training: (share of the time, validation loss) pairs, and steps."""

    curve: list[tuple[float, float]]
    steps: int
    layer_tokens: int

    @property
    def loss(self) -> float:
        return self.curve[-1][1]

    def reaches(self, loss: float) -> float | None:
        """Return the share of the time after which a loss is reached, interpolated between validations, or None."""
        for (before, higher), (after, lower) in itertools.pairwise(self.curve):
            if lower <= loss < higher:
                return before + (after - before) * (higher - loss) / (higher - lower)
        return None


def windows(text: np.ndarray, rng: np.random.Generator, number: int) -> Tensor:
    starts = rng.integers(0, len(text) - SIZES.num_tokens, number)
    return torch.from_numpy(np.stack([text[start : start + SIZES.num_tokens] for start in starts]).astype(np.int64))


def batches(text: np.ndarray, seed: int) -> Iterator[Tensor]:
    rng = np.random.default_rng(seed)
    while True:
        yield windows(text, rng, SIZES.batch_size)


def train(way: Way, seed: int, seconds: float) -> Run:
    """Train for so many seconds of CPU time."""
    text, held_out = (np.frombuffer(part, dtype=np.uint8) for part in source_code())
    validation = windows(held_out, np.random.default_rng(0), 64)
    model = SIZES.model(seed).cpu()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.1)
    schedule = KeepSchedule.constant(way.keep_ratio)
    dropper = way.dropper(model, seed)
    curve, steps, spent = [(0.0, validate(model, validation))], 0, 0.0
    with dropper or nullcontext():
        for batch in progress(batches(text, seed), f"seed {seed}, {way.name}, {seconds:.0f} s", keep=False):
            begin, share = time.process_time(), spent / seconds
            if dropper is not None:
                dropper.keep_ratio = schedule(share)
            warm_up = min((steps + 1) / _WARM_UP_STEPS, 1)
            for group in optimizer.param_groups:
                group["lr"] = _LEARNING_RATE * warm_up * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))
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
    all_tokens = steps * SIZES.batch_size * SIZES.num_tokens * SIZES.num_layers
    return Run(curve, steps, all_tokens if dropper is None else dropper.layer_tokens)


@torch.no_grad()
def validate(model: LlamaForCausalLM, ids: Tensor) -> float:
    """Return the loss in nats per byte."""
    model.eval()
    losses = [model(input_ids=part, labels=part).loss.item() for part in ids.split(16)]
    model.train()
    return sum(losses) / len(losses)


def main() -> None:
    parser = BENCHMARK.parser()
    parser.add_argument("--seconds", type=float, default=180.0, help="CPU time of each training")
    add_seeds(parser)
    options = BENCHMARK.start(parser)
    if options.quick:
        options.seconds, options.seeds = 3.0, 1
    torch.set_num_threads(1)

    def run_of(name: str, seed: int) -> dict[str, Any]:
        return dataclasses.asdict(train(WAYS[name], seed, options.seconds))

    runs: dict[str, list[Run]] = {name: [] for name in WAYS}
    for name, seed, measured_run in over_seeds(WAYS, options, run_of):
        run = Run(**measured_run)
        runs[name].append(run)
        show(f"seed {seed}, {name:<14} loss {run.loss:.4f} after {run.steps} steps")

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
    BENCHMARK.publish(measured, options)


if __name__ == "__main__":
    main()
