"""Optional packages that only parts of attnwatch need."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def extra_needed(extra: str, purpose: str) -> Iterator[None]:
    """Make a failing import name the extra of attnwatch to install.

    Args:
        extra: name under `project.optional-dependencies`.
        purpose: subject of the message, the part that needs the package.

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
