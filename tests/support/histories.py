"""Attention histories whose course is known, and the logs of runs that have them."""

import dataclasses
import functools

import numpy as np
from torch.utils.tensorboard import SummaryWriter

import attnwatch
from attnwatch import AttentionHistory
from attnwatch.dashboard import run_scalars, site_scalars
from attnwatch.diagnosis import RiskModel
from attnwatch.layers import LayerStatistic
from attnwatch.statistics import Statistic

SITES, HEADS, OBSERVATIONS = 4, 3, 40


# The rules are tested alone; the risk has its own tests.
diagnose = functools.partial(attnwatch.diagnose, risk_model=RiskModel.zero())


ORDINARY = {
    "entropy": 2.0,
    "normalized_entropy": 0.5,
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


def course(*, sites=slice(None), observations=OBSERVATIONS, every=10, loss=None, **statistics) -> AttentionHistory:
    """An ordinary run in which these statistics take this course (a number, or one per observation) at `sites`.

    It has those layer statistics that are given; they are nan at the other sites.
    """
    values = {
        name: np.full((observations, SITES, HEADS), ORDINARY.get(name, np.nan), np.float32)
        for name in Statistic.registry
    }
    layers = {
        name: np.full((observations, SITES), np.nan, np.float32)
        for name in statistics
        if name in LayerStatistic.registry
    }
    for name, taken in statistics.items():
        taken = np.broadcast_to(np.asarray(taken, dtype=np.float32), observations)
        if name in layers:
            layers[name][:, sites] = taken[:, None]
        else:
            values[name][:, sites] = taken[:, None, None]
    steps = np.arange(observations) * every
    loss = np.full(observations, np.nan) if loss is None else np.asarray(loss, dtype=np.float64)
    return AttentionHistory(steps, tuple(f"layers.{i}.attn" for i in range(SITES)), values, loss, layers=layers)


def falling(first: float, last: float, observations: int = OBSERVATIONS) -> np.ndarray:
    return np.geomspace(first, last, observations)


def write_log(directory, history, *, loss_tag="train_loss", layers=12) -> None:
    """As a monitor does; the loss at other steps, as trainers log it."""
    with SummaryWriter(directory) as writer:
        for index, step in enumerate(history.steps):
            numbers = run_scalars(history, index) | site_scalars(history, index, max_sites=layers)
            for tag, number in numbers.items():
                writer.add_scalar(tag, number, int(step))
            writer.add_scalar(loss_tag, history.loss[index], int(step) - 5)


def random_history(*, sites=3, heads=4, observations=2) -> AttentionHistory:
    rng = np.random.default_rng(0)
    values = {name: rng.random((observations, sites, heads)).astype(np.float32) for name in Statistic.registry}
    names = tuple(f"model.layers.{i}.attn" for i in range(sites))
    return AttentionHistory(np.arange(observations) * 10, names, values, np.full(observations, np.nan))


def noisy(observations=100, *, start=0.99, end=0.5, noise=0.01, seed=0, loss=(4.0, 2.0), every=10, **statistics):
    """Heads whose normalized entropy goes from start to end; logits and loss with it, in layers that learn."""
    rng = np.random.default_rng(seed)
    history = course(observations=observations, every=every, **{"update_ratio": 0.01, "token_cosine": 0.5} | statistics)
    path = np.linspace(start, end, observations)[:, None, None]
    history.values["normalized_entropy"][:] = path + noise * rng.normal(size=(observations, SITES, HEADS))
    losses = np.geomspace(*loss, observations) * np.exp(0.05 * rng.normal(size=observations))
    return dataclasses.replace(history, loss=losses)
