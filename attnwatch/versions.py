"""Versions of other libraries that attnwatch was tested with."""

import functools
import re
from importlib import metadata

from attnwatch.messages import warn

TESTED = {
    "torch": ("2.8.0", "2.14.1"),
    "transformers": ("4.57.6", "5.24.0"),
    "lightning": ("2.5.6", "2.6.6"),
    "pytorch-lightning": ("2.5.6", "2.6.6"),
}
"""Oldest and newest version of each library; `pyproject.toml` has no upper bounds, as new releases mostly work."""


@functools.cache
def warn_if_untested(library: str) -> None:
    """Give one `AttnwatchWarning` a process if `library` is installed in a minor version outside of `TESTED`.

    Args:
        library: name of a distribution, a key of `TESTED`. Nothing is said if it is not installed.
    """
    try:
        installed = metadata.version(library)
    except metadata.PackageNotFoundError:
        return
    oldest, newest = TESTED[library]
    if _release(oldest) <= _release(installed) and _release(installed)[:2] <= _release(newest)[:2]:
        return
    warn(
        f"{library} {installed} is not among the versions that attnwatch was tested with ({oldest} to {newest}). "
        "It may work; if it does not, layers are not observed, or heads and tokens are refused. Check what coverage() "
        f"says of your model, or install a tested version: pip install '{library}=={newest}'."
    )


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version, without what marks pre-releases and builds."""
    return tuple(map(int, re.match(r"[\d.]*\d", version).group().split(".")))
