"""Measurements of one architecture."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from benchmarks.coverage.architecture import CRASHES, Architecture, crash, deviation_of, loss_of, outputs_of
from benchmarks.coverage.batches import Batch, packed, without_padding
from benchmarks.coverage.eager import eager_copy, weights_of
from benchmarks.coverage.heads import pruning_of
from benchmarks.coverage.observing import are_outputs_unchanged, coverage_of, deviations_of, record
from benchmarks.coverage.tokens import dropping_of

_SAME = 1e-3  # relative to the largest output: two implementations of attention compute the same
_FAILED = "watching failed"  # begins the reason of a site at which an error happened


def measure(architecture: Architecture) -> dict[str, Any]:
    """Measure everything about one architecture.

    Raises:
        Exception: the model itself does not work.
    """
    model = architecture.build()
    batch = architecture.batch(model)
    loss_of(outputs_of(model, batch)).backward()
    result = {
        "name": architecture.name,
        "model": architecture.model,
        "features": architecture.features,
        "implementation": model.config._attn_implementation,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "observation": _attempt(observation_of, architecture, model, batch),
        "statistics": _attempt(statistics_of, architecture, model, batch),
        "heads": _attempt(pruning_of, architecture, batch),
        "tokens": _attempt(dropping_of, model, batch),
    }
    reasons = [why for part in result.values() if isinstance(part, dict) for why in part.get("reasons", ())]
    return result | {"crashes": [why for why in reasons if why.startswith((CRASHES, _FAILED))]}


def observation_of(architecture: Architecture, model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Return which sites are observed, why others are not, and whether observing changes outputs."""
    weights = weights_of(eager_copy(architecture, model), batch)
    return coverage_of(record(model, batch), model, weights) | {"unchanged": are_outputs_unchanged(model, batch)}


def statistics_of(architecture: Architecture, model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Return how far recorded statistics are from those of the eager weights: padded, not padded, and packed texts.

    Recorded of the model as it is, and of the one with eager attention. `largest` is None where the model gives no
    weights to compare with, or where its eager attention does not compute the same as what it uses by default.
    """
    eager = eager_copy(architecture, model)
    is_same = _agree(model, eager, without_padding(batch) or batch)
    sites: set[str] = set()
    largest: dict[str, float] = defaultdict(float)
    for each in _batches(model, batch) if is_same else ():
        weights = weights_of(eager, each)
        for watched in (model, eager):
            for site, deviations in deviations_of(record(watched, each), weights).items():
                sites.add(site)
                for name, deviation in deviations.items():
                    largest[name] = max(largest[name], deviation)
    return {
        "compared": len(sites),
        "largest": max(largest.values(), default=None),
        "by_statistic": dict(largest),
        "reasons": {} if is_same else {"eager attention computes something else": 1},
    }


def _attempt(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    try:
        return function(*args)
    except Exception as error:
        return {"reasons": {crash(error): 1}}


@torch.no_grad()
def _agree(model: nn.Module, eager: nn.Module, batch: Batch) -> bool:
    return deviation_of(outputs_of(eager, batch), outputs_of(model, batch)) < _SAME


def _batches(model: nn.Module, batch: Batch) -> Iterator[Batch]:
    yield batch
    for other in (without_padding(batch), packed(model, batch)):
        if other is not None:
            yield other
