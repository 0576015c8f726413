"""Trainings of a tiny Llama by Lightning."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from attnwatch.lightning import HeadPruning
from tests.support.layers_by_hand import deep
from tests.support.models import (
    llama,
    token_ids,
)

BATCH = 2


def do_nothing(module, batch_idx):
    pass


class Llama(pl.LightningModule):
    """`before_step(module, batch_idx)` is called in every training step."""

    def __init__(self, before_step=do_nothing, dropout: float = 0.0):
        super().__init__()
        self.model = llama(dropout=dropout)
        self.before_step = before_step
        self.losses = []

    def training_step(self, batch, batch_idx):
        self.before_step(self, batch_idx)
        loss = self.model(input_ids=batch, labels=batch).loss
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("validation_loss", self.model(input_ids=batch, labels=batch).loss)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def batches(number: int) -> DataLoader:
    return DataLoader(token_ids(number * BATCH), batch_size=BATCH)


def train_epochs(
    monitor, module=None, *, steps=12, epochs=1, tmp_path=None, logger=False, callbacks=(), ckpt_path=None, **options
):
    """Train a tiny Llama for `steps` batches per epoch; returns (trainer, module)."""
    pl.seed_everything(0, verbose=False)
    module = module or Llama()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=logger,
        callbacks=[*([monitor] if monitor else []), *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False} | options,
    )
    trainer.fit(module, batches(steps), batches(2), ckpt_path=ckpt_path)
    return trainer, module


STEPS = 20


def train(*callbacks, module=None, steps=STEPS, ckpt_path=None, **options) -> Llama:
    pl.seed_everything(0, verbose=False)
    module = module or Llama()
    trainer = pl.Trainer(
        **{
            "max_steps": steps,
            "callbacks": list(callbacks),
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            **options,
        }
    )
    trainer.fit(module, batches(200), ckpt_path=ckpt_path)
    return module


def pruning(target=0.5, **options) -> HeadPruning:
    return HeadPruning(target, **{"guard": None, "start": 4, "end": 10, "num_cuts": 2, **options})


class Deep(Llama):
    """Four layers, so that there is something between the first and the last."""

    def __init__(self, *args):
        super().__init__(*args)
        self.model = deep(llama)().float()


class BatchModule(pl.LightningModule):
    def __init__(self, model: nn.Module | None):
        super().__init__()
        self.model = model
        self.losses: list[float] = []

    def training_step(self, batch):
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch):
        self.model(**batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
