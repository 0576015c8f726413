"""Block of a site: the layer of the model that its attention belongs to."""

import itertools
from collections.abc import Mapping

from torch import nn


def find_blocks(model: nn.Module, sites: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the block of each site by name: the entry of a list of layers that contains the attention.

    If several lists contain a site, the innermost one with several entries of the same class is used, because the parts
    of one layer may also be a list (T5); if there is none, the innermost. If a site is not in any `nn.ModuleList` or
    `nn.Sequential`, its block is the attention module itself.

    Args:
        model: model with these sites.
        sites: attention modules by name; modules that are no longer in the model are skipped.
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
