"""Lightning under either of its names, and access to what has no public interface."""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

_NAMES = ("lightning.pytorch", "pytorch_lightning")


def _imported_or_installed() -> ModuleType:
    """Return `lightning.pytorch` or `pytorch_lightning`, which are two copies of the same code."""
    for name in sorted(_NAMES, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError("attnwatch.lightning needs Lightning: pip install 'attnwatch[lightning]'")


if TYPE_CHECKING:
    import lightning.pytorch as pl
else:
    pl = _imported_or_installed()

DISTRIBUTION = "lightning" if pl.__name__ == "lightning.pytorch" else "pytorch-lightning"
is_overridden = importlib.import_module(f"{pl.__name__}.utilities.model_helpers").is_overridden


def is_one(thing: object, *class_names: str) -> bool:
    """Return whether an object is an instance of one of these Lightning classes, from either package."""
    return any(
        base.__name__ in class_names and base.__module__.split(".")[0] in ("lightning", "pytorch_lightning")
        for base in type(thing).__mro__
    )


def has_validation_loader(trainer: pl.Trainer) -> bool:
    """Return whether validation data was given, from a private attribute, since Lightning creates loaders later."""
    return trainer.fit_loop.epoch_loop.val_loop._data_source.is_defined()


def averaged_models(callbacks: Iterable[object]) -> list[nn.Module]:
    """Return the averaged models of WeightAveraging and StochasticWeightAveraging, from a private attribute."""
    averages = [getattr(callback, "_average_model", None) for callback in callbacks]
    averages = [average.module if isinstance(average, AveragedModel) else average for average in averages]
    return [average for average in averages if average is not None]


_STOPS = "_evaluate_stopping_criteria"


@contextlib.contextmanager
def nan_is_no_alarm(callbacks: Iterable[object], metric: str) -> Iterator[None]:
    """Let each EarlyStopping on `metric` ignore nan, which means that the metric is not known yet.

    EarlyStopping treats nan as divergence and stops (`check_finite`), or as a lack of improvement, which costs
    patience. There is no public hook between the metric and this check.
    """
    stopping: list[Any] = [each for each in callbacks if is_one(each, "EarlyStopping")]
    stopping = [each for each in stopping if each.monitor == metric]
    for each in stopping:
        vars(each)[_STOPS] = partial(_unless_unknown, getattr(each, _STOPS))
    try:
        yield
    finally:
        for each in stopping:
            del vars(each)[_STOPS]


def _unless_unknown(stops: Callable[[Tensor], tuple[bool, str | None]], current: Tensor) -> tuple[bool, str | None]:
    return (False, None) if current.isnan() else stops(current)
