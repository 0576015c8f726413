"""Packages that only a part of attnwatch needs, and modules that are imported when they are used."""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def extra_needed(extra: str, purpose: str) -> Iterator[None]:
    """Make an import that fails say which extra of attnwatch to install.

    Args:
        extra: name under `project.optional-dependencies`.
        purpose: what needs the package, the beginning of the message.

    Example:
        >>> with extra_needed("report", "the model page"):
        ...     import package_that_is_not_installed
        Traceback (most recent call last):
        ...
        ImportError: the model page needs package_that_is_not_installed: pip install 'attnwatch[report]'
    """
    try:
        yield
    except ImportError as error:
        missing = error.name or "another package"
        raise ImportError(f"{purpose} needs {missing}: pip install 'attnwatch[{extra}]'", name=error.name) from error


def lazy_attributes(module: str, sources: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a `__getattr__` for a module that imports some of its attributes when they are first used (PEP 562).

    Args:
        module: its `__name__`.
        sources: for each attribute the module that defines it.
    """

    def load(name: str) -> Any:
        if name not in sources:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(sources[name]), name)
        vars(importlib.import_module(module))[name] = value
        return value

    return load
