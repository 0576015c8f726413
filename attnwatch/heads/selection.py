"""From importance and a target to the heads that go."""

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from attnwatch.errors import ConfigurationError
from attnwatch.heads.heads import HeadSite, head_sites
from attnwatch.heads.plan import PruningPlan

RANKINGS = ("global", "layer", "equal")
GROUPINGS = ("auto", "group", "within")


def choose_heads(
    model: nn.Module,
    importance: Mapping[str, Tensor],
    *,
    target: int | float,
    ranking: str = "global",
    grouping: str = "auto",
    min_heads: int = 1,
) -> PruningPlan:
    """The least important heads, so that `target` of the unpruned model's heads are gone.

    Args:
        model: may be pruned already; what is gone counts.
        importance: per site [heads of the unpruned model]; what is gone is ignored. Sites that are not in it stay.
        target: fraction of all heads (of these sites) that shall be gone, below 1; or their number, at least 2.
        ranking: `"global"`: the least important of all; `"layer"`: the same share of each layer; `"equal"`: every
            layer is left with the same number of heads (one that has fewer keeps them).
        grouping: with grouped-query attention, `"group"` removes whole key-value groups, `"within"` as many query
            heads from every group; `"auto"` is "group", and "within" where all heads share one key-value head.
        min_heads: that stay in every layer; 0 allows layers without attention.

    Returns:
        What goes in addition to what is gone; never more than the target, fewer where it is no whole number of heads
        of the model or layer, or where groups or the floor forbid.

    Raises:
        ConfigurationError: an argument is wrong.
    """
    check_choice(target=target, ranking=ranking, grouping=grouping, min_heads=min_heads)
    all_sites, _ = head_sites(model)
    if not isinstance(importance, Mapping) or not importance:
        raise ConfigurationError(f"`importance` must have numbers for the heads of some sites, got {importance!r}.")
    unknown = [name for name in importance if name not in all_sites]
    if unknown:
        raise ConfigurationError(f"`importance`: {unknown[0]!r} is no site whose heads can be removed.")
    sites = [site for name, site in all_sites.items() if name in importance]
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
        for _, site, heads in units:
            gone = removed.setdefault(site.name, [])
            if len(heads) <= budget and site.num_heads - len(gone) - len(heads) >= min_heads:
                gone += heads
                budget -= len(heads)
    return PruningPlan(
        {name: tuple(sorted(removed[name])) for name in all_sites if removed.get(name)},
        {name: site.num_unpruned_heads for name, site in all_sites.items()},
    )


def check_choice(*, target: int | float, ranking: str, grouping: str, min_heads: int) -> None:
    """Raises a `ConfigurationError` where an argument of `choose_heads` is wrong whatever the model."""
    is_share = isinstance(target, float) and 0 < target < 1
    if not is_share and not (isinstance(target, int) and target > 1):
        raise ConfigurationError(
            f"`target` must be the fraction of heads that goes, between 0 and 1, or a number of heads of at least 2; "
            f"got {target!r}."
        )
    for name, value, known in (("ranking", ranking, RANKINGS), ("grouping", grouping, GROUPINGS)):
        if value not in known:
            raise ConfigurationError(f"`{name}` must be one of {', '.join(map(repr, known))}; got {value!r}.")
    if isinstance(min_heads, bool) or not isinstance(min_heads, int) or min_heads < 0:
        raise ConfigurationError(f"`min_heads` must be an integer of at least 0, got {min_heads!r}.")


def _budgets(sites: list[HeadSite], share: float, ranking: str) -> list[tuple[list[HeadSite], int]]:
    """Sites that are ranked together, and how many of their heads may go now."""
    if ranking == "global":
        return [(sites, _budget(sites, share))]
    if ranking == "layer":
        return [([site], _budget([site], share)) for site in sites]
    budget = _budget(sites, share)
    kept = next(kept for kept in itertools.count() if sum(_above(site, kept) for site in sites) <= max(budget, 0))
    return [([site], _above(site, kept)) for site in sites]


def _budget(sites: list[HeadSite], share: float) -> int:
    """How many of their heads may go, so that no more than this share is gone."""
    unpruned, left = (sum(getattr(site, name) for site in sites) for name in ("num_unpruned_heads", "num_heads"))
    return math.floor(share * unpruned + 1e-6) - (unpruned - left)  # 0.29 · 100 is a little less than 29


def _above(site: HeadSite, kept: int) -> int:
    return max(site.num_heads - kept, 0)


def _units(site: HeadSite, importance: Tensor, grouping: str) -> list[tuple[float, HeadSite, list[int]]]:
    """Heads that can only go together, with the mean of their importance."""
    importance = torch.as_tensor(importance).float().cpu()
    if importance.shape != (site.num_unpruned_heads,):
        raise ConfigurationError(
            f"`importance` at {site.name!r} must be one number for each of the {site.num_unpruned_heads} heads of the "
            f"unpruned model, got shape {list(importance.shape)}."
        )
    groups = site.groups()
    if not torch.isfinite(importance[list(site.kept)]).all():
        raise ConfigurationError(
            f"`importance` at {site.name!r} is not finite for heads that it has: {importance.tolist()}."
        )
    is_grouped = site.num_unpruned_heads > site.num_unpruned_key_value_heads
    if is_grouped and (grouping == "within" or (grouping == "auto" and site.num_unpruned_key_value_heads == 1)):
        ranked = [sorted(group, key=lambda head: float(importance[head])) for group in groups]
        groups = [sorted(heads) for heads in zip(*ranked, strict=True)]
    return [(float(importance[heads].mean()), site, heads) for heads in groups]
