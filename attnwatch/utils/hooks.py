"""Hooks and attributes on user modules that are excluded from copies and pickles."""

import contextlib
import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

Remove = Callable[[], None]
"""Function that removes hooks and attributes from a module."""

_REDUCE, _DEEPCOPY = "__reduce_ex__", "__deepcopy__"
# Attributes in which torch keeps the hooks of a module, by handle number.
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_load_state_dict_pre_hooks",
)


def put(
    module: nn.Module,
    *,
    handles: Sequence[RemovableHandle] = (),
    attributes: Mapping[str, Any] | None = None,
    again: Callable[[nn.Module], object] | None = None,
) -> Remove:
    """Add hooks and attributes to a module, but exclude them from its copies and pickles.

    `pickle` and `copy` look up `__reduce_ex__` on the instance before its class, so overriding it there affects only
    this module, and its pickles load without attnwatch.

    Args:
        module: module with the hooks.
        handles: handles of hooks registered on the module.
        attributes: entries for the `__dict__` of the module.
        again: function called with each deep copy of the module, to add the same to it.

    Returns:
        Function that removes the hooks and attributes. It may be called twice and does not keep the module alive.
    """
    attributes = dict(attributes or {})
    ours = vars(module).get(_REDUCE)
    if not isinstance(ours, _Ours):
        ours = _Ours(module)
    vars(module).update(attributes)
    added = (tuple(handles), attributes, again)
    ours.add(module, added)

    reference = weakref.ref(module)

    def remove() -> None:
        module = reference()
        if module is not None:
            ours.take_off(module, added)

    return remove


def take_off(module: nn.Module, again: Callable[[nn.Module], object]) -> None:
    """Remove all hooks and attributes that were added to a module with this `again`."""
    ours = vars(module).get(_REDUCE)
    if isinstance(ours, _Ours):
        for added in ours.added_with(again):
            ours.take_off(module, added)


_Added = tuple[Sequence[RemovableHandle], Mapping[str, object], Callable[[nn.Module], object] | None]


class _Ours:
    """Hooks and attributes of attnwatch on one module, and the module's `__reduce_ex__` while there are any."""

    def __init__(self, module: nn.Module):
        self._module = weakref.ref(module)
        self._added: list[_Added] = []

    def add(self, module: nn.Module, added: _Added) -> None:
        self._added.append(added)
        vars(module)[_REDUCE] = self
        if added[2] is not None or hasattr(type(module), _DEEPCOPY):
            vars(module)[_DEEPCOPY] = self._deepcopy

    def added_with(self, again: Callable[[nn.Module], object]) -> list[_Added]:
        return [added for added in self._added if added[2] is again]

    def take_off(self, module: nn.Module, added: _Added) -> None:
        handles, attributes, _ = added
        for handle in handles:
            handle.remove()
        for name, value in attributes.items():
            if vars(module).get(name) is value:
                del vars(module)[name]
        self._added = [other for other in self._added if other is not added]
        if not self._added and vars(module).get(_REDUCE) is self:
            del vars(module)[_REDUCE]
            vars(module).pop(_DEEPCOPY, None)

    def __call__(self, protocol: int) -> Any:
        module = self._module()
        assert module is not None  # this is its attribute
        reduced = type(module).__reduce_ex__(module, protocol)
        return reduced if isinstance(reduced, str) else tuple(map(self._without_ours, reduced))

    def _without_ours(self, part: Any) -> Any:
        if isinstance(part, tuple):
            return tuple(map(self._without_ours, part))
        if not isinstance(part, dict) or _HOOKS[0] not in part:
            return part
        names, numbers = self._names(), self._numbers()
        state = {name: value for name, value in part.items() if name not in names}
        for name in state.keys() & set(_HOOKS):
            hooks = state[name]
            state[name] = type(hooks)((number, hook) for number, hook in hooks.items() if number not in numbers)
        return state

    def _names(self) -> set[str]:
        return {_REDUCE, _DEEPCOPY}.union(*(attributes for _, attributes, _ in self._added))

    def _numbers(self) -> set[int]:
        return {handle.id for handles, _, _ in self._added for handle in handles}

    def _deepcopy(self, memo: dict[int, Any]) -> nn.Module:
        module = self._module()
        assert module is not None  # this is its attribute
        with self._taken_off(module):
            twin = copy.deepcopy(module, memo)
        for handles, _, again in self._added:
            if again is not None and all(_is_registered(handle) for handle in handles):
                again(twin)
        return twin

    @contextlib.contextmanager
    def _taken_off(self, module: nn.Module) -> Iterator[None]:
        """Remove them from the module temporarily, since a custom `__deepcopy__` copies the whole `__dict__`."""
        values, numbers = vars(module), self._numbers()
        ours = {name: values.pop(name) for name in self._names() if name in values}
        before = {name: dict(values[name]) for name in _HOOKS}
        for name in _HOOKS:
            for number in numbers:
                values[name].pop(number, None)
        try:
            yield
        finally:
            values.update(ours)
            for name, hooks in before.items():
                values[name].clear()
                values[name].update(hooks)


def _is_registered(handle: RemovableHandle) -> bool:
    return handle.id in (handle.hooks_dict_ref() or ())
