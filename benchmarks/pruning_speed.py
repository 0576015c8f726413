"""What removing heads does to the time of a training step of a transformers Mistral.

    python -m benchmarks.pruning_speed [--quick] [--out PATH]

After 25, 50 and 75 % of the heads were removed, at 128 and at 1,024 tokens: the step of the pruned model against that
of a model built as small from the start, and of the dense model against the pruned one, beside its ceiling
1 / (1 - s·f): s is the share of heads that is gone, f the share of the dense step that attention takes with its
projections, measured by removing all heads but one. All timings are paired in one process. Also what a cut takes, and
what reading the heads' importance off the gradients takes, in dense steps. Last line of the output: JSON.
"""

import argparse
import copy
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import MistralConfig, MistralForCausalLM

from attnwatch import HeadImportance, PruningPlan, prune_heads, savings
from benchmarks.common import Training, median_estimate, publish, results_path, time_paired

GOAL = 1.02
SHARES = (0.25, 0.5, 0.75)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the model and its batches."""

    hidden_size: int = 512
    num_layers: int = 4
    num_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 64
    vocab_size: int = 4096
    tokens_per_batch: int = 1024

    def model(self, share: float = 0.0) -> MistralForCausalLM:
        """With a share of its heads missing from the start."""
        torch.manual_seed(0)
        config = MistralConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=8 * self.hidden_size // 3,
            num_hidden_layers=self.num_layers,
            num_attention_heads=round((1 - share) * self.num_heads),
            num_key_value_heads=round((1 - share) * self.num_key_value_heads),
            head_dim=self.head_dim,
            sliding_window=None,
            pad_token_id=None,
        )
        return MistralForCausalLM(config).train()

    def batch(self, num_tokens: int) -> torch.Tensor:
        return torch.randint(self.vocab_size, (self.tokens_per_batch // num_tokens, num_tokens))


QUICK = Sizes(hidden_size=64, num_layers=2, head_dim=8, vocab_size=256, tokens_per_batch=256)


def pruned_by(training: Training, share: float) -> tuple[Training, float]:
    """A copy that has lost this share of every layer's heads, and the seconds that the cut took."""
    pruned = copy.deepcopy(training)
    config = training.model.config
    heads = range(round(share * config.num_attention_heads))
    begin = time.perf_counter()
    prune_heads(pruned.model, dict.fromkeys(range(config.num_hidden_layers), heads), optimizers=[pruned.optimizer])
    return pruned, time.perf_counter() - begin


def without_attention(training: Training) -> tuple[Training, float]:
    """A copy that has one head left, and the share of heads that it has lost."""
    pruned = copy.deepcopy(training)
    heads, layers = training.model.config.num_attention_heads, training.model.config.num_hidden_layers
    removed: dict[int, range] = {layer: range(heads) for layer in range(layers)} | {0: range(heads - 1)}
    prune_heads(pruned.model, removed, optimizers=[pruned.optimizer])
    return pruned, 1 - 1 / (heads * layers)


def measure(sizes: Sizes, num_tokens: int, seconds: float) -> dict[str, Any]:
    batch = sizes.batch(num_tokens)
    dense = Training(sizes.model())
    dense.step(batch)

    def paired(candidate: Training, baseline: Training) -> Any:
        return time_paired(lambda: candidate.step(batch), lambda: baseline.step(batch), seconds=seconds)

    bare, share_of_bare = without_attention(dense)
    timing = paired(bare, dense)
    attention_share = (1 - timing.ratio.median) / share_of_bare
    dense_s = median_estimate(timing.baseline_s).median
    measured: dict[str, Any] = {"num_tokens": num_tokens, "attention_share": attention_share, "dense_step_s": dense_s}
    print(f"\n{num_tokens} tokens: a dense step takes {dense_s:.3f} s, attention's share is {attention_share:.0%}")
    print(f"{'heads gone':<12}{'pruned / built small':<26}{'speed-up over dense':<26}{'ceiling':<10}a cut, in steps")
    measured["shares"] = []
    for share in SHARES:
        pruned, cut_s = pruned_by(dense, share)
        against_small = paired(pruned, Training(sizes.model(share))).ratio
        speedup = paired(dense, pruned).ratio
        ceiling = 1 / (1 - share * attention_share)
        plan = PruningPlan.of(pruned.model)
        row = {
            "share": share,
            "pruned_over_small": dataclasses.asdict(against_small),
            "speedup": dataclasses.asdict(speedup),
            "ceiling": ceiling,
            "ceiling_by_flops": savings(dense.model, plan, num_tokens=num_tokens).speed_ceiling,
            "cut_steps": cut_s / dense_s,
        }
        measured["shares"].append(row)
        print(f"{share:<12.0%}{against_small!s:<26}{speedup!s:<26}{ceiling:<10.3f}{row['cut_steps']:.3f}")
    measured["importance_steps"] = _importance(dense, batch) / dense_s
    print(f"importance of all heads, read off the gradients: {measured['importance_steps']:.4f} steps")
    return measured


def _importance(training: Training, batch: torch.Tensor) -> float:
    """Median seconds of an update."""
    importance = HeadImportance(training.model)
    training.step(batch)
    return median_estimate([_seconds(importance.update) for _ in range(20)]).median


def _seconds(function: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few pairs: does it run?")
    parser.add_argument("--out", type=Path, help="where the JSON goes (default: benchmarks/results, unless --quick)")
    options = parser.parse_args()
    sizes = QUICK if options.quick else Sizes()
    lengths = (32, 64) if options.quick else (128, 1024)
    by_length = [measure(sizes, length, seconds=0.2 if options.quick else 20.0) for length in lengths]
    worst = max(row["pruned_over_small"]["median"] for at in by_length for row in at["shares"])
    print(f"\npruned against built small: at most {worst:.3f} (<= {GOAL}: {'reached' if worst <= GOAL else 'missed'})")
    measured = {"sizes": dataclasses.asdict(sizes), "measured": by_length}
    publish("pruning_speed", measured, options.out or (None if options.quick else results_path("pruning_speed")))


if __name__ == "__main__":
    main()
