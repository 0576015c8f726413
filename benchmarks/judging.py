"""Time of a flush whose diagnosis has hundreds of observations of a large model behind it.

    python -m benchmarks.judging [--quick] [--out PATH]

A recorder's buffer is filled with observations of made-up numbers, of 96 layers of 128 heads (`--quick`: 12 of 12), in
the order in which a training delivers them. After every five of them comes what a flush does: the snapshot, the
diagnosis, and the numbers for dashboards. Times are those of the process on the CPU, so that other work on the machine
does not count: of the last flushes of a sound run, of one whose risk has been high for long, and of one whose attention
is frozen; and of the first flush after a history was restored from a checkpoint.
"""

import statistics
import time

import numpy as np

from attnwatch import diagnose
from attnwatch.dashboard import run_scalars
from attnwatch.recorder.buffer import HistoryBuffer
from attnwatch.recorder.lazy import Observation
from attnwatch.statistics import Statistic
from benchmarks.common import Benchmark, progress, show

BENCHMARK = Benchmark("judging", __doc__, duration="about 3 minutes on 2 CPU cores", quick="a model of 12 layers")
OBSERVATIONS, PER_FLUSH, EVERY, FLUSHES = 512, 5, 10, 12
# More observations than the buffer holds: old ones are thinned at each flush, as in any long run.
MADE = OBSERVATIONS + 100
KINDS = ("sound", "high risk", "frozen")
ORDINARY = {
    "entropy": 2.0,
    "normalized_entropy": 0.6,
    "normalized_entropy_stderr": 0.01,
    "max_entropy": 4.0,
    "max_logit": 12.0,
    "logit_std": 2.0,
    "sink_mass": 0.05,
    "max_weight": 0.3,
    "entropy_without_sink": 2.0,
    "distance": 20.0,
    "content_sensitivity": 0.4,
    "nonfinite": 0.0,
}


def main() -> None:
    options = BENCHMARK.start()
    layers, heads = (12, 12) if options.quick else (96, 128)
    measured = {"observations": OBSERVATIONS, "layers": layers, "heads": heads, "seconds_per_flush": {}}
    for kind in KINDS:
        measured["seconds_per_flush"][kind] = flushes(kind, layers, heads)
        show(f"{kind:<10} {_shown(measured['seconds_per_flush'][kind])}")
    measured["seconds_after_restoring"] = restored(layers, heads)
    show(f"the first after restoring a checkpoint: {measured['seconds_after_restoring']:.3f} s, once")
    BENCHMARK.publish(measured, options)


def flushes(kind: str, layers: int, heads: int) -> dict[str, float]:
    """Return the seconds of the flushes at the end of a run that was judged at each of them."""
    buffer, seconds = HistoryBuffer(_sites(layers), tuple(Statistic.registry), OBSERVATIONS), []
    for number in progress(range(MADE), kind, keep=False):
        buffer.append(_observation(kind, number, layers, heads))
        if number % PER_FLUSH == PER_FLUSH - 1:
            seconds.append(_judge(buffer))
    last = seconds[-FLUSHES:]
    return {"median": statistics.median(last), "largest": max(last), "largest_of_all": max(seconds)}


def restored(layers: int, heads: int) -> float:
    """Return the seconds of the first flush after a resume."""
    buffer, again = (HistoryBuffer(_sites(layers), tuple(Statistic.registry), OBSERVATIONS) for _ in range(2))
    for number in progress(range(MADE), "restored", keep=False):
        buffer.append(_observation("frozen", number, layers, heads))
    again.load_state_dict(buffer.state_dict())
    return _judge(again)


def _judge(buffer: HistoryBuffer) -> float:
    begin = time.process_time()
    history = buffer.history({})
    diagnose(history, total_steps=2 * MADE * EVERY)
    for index in range(-min(PER_FLUSH, len(history)), 0):
        run_scalars(history, index)
    return time.process_time() - begin


def _observation(kind: str, number: int, layers: int, heads: int) -> Observation:
    rng = np.random.default_rng(number)
    values = np.empty((len(Statistic.registry), layers, heads), dtype=np.float32)
    for place, name in enumerate(Statistic.registry):
        values[place] = ORDINARY.get(name, np.nan)
    entropy, logits = list(Statistic.registry).index("normalized_entropy"), list(Statistic.registry).index("max_logit")
    if kind == "frozen":
        values[entropy] += 1e-4 * rng.normal(size=(layers, heads))
    else:
        values[entropy] += 0.01 * rng.normal(size=(layers, heads)) - (0.3 * number / MADE if kind == "sound" else 0.0)
    if kind == "high risk":
        values[logits] = 0.01
    loss = 4.0 - (1.5 * number / MADE if kind != "high risk" else 0.0) + 0.02 * rng.normal()
    return Observation(number * EVERY, values, float(loss))


def _sites(layers: int) -> list[str]:
    return [f"layers.{layer}.attn" for layer in range(layers)]


def _shown(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.3f} s" for name, value in seconds.items())


if __name__ == "__main__":
    main()
