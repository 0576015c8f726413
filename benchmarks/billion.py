"""What watching costs, and pruning and dropping gain, on a Llama of 1.1 billion parameters. Needs a GPU.

    python -m benchmarks.billion [--quick] [--out PATH]

The model has the sizes of TinyLlama, in bfloat16; a step takes one sequence of 4,096 tokens. Watching is measured as in
`benchmarks.overhead`, under Lightning with TensorBoard logging; beside it the memory of attention weights of all
layers, which is what people look at today. Speed-ups are of steps of a plain loop, paired in one process, each beside
its ceiling: after half of every layer's heads were removed, and with half of the tokens dropped in all layers but the
first and the last. Last line of the output: JSON.
"""

import argparse
import dataclasses
import gc
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from attnwatch import AttentionRecorder, AttnwatchWarning, TokenDropper
from benchmarks.common import Estimate, Training, publish, results_path, time_paired
from benchmarks.overhead import GOALS, Sizes, SwitchableMonitor, materialised_step, measure
from benchmarks.pruning_speed import pruned_by, without_attention
from benchmarks.tokens_speed import without_middle

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
# Cycles as in `benchmarks.overhead`: (steps that hold all that the monitor does now and then, how many such cycles).
WAYS: dict[str, tuple[dict[str, int], tuple[int, int]]] = {
    "monitor_default": ({"every_n_steps": 20, "flush_every": 5}, (50, 3)),
    "monitor_every_step": ({"every_n_steps": 1}, (50, 2)),
}


def watching(sizes: Sizes, *, quick: bool) -> dict[str, Any]:
    measured: dict[str, Any] = {"ratio": {}, "seconds_per_step": {}}
    for way, (options, (steps, cycles)) in WAYS.items():
        with tempfile.TemporaryDirectory() as out:
            timer = measure(sizes, SwitchableMonitor(**options), (steps, 1 if quick else cycles), Path(out))
        measured["ratio"][way] = dataclasses.asdict(timer.ratio)
        measured["seconds_per_step"][way] = timer.seconds_per_step
        verdict = "reached" if timer.ratio.median <= GOALS[way] else "missed"
        print(f"{way:<22}{timer.ratio!s:<30}<= {GOALS[way]}: {verdict}", flush=True)
        _free()
    return measured


def memory(sizes: Sizes) -> dict[str, float | None]:
    """Peak GiB of one forward and backward; None: out of memory."""
    training, batch = _training(sizes)
    recorder = AttentionRecorder(training.model)

    def watched() -> None:
        with recorder.step(0):
            training.step(batch)

    ways = {
        "unwatched": lambda: training.step(batch),
        "watched": watched,
        "materialised": lambda: materialised_step(training.model, batch)[0].backward(),
    }
    training.step(batch)
    peaks = {name: _peak_gib(step) for name, step in ways.items()}
    print("peak memory: " + ", ".join(f"{name} {_gib(peak)}" for name, peak in peaks.items()), flush=True)
    return peaks


def speed_ups(sizes: Sizes, seconds: float) -> dict[str, dict[str, Any]]:
    whole, batch = _training(sizes)
    whole.step(batch)

    def paired(candidate: Training, baseline: Training) -> Estimate:
        return time_paired(
            lambda: candidate.step(batch), lambda: baseline.step(batch), seconds=seconds, min_pairs=7
        ).ratio

    bare, share_of_bare = without_attention(whole)
    attention_share = (1 - paired(bare, whole).median) / share_of_bare
    pruned, _ = pruned_by(whole, SHARE)
    heads = {"speedup": paired(whole, pruned), "ceiling": 1 / (1 - SHARE * attention_share)}
    del bare, pruned
    _free()
    layers_share = 1 - paired(without_middle(whole), whole).median
    dropping, _ = _training(sizes)
    with TokenDropper(dropping.model, keep_ratio=SHARE):
        tokens = {"speedup": paired(whole, dropping), "ceiling": 1 / (1 - SHARE * layers_share)}
    for name, measured in (("half of the heads gone", heads), ("half of the tokens dropped", tokens)):
        print(f"{name}: {measured['speedup']} times as fast, ceiling {measured['ceiling']:.3f}", flush=True)
    return {
        name: {**measured, "speedup": dataclasses.asdict(measured["speedup"])}
        for name, measured in (("heads", heads), ("tokens", tokens))
    }


def _training(sizes: Sizes) -> tuple[Training, torch.Tensor]:
    dtype = torch.bfloat16 if sizes.precision.startswith("bf16") else torch.float32
    training = Training(sizes.model().to(dtype), all_parameters=True)
    return training, sizes.batch().to(training.model.device)


def _peak_gib(step: Callable[[], None]) -> float | None:
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few steps: does it run?")
    parser.add_argument("--out", type=Path, help="where the JSON goes (default: benchmarks/results, unless --quick)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.billion needs a CUDA device; benchmarks.overhead runs anywhere.")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
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
    publish("billion", measured, options.out or (None if options.quick else results_path("billion")))


if __name__ == "__main__":
    main()
