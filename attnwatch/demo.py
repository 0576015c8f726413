"""Training runs of a small Llama: healthy, with a fault that the loss hides, with heads removed, with tokens dropped.

Run by `attnwatch demo`.
"""

import contextlib
import logging
import shlex
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from attnwatch.callbacks.run_report import PAGE_NAME
from attnwatch.checkup import Check
from attnwatch.diagnosis import Diagnosis, Finding, FindingKind, RunStatus
from attnwatch.heads import Cut
from attnwatch.lightning import AttentionMonitor, HeadPruning, TokenDropping
from attnwatch.recorder import AttentionHistory
from attnwatch.report.run import write_run_page
from attnwatch.runs import read_run

_CONTEXT = 256  # bytes
_BATCH_SIZE = 8
_REPORT_EVERY = 40  # steps
HEALTHY, FAULTY, PRUNED, DROPPED = "healthy", "faulty", "pruned", "dropped"
_PRUNED_SHARE = 0.5
_KEPT_TOKENS = 0.5
_RUN_FILE = Path(PAGE_NAME).with_suffix(".npz")
_MOST_LOSS = 1.05  # final loss of a faster run, relative to that of the healthy run


class SourceBytes(Dataset[Tensor]):
    """Random windows of the source text of Python's standard library: int64 [context], one token per byte."""

    def __init__(self, num_windows: int, seed: int):
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        text = b"\n".join(file.read_bytes() for file in files)
        self._bytes = np.frombuffer(text, dtype=np.uint8)
        self._starts = np.random.default_rng(seed).integers(0, len(self._bytes) - _CONTEXT, num_windows)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Tensor:
        start = self._starts[index]
        return torch.from_numpy(self._bytes[start : start + _CONTEXT].astype(np.int64))


class ByteLlama(pl.LightningModule):
    """A small byte-level Llama.

    Args:
        forget_queries_and_keys: True to inject the fault. Parameters are selected by name, as for weight decay or
            layer-wise learning rates, and a pattern that is too narrow leaves `q_proj` and `k_proj` out of the
            optimizer. Values and MLPs still learn, so the loss falls.
    """

    def __init__(self, *, forget_queries_and_keys: bool):
        super().__init__()
        self._forgotten = ("q_proj", "k_proj") if forget_queries_and_keys else ()
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=256,
                hidden_size=128,
                intermediate_size=384,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=_CONTEXT,
                pad_token_id=None,
            )
        )

    def training_step(self, batch: Tensor) -> Tensor:
        loss = self.model(input_ids=batch, labels=batch).loss
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        parameters = [
            parameter
            for name, parameter in self.named_parameters()
            if not any(forgotten in name for forgotten in self._forgotten)
        ]
        optimizer = torch.optim.AdamW(parameters, lr=1.5e-3)
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.05, total_iters=20)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm_up, "interval": "step"}}


class Progress(pl.Callback):
    """Progress bar with the current loss and normalized entropy of each layer."""

    def __init__(self, name: str, monitor: AttentionMonitor, steps: int):
        self._monitor = monitor
        self._bar = tqdm(total=steps, desc=f"{name:>7}", unit="step", dynamic_ncols=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._bar.update()
        if trainer.global_step % _REPORT_EVERY == 0:
            layers = _entropy_by_layer(self._monitor.history, -1)
            self._bar.set_postfix_str(f"loss {outputs['loss'].item():.2f}, normalized entropy by layer {layers}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._bar.close()


@dataclass
class Run:
    """Finished training run."""

    history: AttentionHistory
    diagnosis: Diagnosis
    directory: Path
    found: list[tuple[int, Finding]] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)


def run_demo(out: Path, *, steps: int = 240, seed: int = 0) -> bool:
    """Train and print; return True if only the faulty run was flagged and the faster runs reached a similar loss."""
    print("Two training runs of a small Llama on the source code of Python's standard library.")
    print("In the faulty run, the query and key projections are missing from the optimizer.\n")
    runs = {name: _train(name, out, steps, seed) for name in (HEALTHY, FAULTY)}
    _print_side_by_side(runs)
    told_apart = saw_what_it_should(runs)
    print("\nBoth losses fall; attention tells the two apart." if told_apart else f"\n{_NOT_AS_IT_SHOULD_BE}")
    print(f"\nThe healthy run again, with {_PRUNED_SHARE:.0%} of its attention heads removed during training.\n")
    pruned = _train(PRUNED, out, steps, seed)
    _print_losses(pruned, runs[HEALTHY])
    print(f"\nThe healthy run again, with {_KEPT_TOKENS:.0%} of the tokens in all layers but the first and the last.\n")
    dropped = _train(DROPPED, out, steps, seed)
    _print_losses(dropped, runs[HEALTHY])
    kept_up = pruning_kept_up(pruned, runs[HEALTHY]) and loss_kept_up(dropped, runs[HEALTHY])
    print("" if kept_up else f"\n{_NOT_AS_IT_SHOULD_BE}")
    page = out / "report.html"
    write_run_page([read_run(runs[name].directory / _RUN_FILE) for name in (HEALTHY, FAULTY)], page)
    print(f"View the runs in TensorBoard:\n\n    {_tensorboard()} --logdir {shlex.quote(str(out))}\n")
    print(f"A page that compares the first two runs: {page.absolute().as_uri()}")
    return told_apart and kept_up


def _tensorboard() -> str:
    """Return the command that starts TensorBoard, even if its environment is not active."""
    if shutil.which("tensorboard"):
        return "tensorboard"
    script = Path(sys.executable).with_name("tensorboard")
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m tensorboard.main"
    here = Path.cwd()
    return shlex.quote(str(script.relative_to(here) if script.is_relative_to(here) else script))


_NOT_AS_IT_SHOULD_BE = "This is NOT the expected outcome of the demo."


def _train(name: str, out: Path, steps: int, seed: int) -> Run:
    pl.seed_everything(seed, verbose=False)
    found: list[tuple[int, Finding]] = []
    monitor = AttentionMonitor(on_finding=lambda finding, trainer, module: found.append((trainer.global_step, finding)))
    pruning = [HeadPruning(_PRUNED_SHARE)] if name == PRUNED else []
    dropping = [TokenDropping(_KEPT_TOKENS)] if name == DROPPED else []
    module = ByteLlama(forget_queries_and_keys=name == FAULTY)
    logger = TensorBoardLogger(out, name=name)
    with _quiet():
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=logger,
            log_every_n_steps=10,
            callbacks=[monitor, *pruning, *dropping, Progress(name, monitor, steps)],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(module, DataLoader(SourceBytes(steps * _BATCH_SIZE, seed), batch_size=_BATCH_SIZE))
    directory = Path(logger.log_dir)
    cuts = [cut for callback in pruning for cut in callback.cuts]
    diagnosis = monitor.diagnosis
    assert diagnosis is not None  # there is one once anything was observed
    return Run(monitor.history, diagnosis, directory, found, cuts)


def saw_what_it_should(runs: dict[str, Run]) -> bool:
    """Return whether both losses fell, checkup and curves named the fault, and the healthy run has no finding."""
    healthy, faulty = runs[HEALTHY], runs[FAULTY]
    losses_fell = all(run.history.loss[-1] < 0.8 * run.history.loss[0] for run in runs.values())
    kinds = {finding.kind for finding in faulty.diagnosis.findings}
    return (
        losses_fell
        and healthy.diagnosis.status is RunStatus.HEALTHY
        and not healthy.found
        and faulty.diagnosis.status is RunStatus.NOT_CONVERGING
        and {FindingKind.NOT_IN_OPTIMIZER, FindingKind.UNIFORM_ATTENTION} <= kinds
    )


def pruning_kept_up(pruned: Run, healthy: Run) -> bool:
    """Return whether the heads were removed for good and the final loss is close to that of the healthy run."""
    total = pruned.cuts[0].plan.num_unpruned if pruned.cuts else 0
    gone = sum(cut.plan.num_removed for cut in pruned.cuts if not cut.taken_back)
    is_gone = total > 0 and gone >= round(_PRUNED_SHARE * total)
    return is_gone and loss_kept_up(pruned, healthy)


def loss_kept_up(run: Run, healthy: Run) -> bool:
    """Return whether the final loss is close to that of the healthy run."""
    return _last_loss(run) < _MOST_LOSS * _last_loss(healthy)


def _last_loss(run: Run) -> float:
    return float(np.mean(run.history.loss[-5:]))


def _print_losses(run: Run, healthy: Run) -> None:
    print(f"\nfinal loss: {_last_loss(run):.3f}; of the healthy run: {_last_loss(healthy):.3f}")


def _print_side_by_side(runs: dict[str, Run]) -> None:
    column = 38
    print(f"\n{'':>6}" + "".join(f"  {name:<{column}}" for name in runs))
    print(f"{'step':>6}" + f"  {'loss':<6}{'normalized entropy by layer':<{column - 6}}" * len(runs))
    steps = runs[HEALTHY].history.steps
    for index in sorted({*range(0, len(steps), _REPORT_EVERY // 10), len(steps) - 1}):
        cells = (
            f"  {run.history.loss[index]:<6.2f}{_entropy_by_layer(run.history, index):<{column - 6}}"
            for run in runs.values()
        )
        print(f"{steps[index]:>6}" + "".join(cells))
    for name, run in runs.items():
        print(f"\n{name}: {run.diagnosis.verdict}")
        for step, finding in run.found:
            who = "the checkup" if finding.kind.value in Check.registry else "the curves"
            print(f"  step {step}, {who}: {finding}")


def _entropy_by_layer(history: AttentionHistory, index: int) -> str:
    if not len(history):
        return "not observed yet"
    return " ".join(f"{layer:.2f}" for layer in np.nanmean(history["normalized_entropy"][index], axis=-1))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide Lightning's hints on hardware and data workers."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
