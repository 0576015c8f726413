"""Speed of training steps of a transformers Llama in which tokens are dropped.

    python -m benchmarks.tokens_speed [--quick] [--out PATH]

At keep ratios 0.75, 0.5 and 0.25 in all layers but the first and the last, at 256 and at 1,024 tokens, by each
criterion: the step with all tokens against that with the kept ones, paired in one process, beside its ceiling
1 / (1 - g·(1 - keep)). g is the share of the whole step that these layers take forward and backward, measured by
leaving them out; the optimizer's work on them stays. Attention is quadratic in the tokens, so that a step may be faster
than this.
"""

import copy
import dataclasses
from functools import partial
from typing import Any

from torch import nn

from attnwatch import TokenCriterion, TokenDropper
from benchmarks.common import Benchmark, median_estimate, show, time_paired
from benchmarks.models import Sizes, Training

BENCHMARK = Benchmark(
    "tokens_speed", __doc__, duration="about 7 minutes on 2 CPU cores", quick="a tiny model and few pairs"
)
GOAL = 0.9
RATIOS = (0.75, 0.5, 0.25)
CRITERIA = tuple(TokenCriterion.registry)
FULL = Sizes(
    hidden_size=384, num_layers=8, num_heads=6, num_key_value_heads=3, vocab_size=4096, batch_size=8, num_tokens=256
)
QUICK = Sizes(
    hidden_size=64, num_layers=4, num_heads=2, num_key_value_heads=1, vocab_size=256, batch_size=4, num_tokens=64
)


def without_middle(training: Training) -> Training:
    """Return a copy that skips the layers in which tokens are dropped; its optimizer works on them all the same."""
    bare = copy.deepcopy(training)
    layers = bare.model.model.layers
    bare.model.model.layers = nn.ModuleList([layers[0], layers[-1]])
    return bare


def measure(sizes: Sizes, seconds: float) -> dict[str, Any]:
    """Measure and show all criteria and ratios at one length of sequences."""
    batch = sizes.batch()
    whole, dropped = (Training(sizes.model(), all_parameters=True) for _ in range(2))
    for training in (whole, dropped):
        training.step(batch)
    paired = partial(time_paired, seconds=seconds, min_pairs=9, num_warmups=1)
    label = f"{sizes.num_tokens} tokens"
    bare = without_middle(whole)
    timing = paired(lambda: bare.step(batch), lambda: whole.step(batch), label=f"{label}, without the layers")
    share, whole_s = 1 - timing.ratio.median, median_estimate(timing.baseline_s).median
    show(f"\n{label}: a step takes {whole_s:.3f} s, the layers in the middle {share:.0%} of it")
    show(f"{'criterion':<12}{'kept':<8}{'times as fast':<26}{'ceiling':<10}share of the ceiling's saving")
    rows = []
    for criterion in TokenCriterion.registry:
        for ratio in RATIOS:
            with TokenDropper(dropped.model, keep_ratio=ratio, criterion=criterion):
                steps = (lambda: whole.step(batch)), (lambda: dropped.step(batch))
                speedup = paired(*steps, label=f"{label}, {criterion} {ratio:.0%}").ratio
            ceiling = 1 / (1 - share * (1 - ratio))
            reached = (1 - 1 / speedup.median) / (share * (1 - ratio))
            rows.append(
                {
                    "criterion": criterion,
                    "keep_ratio": ratio,
                    "speedup": speedup.to_json(),
                    "ceiling": ceiling,
                    "share_of_saving": reached,
                }
            )
            show(f"{criterion:<12}{ratio:<8.0%}{speedup!s:<26}{ceiling:<10.3f}{reached:.0%}")
    return {"num_tokens": sizes.num_tokens, "layers_share": share, "step_s": whole_s, "rows": rows}


def main() -> None:
    options = BENCHMARK.start()
    short = QUICK if options.quick else FULL
    long = dataclasses.replace(short, batch_size=short.batch_size // 4, num_tokens=4 * short.num_tokens)
    by_length = [measure(sizes, seconds=0.2 if options.quick else 12.0) for sizes in (short, long)]
    least = min(row["share_of_saving"] for at in by_length for row in at["rows"] if row["criterion"] == "random")
    verdict = "reached" if least >= GOAL else "missed"
    print(f"\nof the ceiling's saving, at random: at least {least:.0%} (>= {GOAL:.0%}: {verdict})")
    sizes = {**dataclasses.asdict(short), "tokens_per_batch": short.tokens_per_batch}
    BENCHMARK.publish({"sizes": sizes, "measured": by_length}, options)


if __name__ == "__main__":
    main()
