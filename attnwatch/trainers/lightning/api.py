"""Lightning under either of its names: `lightning.pytorch` and `pytorch_lightning` are the same code twice."""

import importlib
import sys

_NAMES = ("lightning.pytorch", "pytorch_lightning")


def _imported_or_installed():
    for name in sorted(_NAMES, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError("attnwatch.lightning needs Lightning: pip install 'attnwatch[lightning]'")


pl = _imported_or_installed()
DISTRIBUTION = "lightning" if pl.__name__ == "lightning.pytorch" else "pytorch-lightning"


def is_one(thing: object, *class_names: str) -> bool:
    """Whether it is an instance of one of these classes of Lightning, under whichever name."""
    return any(
        base.__name__ in class_names and base.__module__.split(".")[0] in ("lightning", "pytorch_lightning")
        for base in type(thing).__mro__
    )
