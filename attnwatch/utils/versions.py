"""Tested versions of other libraries."""

import re
import sys
from importlib import metadata

from torch import nn

from attnwatch.utils.hooks import put
from attnwatch.utils.messages import warn

TESTED = {
    "torch": ("2.8.0", "2.14.1"),
    "transformers": ("4.57.6", "5.24.0"),
    "lightning": ("2.5.6", "2.6.6"),
    "pytorch-lightning": ("2.5.6", "2.6.6"),
}
"""Oldest and newest tested version of each library. `pyproject.toml` sets no upper bounds, as new ones mostly work."""


class _Warned:
    """Libraries that a run was warned about, recorded on the modules of its model."""

    def __init__(self, model: nn.Module):
        self.libraries: set[str] = set()
        self._marks = [put(module, attributes={_WARNED: self}) for module in model.modules()]

    def forget(self) -> None:
        for remove in self._marks:
            remove()


_WARNED = "_attnwatch_warned"


def begin_run(model: nn.Module) -> None:
    """Allow a new run of the model to warn about untested versions again."""
    while (warned := _warned_of(model)) is not None:
        warned.forget()


def warn_if_untested(library: str, model: nn.Module) -> None:
    """Warn once per run if the installed minor version of `library` is outside `TESTED`.

    Args:
        library: name of a distribution, a key of `TESTED`. There is no warning if it is not installed.
        model: model, or part of a model, that the run trains or observes.
    """
    message = _why_untested(library)
    if message is None:
        return
    warned = _warned_of(model) or _Warned(model)
    if library not in warned.libraries:
        warned.libraries.add(library)
        warn(message, once_for_all=True)


def _warned_of(model: nn.Module) -> _Warned | None:
    """Return the record of a run of the model, a part of it, or a model that contains it."""
    return next((vars(module)[_WARNED] for module in model.modules() if _WARNED in vars(module)), None)


def _why_untested(library: str) -> str | None:
    try:
        installed = metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
    oldest, newest = TESTED[library]
    if _release(oldest) <= _release(installed) and _release(installed)[:2] <= _release(newest)[:2]:
        return None
    return (
        f"{library} {installed} is not among the versions that attnwatch was tested with ({oldest} to {newest}). "
        "It may work; if not, layers are not observed, or the removal of heads and tokens is refused. Check coverage() "
        f"for your model, or install a tested version: pip install '{library}=={newest}'."
    )


def is_early_transformers() -> bool:
    """Return whether transformers before 5.1 is loaded, which looks up attention functions by index."""
    interface = getattr(sys.modules.get("transformers"), "AttentionInterface", None)
    return interface is not None and not hasattr(interface, "get_interface")


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, without pre-release and build suffixes."""
    return tuple(map(int, re.findall(r"^[\d.]*\d", version)[0].split(".")))
