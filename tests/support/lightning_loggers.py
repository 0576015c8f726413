"""A Lightning logger that keeps what it is given, and readers of TensorBoard's files."""

import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


class Kept(Logger):
    """A logger that keeps what it is given."""

    name, version = "kept", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params):
        pass

    def steps(self, tag: str) -> list[int]:
        return [step for step, metrics in self.rows if tag in metrics]


def events_of(logger: TensorBoardLogger) -> EventAccumulator:
    return EventAccumulator(logger.log_dir, size_guidance={"images": 0, "scalars": 0, "tensors": 0}).Reload()


def picture_steps(logger: TensorBoardLogger) -> list[int]:
    return [image.step for image in events_of(logger).Images("attention_heads/max_logit")]


def poison(module, batch_idx):
    if batch_idx == 6:
        with torch.no_grad():
            module.model.model.layers[1].self_attn.q_proj.weight[0, 0] = torch.nan
