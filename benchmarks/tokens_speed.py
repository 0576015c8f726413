"""What dropping tokens does to the time of a training step of a transformers Llama.

    python -m benchmarks.tokens_speed [--quick] [--out PATH]

At keep ratios 0.75, 0.5 and 0.25 in all layers but the first and the last, at 256 and at 1,024 tokens, by each
criterion: the step with all tokens against that with the kept ones, paired in one process, beside its ceiling
1 / (1 - g·(1 - keep)). g is the share of the whole step that these layers take forward and backward, measured by
leaving them out; the optimizer's work on them stays. Attention is quadratic in the tokens, so that a step may be faster
than this. Last line of the output: JSON.
"""

import argparse
import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from attnwatch import TokenCriterion, TokenDropper
from benchmarks.common import Training, median_estimate, publish, results_path, time_paired

GOAL = 0.9
RATIOS = (0.75, 0.5, 0.25)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the model and its batches."""

    hidden_size: int = 384
    num_layers: int = 8
    num_heads: int = 6
    vocab_size: int = 4096
    tokens_per_batch: int = 2048

    def model(self) -> LlamaForCausalLM:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=8 * self.hidden_size // 3,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_heads // 2,
            pad_token_id=None,
        )
        return LlamaForCausalLM(config).train()

    def batch(self, num_tokens: int) -> torch.Tensor:
        return torch.randint(self.vocab_size, (self.tokens_per_batch // num_tokens, num_tokens))


QUICK = Sizes(hidden_size=64, num_layers=4, num_heads=2, vocab_size=256, tokens_per_batch=256)


def without_middle(training: Training) -> Training:
    """A copy that skips the layers in which tokens are dropped, and whose optimizer works on them all the same."""
    bare = copy.deepcopy(training)
    layers = bare.model.model.layers
    bare.model.model.layers = nn.ModuleList([layers[0], layers[-1]])
    return bare


def measure(sizes: Sizes, num_tokens: int, seconds: float) -> dict[str, Any]:
    batch = sizes.batch(num_tokens)
    whole, dropped = (Training(sizes.model(), all_parameters=True) for _ in range(2))
    for training in (whole, dropped):
        training.step(batch)
    bare = without_middle(whole)
    timing = time_paired(lambda: bare.step(batch), lambda: whole.step(batch), seconds=seconds)
    share, whole_s = 1 - timing.ratio.median, median_estimate(timing.baseline_s).median
    print(f"\n{num_tokens} tokens: a step takes {whole_s:.3f} s, the layers in the middle {share:.0%} of it")
    print(f"{'criterion':<12}{'kept':<8}{'times as fast':<26}{'ceiling':<10}share of the ceiling's saving")
    rows = []
    for criterion in TokenCriterion.registry:
        for ratio in RATIOS:
            with TokenDropper(dropped.model, keep_ratio=ratio, criterion=criterion):
                speedup = time_paired(lambda: whole.step(batch), lambda: dropped.step(batch), seconds=seconds).ratio
            ceiling = 1 / (1 - share * (1 - ratio))
            reached = (1 - 1 / speedup.median) / (share * (1 - ratio))
            rows.append(
                {
                    "criterion": criterion,
                    "keep_ratio": ratio,
                    "speedup": dataclasses.asdict(speedup),
                    "ceiling": ceiling,
                    "share_of_saving": reached,
                }
            )
            print(f"{criterion:<12}{ratio:<8.0%}{speedup!s:<26}{ceiling:<10.3f}{reached:.0%}", flush=True)
    return {"num_tokens": num_tokens, "layers_share": share, "step_s": whole_s, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few pairs: does it run?")
    parser.add_argument("--out", type=Path, help="where the JSON goes (default: benchmarks/results, unless --quick)")
    options = parser.parse_args()
    sizes = QUICK if options.quick else Sizes()
    lengths = (64, 128) if options.quick else (256, 1024)
    by_length = [measure(sizes, length, seconds=0.2 if options.quick else 15.0) for length in lengths]
    least = min(row["share_of_saving"] for at in by_length for row in at["rows"] if row["criterion"] == "random")
    verdict = "reached" if least >= GOAL else "missed"
    print(f"\nof the ceiling's saving, at random: at least {least:.0%} (>= {GOAL:.0%}: {verdict})")
    measured = {"sizes": dataclasses.asdict(sizes), "measured": by_length}
    publish("tokens_speed", measured, options.out or (None if options.quick else results_path("tokens_speed")))


if __name__ == "__main__":
    main()
