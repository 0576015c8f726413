"""Speed of training steps of a transformers Mistral after heads were removed.

    python -m benchmarks.pruning_speed [--quick] [--out PATH]

After 25, 50 and 75 % of the heads were removed, at 128 and at 1,024 tokens: the step of the pruned model against that
of a model built as small from the start, and of the dense model against the pruned one, beside its ceiling
1 / (1 - s·f): s is the share of heads that is gone, f the share of the dense step that attention takes with its
projections, measured by removing all heads but one. All timings are paired in one process. The time of a
cut, and that of reading the heads' importance off the gradients, are given in dense steps.
"""

import copy
import dataclasses
from typing import Any

import torch

from attnwatch import HeadImportance, PruningPlan, prune_heads, savings
from benchmarks.common import Benchmark, PairedTiming, median_estimate, seconds_of, show, time_paired
from benchmarks.models import Sizes, Training

BENCHMARK = Benchmark(
    "pruning_speed", __doc__, duration="about 6 minutes on 2 CPU cores", quick="a tiny model and few pairs"
)
GOAL = 1.02
SHARES = (0.25, 0.5, 0.75)


FULL = Sizes(
    hidden_size=512,
    num_layers=4,
    num_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    vocab_size=4096,
    batch_size=8,
    num_tokens=128,
    family="Mistral",
)
QUICK = dataclasses.replace(FULL, hidden_size=64, num_layers=2, head_dim=8, vocab_size=256, num_tokens=32)


def smaller(sizes: Sizes, share: float) -> Sizes:
    """Return sizes without a share of the heads."""
    heads, key_value_heads = (round((1 - share) * each) for each in (sizes.num_heads, sizes.num_key_value_heads))
    return dataclasses.replace(sizes, num_heads=heads, num_key_value_heads=key_value_heads)


def pruned_by(training: Training, share: float) -> tuple[Training, float]:
    """Return a copy that has lost this share of every layer's heads, and the seconds that the cut took."""
    pruned = copy.deepcopy(training)
    config = training.model.config
    heads = range(round(share * config.num_attention_heads))
    removed = dict.fromkeys(range(config.num_hidden_layers), heads)
    return pruned, seconds_of(lambda: prune_heads(pruned.model, removed, optimizers=[pruned.optimizer]))


def without_attention(training: Training) -> tuple[Training, float]:
    """Return a copy that has one head left, and the share of heads that it has lost."""
    pruned = copy.deepcopy(training)
    heads, layers = training.model.config.num_attention_heads, training.model.config.num_hidden_layers
    removed: dict[int, range] = {layer: range(heads) for layer in range(layers)} | {0: range(heads - 1)}
    prune_heads(pruned.model, removed, optimizers=[pruned.optimizer])
    return pruned, 1 - 1 / (heads * layers)


def measure(sizes: Sizes, seconds: float) -> dict[str, Any]:
    """Measure and show everything at one length of sequences."""
    batch, num_tokens = sizes.batch(), sizes.num_tokens
    dense = Training(sizes.model())
    dense.step(batch)

    def paired(label: str, candidate: Training, baseline: Training) -> PairedTiming:
        steps = (lambda: candidate.step(batch)), (lambda: baseline.step(batch))
        return time_paired(*steps, label=f"{num_tokens} tokens, {label}", seconds=seconds)

    bare, share_of_bare = without_attention(dense)
    timing = paired("without attention", bare, dense)
    attention_share = (1 - timing.ratio.median) / share_of_bare
    dense_s = median_estimate(timing.baseline_s).median
    measured: dict[str, Any] = {"num_tokens": num_tokens, "attention_share": attention_share, "dense_step_s": dense_s}
    show(f"\n{num_tokens} tokens: a dense step takes {dense_s:.3f} s, attention's share is {attention_share:.0%}")
    show(f"{'heads gone':<12}{'pruned / built small':<26}{'speed-up over dense':<26}{'ceiling':<10}a cut, in steps")
    measured["shares"] = []
    for share in SHARES:
        pruned, cut_s = pruned_by(dense, share)
        against_small = paired(f"{share:.0%} against small", pruned, Training(smaller(sizes, share).model())).ratio
        speedup = paired(f"{share:.0%} against dense", dense, pruned).ratio
        ceiling = 1 / (1 - share * attention_share)
        plan = PruningPlan.of(pruned.model)
        row = {
            "share": share,
            "pruned_over_small": against_small.to_json(),
            "speedup": speedup.to_json(),
            "ceiling": ceiling,
            "ceiling_by_flops": savings(dense.model, plan, num_tokens=num_tokens).speed_ceiling,
            "cut_steps": cut_s / dense_s,
        }
        measured["shares"].append(row)
        show(f"{share:<12.0%}{against_small!s:<26}{speedup!s:<26}{ceiling:<10.3f}{row['cut_steps']:.3f}")
    measured["importance_steps"] = _importance(dense, batch) / dense_s
    show(f"importance of all heads, read off the gradients: {measured['importance_steps']:.4f} steps")
    return measured


def _importance(training: Training, batch: torch.Tensor) -> float:
    """Return the median seconds of an update."""
    importance = HeadImportance(training.model)
    training.step(batch)
    return median_estimate([seconds_of(importance.update) for _ in range(20)]).median


def main() -> None:
    options = BENCHMARK.start()
    short = QUICK if options.quick else FULL
    long = dataclasses.replace(short, batch_size=short.batch_size // 8, num_tokens=8 * short.num_tokens)
    by_length = [measure(sizes, seconds=0.2 if options.quick else 20.0) for sizes in (short, long)]
    worst = max(row["pruned_over_small"]["median"] for at in by_length for row in at["shares"])
    print(f"\npruned against built small: at most {worst:.3f} (<= {GOAL}: {'reached' if worst <= GOAL else 'missed'})")
    sizes = {**dataclasses.asdict(short), "tokens_per_batch": short.tokens_per_batch}
    BENCHMARK.publish({"sizes": sizes, "measured": by_length}, options)


if __name__ == "__main__":
    main()
