"""Runs that trainers and loggers have kept on the disk, and what is to be read of them."""

import re
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import numpy as np

from attnwatch import AttentionHistory, ConfigurationError
from attnwatch.dashboard import layer_scalars, run_scalars, site_scalars
from attnwatch.dashboard.scalars import TOTAL_STEPS_TAG, over_heads
from attnwatch.lightning import AttentionMonitor
from attnwatch.runs import RunRecord, read_run
from attnwatch.statistics import Reduction
from tests.support.lightning_training import Llama, batches, do_nothing


class Logging(Llama):
    """Logs its loss in every step."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss)
        return loss


def train_lightning(*callbacks, steps: int = 12, before_step=do_nothing, **options) -> AttentionHistory:
    """What a monitor has recorded of a training; `options` are those of the trainer."""
    monitor = AttentionMonitor(every_n_steps=2, flush_every=1, report=False)
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        log_every_n_steps=1,
        callbacks=[monitor, *callbacks],
        **silent | {"enable_checkpointing": bool(callbacks)} | options,
    )
    trainer.fit(Logging(before_step), batches(steps))
    return monitor.history


def logged(history: AttentionHistory) -> Iterator[tuple[int, dict[str, float]]]:
    """Each step with the numbers that a monitor logs of it."""
    for index, step in enumerate(history.steps):
        of_layers = site_scalars(history, index, max_sites=12) | layer_scalars(history, index, max_sites=12)
        yield int(step), run_scalars(history, index) | of_layers
    yield int(history.steps[-1]), {TOTAL_STEPS_TAG: history.total_steps or np.nan}


def assert_heads_are_those_of(read: AttentionHistory, recorded: AttentionHistory) -> None:
    """The first observations of a recorded history, unchanged."""
    number = len(read)
    assert number > 0
    assert read.sites == recorded.sites
    np.testing.assert_array_equal(read.steps, recorded.steps[:number])
    np.testing.assert_array_equal(read.loss, recorded.loss[:number])
    for name in (*recorded.statistics, *recorded.layer_statistics):
        np.testing.assert_array_equal(read[name], recorded[name][:number])


def assert_layers_are_those_of(read: AttentionHistory, recorded: AttentionHistory) -> None:
    """What is logged of each layer, and of the whole model the rest, within float32."""
    np.testing.assert_array_equal(read.steps, recorded.steps)
    assert len(read.sites) == len(recorded.sites)
    for name, statistic in recorded.statistics.items():
        expected = over_heads(recorded, statistic)
        if not statistic.per_layer:
            expected = (np.nanmax if statistic.reduction is Reduction.MAX else np.nanmean)(recorded[name], axis=(1, 2))
            expected = np.repeat(expected[:, None], len(recorded.sites), axis=1)
        np.testing.assert_allclose(read[name][:, :, 0], expected, rtol=1e-6, err_msg=name)
    for name in recorded.layer_statistics:
        np.testing.assert_allclose(read[name], recorded[name], rtol=1e-6, err_msg=name)


def read_or_refused(path: Path, messages: str) -> RunRecord | None:
    """A run, or None if it is refused with one of these messages."""
    try:
        return read_run(path)
    except ConfigurationError as error:
        if not re.search(messages, str(error)):
            raise
        return None
