"""Batches of a data loader, taken beside the training that uses it."""

import contextlib
import itertools
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch


def first_batches(loader: Iterable[Any], number: int) -> list[Any]:
    """So many, without a trace in any random state that the training draws from."""
    with _random_state_kept(loader):
        iterator = iter(loader)
        try:
            return list(itertools.islice(iterator, number))
        finally:
            del iterator  # its workers


@contextlib.contextmanager
def _random_state_kept(loader: Iterable[Any]) -> Iterator[None]:
    holders = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    generators = {id(each): each for each in (getattr(holder, "generator", None) for holder in holders) if each}
    states = [(generator, generator.get_state()) for generator in generators.values()]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for generator, state in states:
            generator.set_state(state)
