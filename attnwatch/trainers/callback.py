"""Callbacks of a trainer, built from the trainer-independent parts in `attnwatch.callbacks`.

A callback has a part and calls it from its trainer's hooks; `callback_class` builds its class from that of the part. So
arguments and documentation are declared once for all trainers, and hooks of a trainer can't clash with methods of a
part. Type checkers can't follow this and read the classes in `attnwatch/lightning.pyi` and `transformers.pyi`.
"""

import functools
import inspect
import operator
import pkgutil
from collections.abc import Iterable
from typing import Any, ClassVar, Generic, NoReturn, TypeVar

from attnwatch.callbacks.part import TrainingPart
from attnwatch.errors import ConfigurationError
from attnwatch.trainers.base import TrainerAdapter, TrainerRun
from attnwatch.utils.notebooks import as_html

PartT = TypeVar("PartT", bound=TrainingPart)
RunT = TypeVar("RunT", bound=TrainerRun)


class PartCallback(Generic[PartT, RunT]):
    """Base class of the callbacks of one trainer, which call `part` from the trainer's hooks.

    Attributes:
        part: part that does the work of the callback.
        adapter: declaration of the trainer.
    """

    adapter: ClassVar[type[TrainerAdapter]]
    _run: RunT | None = None

    def __init__(self, part: PartT):
        self.part = part

    @property
    def run(self) -> RunT:
        """Current training, or the last one after its end."""
        if self._run is None:
            raise ConfigurationError(f"{type(self).__name__} has no `run` yet: no training has started.")
        return self._run

    @property
    def state_key(self) -> str:
        """Name that distinguishes the callback from the trainer's others, the same in every run."""
        return f"{type(self).__qualname__}{self.part.distinguished_by or ''}"

    def state_dict(self) -> dict[str, Any]:
        """Return the callback's state for a checkpoint: tensors, numbers and strings. All processes call it."""
        return self.part.state_dict()

    def start(self, run: RunT) -> None:
        """Begin a training."""
        self._run = run
        self.refuse_duplicate(run.callbacks)
        self.part.start(run)

    def refuse_duplicate(self, callbacks: Iterable[object]) -> None:
        """Raise a `ConfigurationError` if the trainer has another callback that does the same."""
        alike = [(type(part), part.distinguished_by) for part in parts_of(callbacks)]
        kind, arguments = type(self.part), self.part.distinguished_by
        if alike.count((kind, arguments)) > 1:
            which = " and ".join(f"{name}={value!r}" for name, value in arguments.items())
            what = f"{kind.__name__} with {which}" if which else kind.__name__
            raise ConfigurationError(f"`callbacks` has two {what}, but a trainer takes only one: remove the other.")

    def _repr_html_(self) -> str:
        return as_html(f"{self!r}\n{self.part.description}")

    def on_exception(self, *arguments: Any, **options: Any) -> None:
        """Do nothing: a trainer that calls this hook has already been refused."""

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
    """Return the parts of attnwatch's callbacks among these callbacks."""
    return [callback.part for callback in callbacks if isinstance(callback, PartCallback)]


@functools.cache
def callback_class(adapter: type[TrainerAdapter], part: type[TrainingPart]) -> type[PartCallback[Any, Any]]:
    """Return the class of a trainer's callback.

    It takes the arguments of its part and has the part's documentation, with an example for the trainer, and the part's
    public attributes. It counts as a subclass of the part.

    Args:
        adapter: declaration of the trainer.
        part: class of the callback's part.
    """
    declared = adapter.callback_base
    base = pkgutil.resolve_name(declared) if isinstance(declared, str) else declared

    @functools.wraps(part.__init__)
    def construct(self: PartCallback[Any, Any], *arguments: Any, **options: Any) -> None:
        base.__init__(self, part(*arguments, **options))

    members: dict[str, Any] = {each: _forward(part, each) for each in _public_names(part)}
    members |= {"__module__": adapter.module, "__doc__": _documentation(part, adapter), "__init__": construct}
    made = type(part.__name__, (base,), members | {"adapter": adapter})
    part.register(made)
    return made


def _public_names(part: type[TrainingPart]) -> list[str]:
    """Return the names of a part's public attributes, except those that all parts have."""
    kinds = [kind for kind in part.__mro__ if issubclass(kind, TrainingPart) and kind is not TrainingPart]
    names = [name for kind in kinds for name in (*vars(kind), *inspect.get_annotations(kind))]
    return [name for name in dict.fromkeys(names) if not name.startswith("_") and not hasattr(TrainingPart, name)]


def _forward(part: type[TrainingPart], name: str) -> Any:
    """Return a method or property that delegates to the part."""
    member = getattr(part, name, None)
    if not inspect.isfunction(member):
        return property(operator.attrgetter(f"part.{name}"), doc=getattr(member, "__doc__", None))

    @functools.wraps(member)
    def method(self: PartCallback[Any, Any], *arguments: Any, **options: Any) -> Any:
        return getattr(self.part, name)(*arguments, **options)

    return method


def _documentation(part: type[TrainingPart], adapter: type[TrainerAdapter]) -> str | None:
    """Return the documentation of a part with an example for a trainer after the first line."""
    if part.__doc__ is None:  # under `python -OO`
        return None
    example = adapter.example.format(module=adapter.module, name=part.__name__, call=part.example)
    summary, rest = inspect.cleandoc(part.__doc__).split("\n\n", 1)
    return f"{summary}\n\n```python\n{example}\n```\n\n{rest}"
