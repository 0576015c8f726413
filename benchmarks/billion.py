"""Cost of watching, and gain of pruning and dropping, on a Llama of 1.1 billion parameters. Needs a GPU.

    python -m benchmarks.billion [--quick] [--out PATH]

The model has the sizes of TinyLlama, in bfloat16; a step takes one sequence of 4,096 tokens. Watching is measured as in
`benchmarks.overhead`, under Lightning with TensorBoard logging; beside it the memory of attention weights of all
layers, which is what people look at today. Speed-ups are of steps of a plain loop, paired in one process, each beside
its ceiling: after half of every layer's heads were removed, and with half of the tokens dropped in all layers but the
first and the last.
"""

import dataclasses
import gc
import warnings
from collections.abc import Callable
from typing import Any

import torch

from attnwatch import AttentionRecorder, AttnwatchWarning, TokenDropper
from benchmarks.common import Benchmark, Estimate, progress, quiet_libraries, show, time_paired
from benchmarks.models import Sizes, Training
from benchmarks.overhead import Plan, SwitchableMonitor, materialised_step, measure
from benchmarks.pruning_speed import pruned_by, without_attention
from benchmarks.tokens_speed import without_middle

BENCHMARK = Benchmark("billion", __doc__, duration="about 6 minutes on an H100", quick="a tiny model and few steps")
BILLION = Sizes(
    hidden_size=2048,
    num_layers=22,
    num_heads=32,
    num_key_value_heads=4,
    vocab_size=32_000,
    batch_size=1,
    num_tokens=4096,
    intermediate_size=5632,
    precision="bf16-true",
)
QUICK = Sizes(
    hidden_size=64, num_layers=4, num_heads=4, num_key_value_heads=2, vocab_size=512, batch_size=1, num_tokens=256
)
SHARE = 0.5
WAYS: dict[str, tuple[dict[str, int], Plan]] = {
    "monitor_default": ({"every_n_steps": 20, "flush_every": 5}, (50, 3)),
    "monitor_every_step": ({"every_n_steps": 1}, (50, 2)),
}


def watching(sizes: Sizes, *, quick: bool) -> dict[str, Any]:
    """Return the step time with the monitor over that without, as in `benchmarks.overhead`."""
    measured: dict[str, Any] = {"ratio": {}, "seconds_per_step": {}}
    for way, (options, plan) in WAYS.items():
        timer = measure(way, sizes, SwitchableMonitor(**options), (10, 2) if quick else plan)
        measured["ratio"][way] = timer.ratio.to_json()
        measured["seconds_per_step"][way] = timer.seconds_per_step
        _free()
    return measured


def memory(sizes: Sizes) -> dict[str, float | None]:
    """Return the peak GiB of one forward and backward in each way; None: out of memory."""
    training, batch = _training(sizes)
    recorder = AttentionRecorder(training.model)

    def watched() -> None:
        with recorder.step(0):
            training.step(batch)

    ways: dict[str, Callable[[], object]] = {
        "unwatched": lambda: training.step(batch),
        "watched": watched,
        "materialised": lambda: materialised_step(training.model, batch)[0].backward(),
    }
    training.step(batch)
    peaks = {name: _peak_gib(step) for name, step in progress(ways.items(), "peak memory")}
    show("peak memory: " + ", ".join(f"{name} {_gib(peak)}" for name, peak in peaks.items()))
    return peaks


def speed_ups(sizes: Sizes, seconds: float) -> dict[str, dict[str, Any]]:
    """Return how many times as fast a step gets without half of the heads and without half of the tokens."""
    whole, batch = _training(sizes)
    whole.step(batch)

    def paired(label: str, candidate: Training, baseline: Training) -> Estimate:
        steps = (lambda: candidate.step(batch)), (lambda: baseline.step(batch))
        return time_paired(*steps, label=label, seconds=seconds, min_pairs=7).ratio

    bare, share_of_bare = without_attention(whole)
    attention_share = (1 - paired("without attention", bare, whole).median) / share_of_bare
    pruned, _ = pruned_by(whole, SHARE)
    heads = _gain("half of the heads gone", paired("pruned", whole, pruned), attention_share)
    del bare, pruned
    _free()
    layers_share = 1 - paired("without the layers", without_middle(whole), whole).median
    dropping, _ = _training(sizes)
    with TokenDropper(dropping.model, keep_ratio=SHARE):
        tokens = _gain("half of the tokens dropped", paired("dropped", whole, dropping), layers_share)
    return {"heads": heads, "tokens": tokens}


def _gain(name: str, speedup: Estimate, share_of_step: float) -> dict[str, Any]:
    """Show and return a speed-up beside its ceiling, from the share of the step of which half is saved."""
    ceiling = 1 / (1 - SHARE * share_of_step)
    show(f"{name}: {speedup} times as fast, ceiling {ceiling:.3f}")
    return {"speedup": speedup.to_json(), "ceiling": ceiling}


def _training(sizes: Sizes) -> tuple[Training, torch.Tensor]:
    dtype = torch.bfloat16 if sizes.precision.startswith("bf16") else torch.float32
    training = Training(sizes.model().to(dtype), all_parameters=True)
    return training, sizes.batch()


def _peak_gib(step: Callable[[], object]) -> float | None:
    _free()
    torch.cuda.reset_peak_memory_stats()
    try:
        step()
    except torch.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated() / 2**30


def _gib(peak: float | None) -> str:
    return "out of memory" if peak is None else f"{peak:.1f} GiB"


def _free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    options = BENCHMARK.start()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.billion needs a CUDA device; benchmarks.overhead runs anywhere.")
    quiet_libraries()
    warnings.filterwarnings("ignore", category=AttnwatchWarning)  # on random tokens attention stays uniform
    sizes = QUICK if options.quick else BILLION
    parameters = sum(parameter.numel() for parameter in sizes.model().parameters())
    print(f"{parameters / 1e9:.2f} billion parameters, {sizes.num_tokens:,} tokens a step")
    _free()
    measured = {
        "sizes": dataclasses.asdict(sizes),
        "parameters": parameters,
        "speed": speed_ups(sizes, 1.0 if options.quick else 8.0),
        "watching": watching(sizes, quick=options.quick),
        "peak_gib": memory(sizes),
    }
    BENCHMARK.publish(measured, options)


if __name__ == "__main__":
    main()
