"""Check that a layout matches its module."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from attnwatch.errors import ConfigurationError
from attnwatch.heads.head_map import HeadMap
from attnwatch.heads.plan import prune_heads
from attnwatch.heads.site import HeadSite

# Share of the largest output: a cut only changes the order of summation, a wrong layout changes everything.
_ROUNDING = 1e-3


@torch.no_grad()
def check_layout(module: nn.Module, *inputs: Any, **options: Any) -> None:
    """Check your own layout by cutting heads from copies of a module and comparing with masking them.

    Args:
        module: an attention module with a layout, or a model that contains some. It is not changed.
        inputs, options: arguments of its forward.

    Raises:
        ConfigurationError: the module has no heads that can be removed, its forward fails without some of them, or its
            output differs from the one with their columns of the output projection set to zero.

    Example:
        >>> check_layout(nn.TransformerEncoderLayer(d_model=32, nhead=4, dropout=0.0), torch.randn(10, 1, 32))
    """
    module = copy.deepcopy(module).eval()
    heads = HeadMap.of(module)
    heads.require_sites("module")
    for name, site in heads.sites.items():
        for removed in _removals(site):
            _compare(module, "checked" if site.module is module else f"checked.{name}", removed, inputs, options)


def _removals(site: HeadSite) -> Iterator[list[int]]:
    """Iterate over heads to remove: the first and the last group, and all heads if the layout supports that."""
    groups = site.groups()
    if len(groups) > 1:
        yield groups[0]
        yield groups[-1]
    if site.layout.returns is not None or site.layout.forward is not None:
        yield list(site.kept)


def _compare(module: nn.Module, path: str, heads: list[int], inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
    masked, cut = _beside_another(module), _beside_another(module)
    layout = f"the layout of {type(cut.get_submodule(path)).__name__}"
    _mask(HeadMap.of(masked).sites[path], heads)
    prune_heads(cut, {path: heads})
    try:
        expected, output = (each["checked"](*inputs, **options) for each in (masked, cut))
    except Exception as error:
        raise ConfigurationError(
            f"{layout} does not fit: without the heads {heads} its forward raises {type(error).__name__}: {error}"
        ) from error
    if not _is_close(expected, output):
        raise ConfigurationError(
            f"{layout} does not fit: without the heads {heads} its output differs from the one with their columns of "
            "the output projection set to zero. Are the segments and `returns` right, and does forward take its sizes "
            "from the weights?"
        )


def _beside_another(module: nn.Module) -> nn.ModuleDict:
    """Return a copy beside another attention module, because a model must keep at least one head."""
    return nn.ModuleDict({"checked": copy.deepcopy(module), "other": nn.MultiheadAttention(2, 2)})


def _mask(site: HeadSite, heads: list[int]) -> None:
    by_head = site.output_weight.unflatten(1, (site.num_heads, site.head_dim))
    by_head[:, [site.kept.index(head) for head in heads]] = 0


def _is_close(expected: Any, output: Any) -> bool:
    """Return whether both have the same type, and their first tensors are equal up to rounding."""
    first, second = (
        next(leaf for leaf in tree_leaves(each) if isinstance(leaf, Tensor)) for each in (expected, output)
    )
    if type(expected) is not type(output) or first.shape != second.shape:
        return False
    return bool((first - second).abs().max() <= _ROUNDING * first.abs().max())
