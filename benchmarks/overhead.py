"""Cost of watching: training steps of a transformers Llama under Lightning, with the monitor and without.

    python -m benchmarks.overhead [--quick] [--out PATH]

Four ways of watching are compared with the same training without: the monitor at its defaults, the monitor at every
step, the same on a narrower model, and eager attention with output_attentions=True and the entropy at every step. Steps
with and without take turns inside one training, in the order A B B A. A cycle has as many steps as hold all of
observing, transferring, judging and logging to TensorBoard. Peak memory is that of one forward and backward.
"""

import dataclasses
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM

from attnwatch import AttentionRecorder, AttnwatchWarning
from attnwatch.lightning import AttentionMonitor
from benchmarks.common import Benchmark, Estimate, progress, quiet_libraries, show, wait_for_gpu
from benchmarks.memory import peak_extra_bytes
from benchmarks.models import Sizes

BENCHMARK = Benchmark(
    "overhead", __doc__, duration="about 8 minutes on 2 CPU cores", quick="a tiny model and 2 cycles each"
)
GOALS = {"monitor_default": 1.01, "monitor_every_step": 1.03}
_WARM_UP_STEPS = 10

# As wide as the smallest Llamas that people train (SmolLM-135M).
FULL = Sizes(
    hidden_size=576, num_layers=4, num_heads=9, num_key_value_heads=3, vocab_size=4096, batch_size=1, num_tokens=512
)
# Narrower than any that is used: the narrower a model, the larger the share of watching.
NARROW = dataclasses.replace(FULL, hidden_size=256, num_heads=8, num_key_value_heads=4, batch_size=2)
QUICK = Sizes(
    hidden_size=64, num_layers=2, num_heads=4, num_key_value_heads=2, vocab_size=512, batch_size=2, num_tokens=128
)


class Llama(pl.LightningModule):
    """A Llama whose steps return and log the entropy of their attention weights while `materialise` is True."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.model = sizes.model()
        self.materialise = False

    def training_step(self, batch: Tensor) -> Tensor:
        if not self.materialise:
            return self.model(input_ids=batch, labels=batch).loss
        loss, entropies = materialised_step(self.model, batch)
        self.log_dict({f"entropy/{layer}": entropy for layer, entropy in enumerate(entropies)})
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def materialised_step(model: LlamaForCausalLM, batch: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the loss and the mean entropy of each layer, from the attention weights that eager attention returns."""
    model.config._attn_implementation = "eager"
    try:
        output = model(input_ids=batch, labels=batch, output_attentions=True)
    finally:
        model.config._attn_implementation = "sdpa"
    with torch.no_grad():
        return output.loss, [torch.special.entr(weights).sum(-1).mean() for weights in output.attentions]


class SwitchableMonitor(AttentionMonitor):
    """A monitor that can be taken off and put on again during a training."""

    is_on = True

    def switch(self, on: bool) -> None:
        if on and not self.is_on:
            self.part._recorder.attach()
        elif self.is_on and not on:
            self.part._recorder.close()
        self.is_on = on

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        if self.is_on:
            super().on_train_batch_start(*args, **kwargs)

    def on_before_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        if self.is_on:
            super().on_before_optimizer_step(*args, **kwargs)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self.is_on:
            super().on_train_batch_end(*args, **kwargs)


class Moments:
    """Moments of a training that never waits for a GPU; there, a moment is when the work asked for so far was done."""

    def __init__(self) -> None:
        self._marks: list[Any] = []

    def mark(self) -> None:
        if torch.cuda.is_available():
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds_between(self) -> list[float]:
        """Return the seconds from each moment to the next one."""
        wait_for_gpu()
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if torch.cuda.is_available():
            return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]
        return [end - begin for begin, end in pairs]


Plan = tuple[int, int]
"""(Steps with, and as many without, that hold all that the monitor does now and then; number of such cycles, >= 2.)"""


class StepTimer(pl.Callback):
    """Switches between steps with and without, and times them. First in the list of callbacks.

    Args:
        plan: which steps are measured; the steps of a cycle are an even number.
        switch: called with True if the next step is one with.
        label: name of the measurement, shown with its progress.
    """

    def __init__(self, plan: Plan, switch: Callable[[bool], None], label: str):
        steps_per_cycle, num_cycles = plan
        self._steps = [True, False, False, True] * (steps_per_cycle * num_cycles // 2)
        self._shape = num_cycles, steps_per_cycle
        self._switch = switch
        self._moments = Moments()
        self.num_steps = _WARM_UP_STEPS + len(self._steps) + 1
        self._progress = iter(progress(range(self.num_steps), label))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        next(self._progress)
        step = batch_idx - _WARM_UP_STEPS
        self._moments.mark()
        if step < len(self._steps):
            self._switch(self._steps[step] if step >= 0 else bool(step % 2))
        self._moments.mark()  # after the switch, which no training has

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        next(self._progress, None)  # closes the bar

    @property
    def ratio(self) -> Estimate:
        """Step time with / without: the median over cycles for each step of the cycle, then the mean over its steps.

        So a step that something else on the machine has slowed down does not count, and the steps of a cycle that
        observe, transfer and log do, with their share. The interval is a bootstrap of the residuals of all steps.
        """
        ratios = self._seconds(True) / self._seconds(False)
        cycles = len(ratios)
        centre = np.median(ratios, axis=0)
        residuals = (ratios - centre).ravel() * np.sqrt(cycles / (cycles - 1))
        drawn = np.random.default_rng(0).choice(residuals, (2000, *ratios.shape))
        resampled = np.median(centre + drawn, axis=1).mean(1)
        low, high = np.percentile(resampled, [2.5, 97.5])
        return Estimate(float(centre.mean()), float(low), float(high))

    @property
    def seconds_per_step(self) -> float:
        """Median of the steps without."""
        return float(np.median(self._seconds(False)))

    def _seconds(self, with_it: bool) -> np.ndarray:
        """Return the seconds [cycles, steps] of one sort of steps; entries of both sorts are neighbours in time."""
        taken = self._moments.seconds_between()[2 * _WARM_UP_STEPS + 1 :: 2]
        sort = [seconds for seconds, kind in zip(taken, self._steps, strict=True) if kind is with_it]
        return np.array(sort).reshape(self._shape)


def measure(way: str, sizes: Sizes, monitor: SwitchableMonitor | None, plan: Plan) -> StepTimer:
    """Run one training; `monitor` None measures the materialised weights."""
    module = Llama(sizes)
    switch = monitor.switch if monitor else lambda on: setattr(module, "materialise", on)
    timer = StepTimer(plan, switch, way)
    batches = [sizes.batch() for _ in range(timer.num_steps)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=timer.num_steps,
            logger=TensorBoardLogger(folder),
            precision=sizes.precision,
            callbacks=[timer, *([monitor] if monitor else [])],
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(module, DataLoader(batches, batch_size=None))
    goal = GOALS.get(way)
    verdict = "" if goal is None else f"<= {goal}: {'reached' if timer.ratio.median <= goal else 'missed'}"
    show(f"{way:<26}{timer.ratio!s:<42}{verdict}")
    return timer


def prepare_step(sizes: Sizes, way: str) -> Callable[[], None]:
    """Return one forward and backward, watched in some way: for `peak_extra_bytes`."""
    model, batch = sizes.model(), sizes.batch()
    model(input_ids=batch[:1, :8], labels=batch[:1, :8]).loss.backward()
    if way == "materialised":
        return lambda: materialised_step(model, batch)[0].backward()
    if way == "unwatched":
        return lambda: model(input_ids=batch, labels=batch).loss.backward()
    recorder = AttentionRecorder(model)

    def watched() -> None:
        with recorder.step(0):
            model(input_ids=batch, labels=batch).loss.backward()

    return watched


def main() -> None:
    options = BENCHMARK.start()
    sizes, narrow = (QUICK, QUICK) if options.quick else (FULL, NARROW)
    quiet_libraries()
    warnings.filterwarnings("ignore", category=AttnwatchWarning)  # on random tokens attention stays uniform

    ways = {
        # Every other step is one with the monitor: at every 20th, it observes every 10th of those, as by default.
        "monitor_default": (sizes, SwitchableMonitor(every_n_steps=20, flush_every=5), (50, 2)),
        "monitor_every_step": (sizes, SwitchableMonitor(every_n_steps=1), (50, 2)),
        "monitor_every_step_narrow": (narrow, SwitchableMonitor(every_n_steps=1), (50, 2)),
        "materialised_every_step": (sizes, None, (10, 4)),
    }
    measured: dict[str, Any] = {"sizes": dataclasses.asdict(sizes), "narrow_sizes": dataclasses.asdict(narrow)}
    measured |= {"ratio": {}, "seconds_per_step": {}, "extra_peak_mib": {}}
    print(f"{'':<26}{'step time with / without, 95% interval':<42}goal")
    for way, (sizes_here, monitor, plan) in ways.items():
        timer = measure(way, sizes_here, monitor, (plan[0], 2) if options.quick else plan)
        measured["ratio"][way] = timer.ratio.to_json()
        measured["seconds_per_step"][way] = timer.seconds_per_step
    peaks = {
        way: peak_extra_bytes(prepare_step, sizes, way)
        for way in progress(("unwatched", "watched", "materialised"), "peak memory")
    }
    for way in ("watched", "materialised"):
        measured["extra_peak_mib"][way] = (peaks[way] - peaks["unwatched"]) / 2**20
        show(f"extra peak memory of a {way} step: {measured['extra_peak_mib'][way]:.1f} MiB")
    BENCHMARK.publish(measured, options)


if __name__ == "__main__":
    main()
