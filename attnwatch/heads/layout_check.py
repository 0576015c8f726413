"""Tries whether a layout says the truth of its module."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from attnwatch.errors import ConfigurationError
from attnwatch.heads.heads import HeadSite, head_sites
from attnwatch.heads.plan import prune_heads

# Of the largest output: a cut changes the order of sums, a wrong layout changes all.
_ROUNDING = 1e-3


@torch.no_grad()
def check_layout(module: nn.Module, *inputs: Any, **options: Any) -> None:
    """Cut heads from copies of a module, and compare with what masking them gives. For a layout of your own.

    ```python
    register_layout(MyAttention, HeadLayout({"qkv": "q|k|v"}, output="proj", head_dim=64, returns="output"))
    check_layout(MyAttention(...), torch.randn(2, 10, 512))
    ```

    Args:
        module: an attention module of the registered class, or a model with some. It is not changed.
        inputs, options: what its forward takes.

    Raises:
        ConfigurationError: the module has no heads that can be removed, its forward fails without some of them, or its
            output is not what it is with their columns of the output projection at zero.
    """
    module = copy.deepcopy(module).eval()
    sites, refused = head_sites(module)
    if not sites:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise ConfigurationError(f"`module` has no heads that can be removed. {reasons or 'It has no attention.'}")
    for name, site in sites.items():
        for heads in _trials(site):
            _try(module, "tried" if site.module is module else f"tried.{name}", heads, inputs, options)


def _trials(site: HeadSite) -> Iterator[list[int]]:
    groups = site.groups()
    if len(groups) > 1:
        yield groups[0]
        yield groups[-1]
    if site.layout.returns is not None or site.layout.forward is not None:
        yield list(site.kept)


def _try(module: nn.Module, path: str, heads: list[int], inputs: tuple, options: dict[str, Any]) -> None:
    # Beside another attention, as a model must keep a head.
    masked, cut = (nn.ModuleDict({"tried": copy.deepcopy(module), "other": nn.MultiheadAttention(2, 2)}) for _ in "12")
    layout = f"the layout of {type(cut.get_submodule(path)).__name__}"
    _mask(head_sites(masked)[0][path], heads)
    prune_heads(cut, {path: heads})
    try:
        outputs = [each["tried"](*inputs, **options) for each in (masked, cut)]
    except Exception as error:
        raise ConfigurationError(
            f"{layout} does not fit: without the heads {heads} its forward raises {type(error).__name__}: {error}"
        ) from error
    if not _agree(*outputs):
        raise ConfigurationError(
            f"{layout} does not fit: without the heads {heads} its output is not what it is with their "
            "columns of the output projection at zero. Are the segments and `returns` right, and does forward take its "
            "sizes from the weights?"
        )


def _mask(site: HeadSite, heads: list[int]) -> None:
    weight = site.output_weight
    for position in (site.kept.index(head) for head in heads):
        weight[:, position * site.head_dim : (position + 1) * site.head_dim] = 0


def _agree(expected: Any, output: Any) -> bool:
    """Both are of one kind, and the first tensors in them equal up to rounding."""
    first, second = (
        next(leaf for leaf in tree_leaves(each) if isinstance(leaf, Tensor)) for each in (expected, output)
    )
    if type(expected) is not type(output) or first.shape != second.shape:
        return False
    return bool((first - second).abs().max() <= _ROUNDING * first.abs().max())
