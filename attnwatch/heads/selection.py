"""Choice of the heads to remove, from their importance and a target."""

import itertools
import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from attnwatch.errors import ConfigurationError
from attnwatch.heads.head_map import HeadMap
from attnwatch.heads.plan import PruningPlan
from attnwatch.heads.site import HeadSite
from attnwatch.utils.arguments import require_choice, require_int

Ranking = Literal["global", "layer", "equal"]
Grouping = Literal["auto", "group", "within"]


def choose_heads(
    model: nn.Module | HeadMap,
    importance: Mapping[str, Tensor],
    *,
    target: int | float,
    ranking: Ranking = "global",
    grouping: Grouping = "auto",
    min_heads: int = 1,
) -> PruningPlan:
    """Choose the least important heads to remove, to reach `target` of the unpruned model's heads.

    Args:
        model: model, possibly already pruned; removed heads count towards the target.
        importance: [heads of the unpruned model] by site; values of removed heads are ignored. Sites that are not in
            it keep their heads.
        target: fraction of all heads (of these sites) to remove in total, below 1; or their number, at least 2.
        ranking: `"global"`: the least important of all; `"layer"`: the same share of each layer; `"equal"`: every
            layer keeps the same number of heads (a layer that has fewer keeps them all).
        grouping: with grouped-query attention, `"group"` removes whole key-value groups, `"within"` equally many query
            heads from every group; `"auto"` is "group", or "within" if all heads share one key-value head.
        min_heads: number of heads that stay in every layer; 0 allows layers without attention.

    Returns:
        The heads to remove in addition to those already removed; never more than the target, fewer if it is not a
        whole number of heads of the model or layer, or if groups or `min_heads` prevent it.

    Raises:
        ConfigurationError: an argument is invalid.

    Example:
        >>> layer = nn.TransformerEncoderLayer(d_model=32, nhead=4)
        >>> choose_heads(layer, {"self_attn": torch.tensor([0.9, 0.1, 0.5, 0.2])}, target=0.5).heads
        {'self_attn': (1, 3)}
    """
    check_choice(target=target, ranking=ranking, grouping=grouping, min_heads=min_heads)
    heads = HeadMap.of(model)
    if not isinstance(importance, Mapping) or not importance:
        raise ConfigurationError(f"`importance` must have numbers for the heads of some sites, got {importance!r}.")
    unknown = [name for name in importance if name not in heads.sites]
    if unknown:
        raise ConfigurationError(f"`importance`: {unknown[0]!r} is not a site whose heads can be removed.")
    sites = [site for name, site in heads.sites.items() if name in importance]
    total = sum(site.num_unpruned_heads for site in sites)
    if isinstance(target, int) and target >= total:
        raise ConfigurationError(f"`target`: {target} of {total} heads; at least one must stay.")
    share = target / total if isinstance(target, int) else target
    removed: dict[str, list[int]] = {}
    for members, budget in _budgets(sites, share, ranking):
        units = sorted(
            (unit for site in members for unit in _units(site, importance[site.name], grouping)),
            key=lambda unit: unit[0],
        )
        for _, site, unit_heads in units:
            gone = removed.setdefault(site.name, [])
            if len(unit_heads) <= budget and site.num_heads - len(gone) - len(unit_heads) >= min_heads:
                gone += unit_heads
                budget -= len(unit_heads)
    chosen = {name: tuple(sorted(removed[name])) for name in heads.sites if removed.get(name)}
    return PruningPlan(chosen, heads.num_heads)


def check_choice(*, target: int | float, ranking: Ranking, grouping: Grouping, min_heads: int) -> None:
    """Raise a `ConfigurationError` if an argument of `choose_heads` is invalid for any model."""
    is_share = isinstance(target, float) and 0 < target < 1
    if not is_share and not (isinstance(target, int) and target > 1):
        raise ConfigurationError(
            f"`target` must be the fraction of heads to remove, between 0 and 1, or a number of heads, at least 2; "
            f"got {target!r}."
        )
    require_choice("ranking", ranking, get_args(Ranking))
    require_choice("grouping", grouping, get_args(Grouping))
    require_int("min_heads", min_heads, minimum=0)


def _budgets(sites: list[HeadSite], share: float, ranking: Ranking) -> list[tuple[list[HeadSite], int]]:
    """Return sites that are ranked together, and the number of their heads to remove now."""
    if ranking == "global":
        return [(sites, _budget(sites, share))]
    if ranking == "layer":
        return [([site], _budget([site], share)) for site in sites]
    budget = _budget(sites, share)
    kept = next(kept for kept in itertools.count() if sum(_above(site, kept) for site in sites) <= max(budget, 0))
    return [([site], _above(site, kept)) for site in sites]


def _budget(sites: list[HeadSite], share: float) -> int:
    """Return the number of heads of these sites that may be removed without exceeding this share in total."""
    unpruned, left = sum(site.num_unpruned_heads for site in sites), sum(site.num_heads for site in sites)
    return math.floor(share * unpruned + 1e-6) - (unpruned - left)  # 0.29 · 100 is slightly less than 29


def _above(site: HeadSite, kept: int) -> int:
    return max(site.num_heads - kept, 0)


def _units(site: HeadSite, importance: Tensor, grouping: Grouping) -> list[tuple[float, HeadSite, list[int]]]:
    """Return sets of heads that can only be removed together, with their mean importance."""
    importance = torch.as_tensor(importance).float().cpu()
    if importance.shape != (site.num_unpruned_heads,):
        raise ConfigurationError(
            f"`importance` at {site.name!r} must be one number for each of the {site.num_unpruned_heads} heads of the "
            f"unpruned model, got shape {list(importance.shape)}."
        )
    groups = site.groups()
    if not torch.isfinite(importance[list(site.kept)]).all():
        raise ConfigurationError(
            f"`importance` at {site.name!r} is not finite for heads that the site has: {importance.tolist()}."
        )
    is_grouped = site.num_unpruned_heads > site.num_unpruned_key_value_heads
    if is_grouped and (grouping == "within" or (grouping == "auto" and site.num_unpruned_key_value_heads == 1)):
        ranked = [sorted(group, key=lambda head: float(importance[head])) for group in groups]
        groups = [sorted(unit) for unit in zip(*ranked, strict=True)]
    return [(float(importance[unit].mean()), site, unit) for unit in groups]
