"""What watching costs: training steps of a transformers Llama under Lightning, with the monitor and without.

    python -m benchmarks.overhead [--quick] [--out PATH]

Compared with the same training without: the monitor at its defaults, the monitor at every step (also on a narrower
model), and what people do today (eager attention with output_attentions=True, entropy at every step). Steps with and
without take turns inside one training, in the order A B B A. A cycle is as many steps as hold all of observing,
transferring, judging and logging to TensorBoard. Last line of the output: JSON.
"""

import argparse
import dataclasses
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from attnwatch import AttentionRecorder, AttnwatchWarning
from attnwatch.lightning import AttentionMonitor
from benchmarks.common import Estimate, Moments, peak_extra_bytes, publish, results_path

_WARM_UP_STEPS = 20
GOALS = {"monitor_default": 1.01, "monitor_every_step": 1.03}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the model and its batches. By default as wide as the smallest Llamas that people train (SmolLM-135M)."""

    hidden_size: int = 576
    num_layers: int = 4
    num_heads: int = 9
    num_key_value_heads: int = 3
    vocab_size: int = 4096
    batch_size: int = 2
    num_tokens: int = 512
    intermediate_size: int | None = None
    precision: str = "32-true"

    def model(self) -> LlamaForCausalLM:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size or 8 * self.hidden_size // 3,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_key_value_heads,
            max_position_embeddings=self.num_tokens,
            pad_token_id=None,
        )
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            return LlamaForCausalLM(config).train()

    def batch(self) -> Tensor:
        return torch.randint(self.vocab_size, (self.batch_size, self.num_tokens))


# Narrower than any that is used: the narrower a model, the larger the share of watching.
NARROW = Sizes(hidden_size=256, num_heads=8, num_key_value_heads=4, batch_size=4)
QUICK = Sizes(hidden_size=64, num_layers=2, num_heads=4, num_key_value_heads=2, vocab_size=512, num_tokens=128)


class RandomTokens(Dataset):
    """`length` random sequences of tokens."""

    def __init__(self, sizes: Sizes, length: int):
        self._sizes, self._length = sizes, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        return torch.randint(self._sizes.vocab_size, (self._sizes.num_tokens,), generator=generator)


class Llama(pl.LightningModule):
    """`materialise` is what people do today: eager attention that returns its weights, and their entropy."""

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

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def materialised_step(model: LlamaForCausalLM, batch: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Loss and mean entropy of each layer, from the attention weights that eager attention returns."""
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
            self._recorder.attach()
        elif self.is_on and not on:
            self._recorder.close()
        self.is_on = on

    def on_train_batch_start(self, *args, **kwargs) -> None:
        if self.is_on:
            super().on_train_batch_start(*args, **kwargs)

    def on_train_batch_end(self, *args, **kwargs) -> None:
        if self.is_on:
            super().on_train_batch_end(*args, **kwargs)


class StepTimer(pl.Callback):
    """Switches between steps with and without, and times them. First in the list of callbacks.

    Args:
        steps_per_cycle: so many steps with, and as many without, hold all that the monitor does now and then.
        num_cycles: how many of them are measured.
        switch: called with whether the next step is one with.
    """

    def __init__(self, steps_per_cycle: int, num_cycles: int, switch: Callable[[bool], None]):
        self._plan = [with_it for pair in range(steps_per_cycle * num_cycles) for with_it in _order(pair)]
        self._steps_per_cycle = steps_per_cycle
        self._switch = switch
        self._begins = Moments()
        self.num_steps = _WARM_UP_STEPS + len(self._plan) + 1

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        step = batch_idx - _WARM_UP_STEPS
        if step >= 0:
            self._begins.mark()
        if step < len(self._plan):
            self._switch(self._plan[step] if step >= 0 else bool(step % 2))

    @property
    def ratio(self) -> Estimate:
        """With / without: the median over cycles for each step of the cycle, then the mean over its steps.

        So a step that something else on the machine has slowed down does not count, and the steps of a cycle that
        observe, transfer and log do, with their share. The interval is a bootstrap over cycles.
        """
        ratios = np.array(self._seconds(True)) / np.array(self._seconds(False))
        rng = np.random.default_rng(0)
        resampled = [self._over_cycle(ratios[rng.integers(len(ratios), size=len(ratios))]) for _ in range(2000)]
        return Estimate(self._over_cycle(ratios), *(float(bound) for bound in np.percentile(resampled, [2.5, 97.5])))

    @staticmethod
    def _over_cycle(ratios: np.ndarray) -> float:
        return float(np.median(ratios, axis=0).mean())

    @property
    def seconds_per_step(self) -> float:
        """Without."""
        return float(np.median(self._seconds(False)))

    def _seconds(self, with_it: bool) -> list[list[float]]:
        """Of all steps of one sort: [cycles, steps]; the entries of both sorts are neighbours in time."""
        taken = self._begins.seconds_between()
        sort = [seconds for seconds, kind in zip(taken, self._plan, strict=True) if kind is with_it]
        n = self._steps_per_cycle
        return [sort[i : i + n] for i in range(0, len(sort), n)]


def _order(pair: int) -> tuple[bool, bool]:
    return (True, False) if pair % 2 == 0 else (False, True)


def measure(sizes: Sizes, monitor: SwitchableMonitor | None, plan: tuple[int, int], out: Path) -> StepTimer:
    """One training, its plan as in `StepTimer`; `monitor` None measures the materialised weights."""
    module = Llama(sizes)
    switch = monitor.switch if monitor else lambda on: setattr(module, "materialise", on)
    timer = StepTimer(*plan, switch)
    trainer = pl.Trainer(
        max_steps=timer.num_steps,
        logger=TensorBoardLogger(out),
        precision=sizes.precision,
        callbacks=[timer, *([monitor] if monitor else [])],
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    data = DataLoader(RandomTokens(sizes, timer.num_steps * sizes.batch_size), sizes.batch_size)
    trainer.fit(module, data)
    return timer


def prepare_step(sizes: Sizes, way: str) -> Callable[[], None]:
    """One forward and backward, watched in some way: for `peak_extra_bytes`."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few pairs: does it run?")
    parser.add_argument(
        "--out", type=Path, help="where the JSON is stored (default: benchmarks/results, unless --quick)"
    )
    options = parser.parse_args()
    sizes, narrow = (QUICK, QUICK) if options.quick else (Sizes(), NARROW)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", category=AttnwatchWarning)  # on random tokens attention stays uniform

    ways = {
        # Every other step is one with the monitor: at every 20th, it observes every 10th of those, as by default.
        "monitor_default": (sizes, lambda: SwitchableMonitor(every_n_steps=20, flush_every=5), (50, 7)),
        "monitor_every_step": (sizes, lambda: SwitchableMonitor(every_n_steps=1), (50, 5)),
        "monitor_every_step_narrow": (narrow, lambda: SwitchableMonitor(every_n_steps=1), (50, 5)),
        "materialised_every_step": (sizes, lambda: None, (10, 9)),
    }
    measured = {"sizes": dataclasses.asdict(sizes), "narrow_sizes": dataclasses.asdict(narrow)}
    measured |= {"ratio": {}, "seconds_per_step": {}, "extra_peak_mib": {}}
    print(f"{'':<26}{'step time with / without, 95% interval':<42}goal")
    with tempfile.TemporaryDirectory() as out:
        for way, (sizes_here, monitor, plan) in ways.items():
            timer = measure(sizes_here, monitor(), (plan[0], 3) if options.quick else plan, Path(out))
            measured["ratio"][way] = dataclasses.asdict(timer.ratio)
            measured["seconds_per_step"][way] = timer.seconds_per_step
            goal = GOALS.get(way)
            verdict = "" if goal is None else f"<= {goal}: {'reached' if timer.ratio.median <= goal else 'missed'}"
            print(f"{way:<26}{timer.ratio!s:<42}{verdict}", flush=True)
    unwatched = peak_extra_bytes(prepare_step, sizes, "unwatched")
    for way in ("watched", "materialised"):
        measured["extra_peak_mib"][way] = (peak_extra_bytes(prepare_step, sizes, way) - unwatched) / 2**20
        print(f"extra peak memory of a {way} step: {measured['extra_peak_mib'][way]:.1f} MiB")
    publish("overhead", measured, options.out or (None if options.quick else results_path("overhead")))


if __name__ == "__main__":
    main()
