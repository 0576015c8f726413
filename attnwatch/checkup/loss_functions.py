"""Observation of the loss functions in `torch.nn.functional`."""

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from types import ModuleType
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import nn

from attnwatch.capture import StandIn, replace
from attnwatch.checkup.guard import Guard

ELEMENTWISE = (
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
)
"""Names of the losses that compare each prediction with its own target."""
OF_CLASSES = ("cross_entropy", "nll_loss")
"""Names of the losses whose targets may be classes. `nll_loss` receives log-probabilities, which are logits too."""
LOSSES = (*ELEMENTWISE, *OF_CLASSES, "kl_div")
"""Names of all observed functions."""

_Call = TypeVar("_Call")
_DICT: Any = vars(ModuleType)["__dict__"]


@dataclass(frozen=True)
class _Place:
    """Attribute of a Python module, or of a module of the model, that holds a loss function.

    Attributes:
        namespace, attribute: where the function is held.
        function: the function.
        name: name of the function in `torch.nn.functional`.
    """

    namespace: dict[str, Any]
    attribute: str
    function: Callable[..., Any]
    name: str

    @property
    def is_current(self) -> bool:
        """True if the function is still held there."""
        return self.attribute in self.namespace and inspect.unwrap(self.namespace[self.attribute]) is self.function


class LossFunctions:
    """Loss functions of `torch.nn.functional`, under the names by which a training script can call them.

    These are their own names, names in loaded Python modules (`from torch.nn.functional import cross_entropy`), and
    attributes of the model's modules (`self.loss = F.cross_entropy`). Local variables can't be observed.

    Args:
        model: model being trained.
        guard: keeps errors away from the training run.
    """

    def __init__(self, model: nn.Module, guard: Guard):
        self._model, self._guard = model, guard

    @contextlib.contextmanager
    def observed(
        self,
        names: Sequence[str],
        describe: Callable[[str, Any, Mapping[str, Any]], _Call | None],
        receive: Callable[[_Call], None],
    ) -> Iterator[None]:
        """Pass a description of each call of these functions to `receive` while the context is open.

        Args:
            names: some of `LOSSES`.
            describe: function of (name, loss, arguments by name, with defaults); calls for which it returns None are
                not passed on.
            receive: function called with each description.
        """
        is_open = True

        def stand_in(name: str, original: Callable[..., Any]) -> StandIn:
            @self._guard
            def pass_on(loss: Any, *args: Any, **kwargs: Any) -> None:
                given = inspect.signature(original).bind(*args, **kwargs)
                given.apply_defaults()
                if not given.arguments.keys() >= {"input", "target"}:  # the function of another library
                    return
                call = describe(name, loss, given.arguments)
                if call is not None:
                    receive(call)

            def computed(*args: Any, **kwargs: Any) -> Any:
                loss = original(*args, **kwargs)
                if is_open:  # a module that was imported meanwhile keeps the stand-in
                    pass_on(loss, *args, **kwargs)
                return loss

            return StandIn(original, computed)

        with contextlib.ExitStack() as stack:
            for place in self._places:
                if place.name in names and place.is_current:
                    stack.callback(replace(place.namespace, place.attribute, partial(stand_in, place.name)))
            try:
                yield
            finally:
                is_open = False

    @cached_property
    def _places(self) -> list[_Place]:
        return self._guard(self._found)() or []

    def _found(self) -> list[_Place]:
        names = {id(function): name for name in LOSSES for function in _layers(vars(F)[name])}
        searched = [_namespace(module) for name, module in list(sys.modules.items()) if _may_call_losses(name)]
        searched += [vars(module) for module in self._model.modules()]
        return [
            _Place(namespace, attribute, inspect.unwrap(value), names[id(_function_of(value))])
            for namespace in searched
            for attribute, value in list(namespace.items())
            if id(_function_of(value)) in names
        ]


def _function_of(value: Any) -> Any:
    """Return the function that a stand-in stands for; other values themselves."""
    return inspect.unwrap(value) if type(value) is StandIn else value


def _layers(function: Any) -> Iterator[Any]:
    """Yield a function, and the functions that it wraps."""
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)


def _namespace(module: Any) -> dict[str, Any]:
    """Return the names in a Python module, without running the code of a lazy one."""
    return _DICT.__get__(module) if issubclass(type(module), ModuleType) else {}  # others may pretend to be modules


def _may_call_losses(name: str) -> bool:
    """Return whether a Python module may call losses of the training script.

    Modules of torch other than torch.nn.functional, such as its distributions, do not.
    """
    return name == F.__name__ or not name.startswith("torch.")
