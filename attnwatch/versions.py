"""Whether other libraries are of a version with which attnwatch was tested."""

import functools
from importlib import metadata

from attnwatch.messages import warn


@functools.cache
def warn_if_untested(library: str) -> None:
    """One `AttnwatchWarning` where `library` is installed in another version than this package declares for it.

    What it declares is what was tested. Nothing is said where attnwatch itself is not installed, so that nobody knows.
    """
    from packaging.requirements import Requirement  # here, because only those need it who have the libraries

    try:
        declared = map(Requirement, metadata.requires("attnwatch") or ())
        installed = metadata.version(library)
    except metadata.PackageNotFoundError:
        return
    tested = next((each.specifier for each in declared if each.name == library), None)
    if tested is not None and not tested.contains(installed, prereleases=True):
        warn(
            f"{library} {installed} is not among the versions that attnwatch was tested with ({library}{tested}): "
            f"layers may not be observed, heads and tokens be refused. Install one of these (pip install "
            f"'{library}{tested}'), or check what coverage() says of your model."
        )
