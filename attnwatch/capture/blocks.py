"""The layer of a site: the block of the model that its attention belongs to."""

import itertools
from collections.abc import Mapping

from torch import nn


def find_blocks(model: nn.Module, sites: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the block of each site by name: the entry of a list of layers that has the attention in it.

    Of several lists around a site the innermost one counts whose entry has another one of its class beside it, as the
    parts of one layer may be a list, too (T5); if there is none, the innermost. Where no `nn.ModuleList` or
    `nn.Sequential` is around a site, its block is the attention module itself.

    Args:
        model: model that has the sites.
        sites: attention modules by name; those that are no longer in the model are left out.
    """
    paths = {module: path for path, module in model.named_modules()}
    present = {name: attention for name, attention in sites.items() if attention in paths}
    return {name: _block(model, attention, paths[attention]) for name, attention in present.items()}


def _block(model: nn.Module, attention: nn.Module, path: str) -> nn.Module:
    names = path.split(".")
    around = [model, *(model.get_submodule(".".join(names[: end + 1])) for end in range(len(names)))]
    entries = [
        (container, entry)
        for container, entry in itertools.pairwise(around)
        if isinstance(container, nn.ModuleList | nn.Sequential)
    ]
    for container, entry in reversed(entries):
        if any(type(other) is type(entry) for other in container if other is not entry):
            return entry
    return entries[-1][1] if entries else attention
