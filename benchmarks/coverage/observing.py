"""Observation: attention modules that are observed, and comparison of recorded statistics with attention weights."""

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from attnwatch import AttentionHistory, AttentionRecorder, NoAttentionError
from attnwatch.capture import find_sites, is_observed
from benchmarks.coverage.architecture import loss_of, outputs_of
from benchmarks.coverage.batches import Batch
from benchmarks.coverage.reference import Weights, statistics_of

WeightsBySite = Mapping[str, list[Weights]]


def record(model: nn.Module, batch: Batch) -> AttentionHistory | str:
    """Record one training step with every query row, or return the reason why the model can't be watched."""
    try:
        with AttentionRecorder(model, every_n_steps=1, num_query_rows=None) as recorder, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "attnwatch: nothing is observed")
            with recorder.step(0):
                loss_of(outputs_of(model, batch)).backward()
            if not recorder.coverage():
                return f"`model` ({type(model).__name__}) has no attention: no module has called any"
            return recorder.history()
    except NoAttentionError as reason:
        return str(reason)


def coverage_of(history: AttentionHistory | str, model: nn.Module, weights: WeightsBySite) -> dict[str, Any]:
    """Return how many sites are observed, why others are not, and which modules return weights but are no sites."""
    unreadable = {site.name: site.reason for site in find_sites(model)}
    coverage = unreadable if isinstance(history, str) else history.coverage
    reasons = Counter(reason for reason in coverage.values() if not is_observed(reason))
    missed = [path for path in weights if not any(_is_relative(path, site) for site in coverage)]
    observed = len(coverage) - reasons.total()
    if not coverage:
        reasons[history] += 1
    return {"sites": len(coverage), "observed": observed, "reasons": dict(reasons), "missed": sorted(missed)}


def deviations_of(history: AttentionHistory | str, weights: WeightsBySite) -> dict[str, dict[str, float]]:
    """Return the deviation of each statistic, largest over heads, of every observed site whose weights are known."""
    sites = () if isinstance(history, str) else history.sites
    deviations = {}
    for index, site in enumerate(sites):
        if site in weights and is_observed(history.coverage[site]):
            expected = statistics_of(weights[site])
            deviations[site] = {
                name: _deviation(history[name][0, index], values.numpy()) for name, values in expected.items()
            }
    return deviations


def are_outputs_unchanged(model: nn.Module, batch: Batch) -> bool:
    """Return True if outputs are the same, bit for bit, while the model is watched."""
    plain = outputs_of(model, batch)
    try:
        with AttentionRecorder(model, every_n_steps=1) as recorder, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "attnwatch: nothing is observed")
            with recorder.step(0):
                watched = outputs_of(model, batch)
    except NoAttentionError:
        return True
    return all(torch.equal(*pair) for pair in zip(plain, watched, strict=True))


def _deviation(recorded: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest deviation; infinite where only one of the two is a number.

    Histories fill up sites that have fewer heads with nan.
    """
    recorded, more = recorded[: len(expected)].astype(np.float64), recorded[len(expected) :]
    if recorded.shape != expected.shape or np.isfinite(more).any():
        return float("inf")
    if (np.isfinite(recorded) != np.isfinite(expected)).any():
        return float("inf")
    return float(np.nan_to_num(np.abs(recorded - expected)).max(initial=0.0))


def _is_relative(path: str, site: str) -> bool:
    return path == site or path.startswith(f"{site}.") or site.startswith(f"{path}.")
