"""Callbacks of a trainer, made of the trainer-free parts in `attnwatch.callbacks`.

A callback has a part and calls it from its trainer's hooks; `callback_class` makes its class from that of the part. So
arguments and documentation are declared once for all trainers, hooks of a trainer can't clash with methods of a part,
and type checkers, which can't follow this, read the classes in `attnwatch/lightning.pyi` and `transformers.pyi`.
"""

import functools
import inspect
import operator
from collections.abc import Iterable
from typing import Any, ClassVar, Generic, NoReturn, TypeVar

from attnwatch.callbacks.part import TrainingPart
from attnwatch.errors import ConfigurationError
from attnwatch.trainers.base import TrainerAdapter, TrainerRun

PartT = TypeVar("PartT", bound=TrainingPart)
RunT = TypeVar("RunT", bound=TrainerRun)


class PartCallback(Generic[PartT]):
    """Base class of the callbacks of one trainer: calls `part` from the trainer's hooks.

    Attributes:
        part: what the callback does in a training.
        adapter: declaration of the trainer.
        run: the training; None before the first.
    """

    adapter: ClassVar[type[TrainerAdapter]]
    run: Any = None

    def __init__(self, part: PartT):
        self.part = part

    @property
    def state_key(self) -> str:
        """Name that tells the callback from the trainer's others, in every run alike."""
        return f"{type(self).__qualname__}{self.part.distinguished_by or ''}"

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the callback: tensors, numbers and strings. All processes call it."""
        return self.part.state_dict()

    def start(self, run: TrainerRun) -> None:
        """Begin a training."""
        self.run = run
        self.refuse_twin(run.callbacks)
        self.part.start(run)

    def refuse_twin(self, callbacks: Iterable[object]) -> None:
        """Raise a `ConfigurationError` if the trainer has another callback that does the same."""
        part = self.part
        alike = [
            each
            for each in parts_of(callbacks)
            if type(each) is type(part) and each.distinguished_by == part.distinguished_by
        ]
        if len(alike) > 1:
            which = " and ".join(f"{name}={value!r}" for name, value in part.distinguished_by.items())
            raise ConfigurationError(
                f"`callbacks` has two {type(part).__name__}{which and f' with {which}'}: a trainer takes one, remove "
                "the other."
            )

    def on_exception(self, *arguments: Any, **options: Any) -> None:
        """Do nothing: a trainer that calls this has been refused before."""

    def __getattr__(self, name: str) -> Any:
        """Refuse another trainer, which calls hooks that this callback does not have."""
        if not name.startswith("_"):
            for other in TrainerAdapter.registry.values():
                if name in other.first_hooks and other is not self.adapter:
                    return functools.partial(self._refuse_trainer, other)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _refuse_trainer(self, trainer: type[TrainerAdapter], *arguments: Any, **options: Any) -> NoReturn:
        name = type(self.part).__name__
        raise ConfigurationError(
            f"`callbacks`: {self.adapter.module}.{name} was given to {trainer.title}, which calls other hooks. For "
            f"this trainer: from {trainer.module} import {name}"
        )


def parts_of(callbacks: Iterable[object]) -> list[TrainingPart]:
    """Return the parts of those callbacks that are attnwatch's."""
    return [callback.part for callback in callbacks if isinstance(callback, PartCallback)]


@functools.cache
def callback_class(adapter: type[TrainerAdapter], part: type[TrainingPart]) -> type[PartCallback[Any]]:
    """Return the class of a trainer's callback.

    It takes the arguments of its part and has the part's documentation, with an example for the trainer, and the part's
    public attributes. It counts as a subclass of the part.

    Args:
        adapter: declaration of the trainer.
        part: what the callback does.
    """
    base = adapter.base()

    @functools.wraps(part.__init__)
    def construct(self: PartCallback[Any], *arguments: Any, **options: Any) -> None:
        base.__init__(self, part(*arguments, **options))

    members: dict[str, Any] = {each: _forward(part, each) for each in _public_names(part)}
    members |= {"__module__": adapter.module, "__doc__": _documentation(part, adapter), "__init__": construct}
    made = type(part.__name__, (base,), members | {"adapter": adapter})
    part.register(made)
    return made


def _public_names(part: type[TrainingPart]) -> list[str]:
    """Return the names of the attributes that a part has beside those of all parts."""
    kinds = [kind for kind in part.__mro__ if issubclass(kind, TrainingPart) and kind is not TrainingPart]
    names = [name for kind in kinds for name in (*vars(kind), *inspect.get_annotations(kind))]
    return [name for name in dict.fromkeys(names) if not name.startswith("_") and not hasattr(TrainingPart, name)]


def _forward(part: type[TrainingPart], name: str) -> Any:
    """Return a method or property that is the part's."""
    member = getattr(part, name, None)
    if not inspect.isfunction(member):
        return property(operator.attrgetter(f"part.{name}"), doc=getattr(member, "__doc__", None))

    @functools.wraps(member)
    def method(self: PartCallback[Any], *arguments: Any, **options: Any) -> Any:
        return getattr(self.part, name)(*arguments, **options)

    return method


def _documentation(part: type[TrainingPart], adapter: type[TrainerAdapter]) -> str | None:
    """Return the documentation of a part with an example for a trainer after the first line."""
    if part.__doc__ is None:  # under `python -OO`
        return None
    example = adapter.example.format(module=adapter.module, name=part.__name__, call=part.example)
    summary, rest = inspect.cleandoc(part.__doc__).split("\n\n", 1)
    return f"{summary}\n\n```python\n{example}\n```\n\n{rest}"
