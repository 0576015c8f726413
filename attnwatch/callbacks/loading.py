"""Reading of batches from a data loader without side effects on the training that uses it."""

import contextlib
import copy
import itertools
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from attnwatch.errors import ConfigurationError
from attnwatch.trainers.base import TrainerRun
from attnwatch.utils.processes import has_other_processes, together


def main_process_batches(run: TrainerRun, make_loader: Callable[[], Iterable[Any]], number: int) -> list[Any]:
    """Return the first batches of the main process's loader on all processes.

    Raises:
        Exception: the error of the loader, on the main process.
        ConfigurationError: the loader failed; on the other processes.
    """
    if not has_other_processes():
        return first_batches(make_loader(), number)
    packed, failure = b"", None
    if run.is_main_process:
        try:
            packed = pickle.dumps(first_batches(make_loader(), number))
        except Exception as error:  # raised once the other processes know, which would wait forever otherwise
            failure = error
    packed, reason = run.broadcast((packed, None if failure is None else f"{type(failure).__name__}: {failure}"))
    if failure is not None:
        raise failure
    if reason is not None:
        raise ConfigurationError(f"the main process could not read batches: {reason}")
    return together(lambda: pickle.loads(packed))


def first_batches(loader: Iterable[Any], number: int) -> list[Any]:
    """Return the first batches without changing the loader or any random state that training draws from."""
    with _random_state_kept(loader):
        return list(itertools.islice(_without_workers(loader), number))


def _without_workers(loader: Iterable[Any]) -> Iterable[Any]:
    """Return the loader without workers. Training would share persistent workers, whose seed would be drawn here."""
    if not isinstance(loader, DataLoader) or loader.num_workers == 0:
        return loader
    alone = copy.copy(loader)  # its __setattr__ refuses these attributes
    vars(alone).update(num_workers=0, timeout=0, persistent_workers=False, prefetch_factor=None, _iterator=None)
    return alone


@contextlib.contextmanager
def _random_state_kept(loader: Iterable[Any]) -> Iterator[None]:
    holders = [holder for holder in _holders(loader) if "generator" in getattr(holder, "__dict__", {})]
    kept = [(holder, vars(holder)["generator"]) for holder in holders]
    states = [_state(generator) for _, generator in kept]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for (holder, generator), state in zip(kept, states, strict=True):
            vars(holder)["generator"] = generator  # collators create theirs at their first call
            _set_state(generator, state)


def _holders(loader: Iterable[Any]) -> list[Any]:
    """Return the objects that may own a generator: samplers, and collators, which transformers wraps."""
    collate = getattr(loader, "collate_fn", None)
    inner = [getattr(collate, name, None) for name in ("data_collator", "__self__")]
    outer = [getattr(loader, name, None) for name in ("sampler", "batch_sampler", "dataset")]
    return [loader, collate, *inner, *outer]


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state() if isinstance(generator, torch.Generator) else None


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif state is not None:
        generator.set_state(state)
