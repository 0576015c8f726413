"""Comparison of the arguments of a replacement forward with those of the module's own."""

import inspect
from collections.abc import Callable, Sequence
from inspect import Parameter
from typing import Any

from torch import nn


def not_honoured(forward: Callable[..., Any], module: nn.Module) -> list[str]:
    """Return the parameters of the class's own forward that `forward(module, ...)` does not accept in the same way.

    A parameter must be accepted with the same name, position and default, or passed on in `*args` and `**kwargs`.
    """
    own, ours = _parameters(type(module).forward), _parameters(forward)
    names = {parameter.name for parameter in own}
    unknown = [parameter for at, parameter in enumerate(own) if not _is_honoured(parameter, at, ours)]
    unknown += [parameter for parameter in ours if _is_required(parameter) and parameter.name not in names]
    return [_shown(parameter) for parameter in unknown]


def names_of_arguments(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the positional arguments of the class's own forward, in order."""
    return tuple(parameter.name for parameter in _parameters(type(module).forward) if _is_positional(parameter))


def _is_honoured(parameter: Parameter, at: int, ours: Sequence[Parameter]) -> bool:
    kinds = {known.kind for known in ours}
    if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
        return parameter.kind in kinds
    known = next((known for known in ours if known.name == parameter.name), None)
    if known is not None:
        is_in_place = not _is_positional(parameter) or ours.index(known) == at
        return is_in_place and _same_default(known, parameter)
    is_beyond = Parameter.VAR_POSITIONAL in kinds and at >= sum(map(_is_positional, ours))
    by_position = parameter.kind is Parameter.KEYWORD_ONLY or is_beyond
    by_name = parameter.kind is Parameter.POSITIONAL_ONLY or Parameter.VAR_KEYWORD in kinds
    return by_position and by_name


def _same_default(known: Parameter, own: Parameter) -> bool:
    return known.default is own.default or (type(known.default) is type(own.default) and known.default == own.default)


def _is_positional(parameter: Parameter) -> bool:
    return parameter.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def _is_required(parameter: Parameter) -> bool:
    return parameter.default is Parameter.empty and parameter.kind not in (
        Parameter.VAR_POSITIONAL,
        Parameter.VAR_KEYWORD,
    )


def _shown(parameter: Parameter) -> str:
    return str(parameter).partition(":")[0].partition("=")[0]


def _parameters(forward: Callable[..., Any]) -> list[Parameter]:
    """Return the parameters after the module itself."""
    return list(inspect.signature(forward).parameters.values())[1:]
