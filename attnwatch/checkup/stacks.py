"""Stacks of layers: layers whose names differ only in their numbers."""

import re
from collections.abc import Collection, Sequence


def after_last(layers: Sequence[str], reached: Collection[str]) -> set[str]:
    """Return the layers after the last one of their stack that is in `reached`.

    Their outputs may be unused on purpose, as those of the last layer of LLaVA's image encoder are. All layers of a
    stack are left out if none of them is in `reached`.

    Args:
        layers: names of layers in the order of their calls.
        reached: names of layers with a gradient.

    Example:
        >>> sorted(after_last(["a.0", "a.1", "b.0", "a.2", "b.1"], {"a.0", "b.1"}))
        ['a.1', 'a.2']
    """
    last: dict[str, int] = {}
    for index, layer in enumerate(layers):
        if layer in reached:
            last[_stack(layer)] = index
    return {layer for index, layer in enumerate(layers) if index > last.get(_stack(layer), len(layers))}


def are_of_one_stack(layers: Collection[str]) -> bool:
    """Return whether all layers belong to one stack.

    Example:
        >>> are_of_one_stack(["encoder.0", "encoder.1"]), are_of_one_stack(["encoder.1", "decoder.0"])
        (True, False)
    """
    return len(set(map(_stack, layers))) == 1


def _stack(layer: str) -> str:
    return re.sub(r"\d+", "#", layer)
