"""Histories as pandas tables."""

from typing import TYPE_CHECKING

import numpy as np

from attnwatch.errors import ConfigurationError
from attnwatch.statistics import Reduction
from attnwatch.utils.extras import extra_needed
from attnwatch.utils.reductions import nan_max, nan_mean

if TYPE_CHECKING:
    from attnwatch.recorder.history import AttentionHistory

with extra_needed("notebook", "the table of a history"):
    import pandas as pd


def table_of(history: "AttentionHistory", per: str) -> pd.DataFrame:
    """Return a history as a table; see `AttentionHistory.to_pandas`."""
    if per not in ("layer", "head"):
        raise ConfigurationError(f"`per` must be 'layer' or 'head', got {per!r}.")
    steps, sites = history.steps, list(history.sites)
    if per == "head":
        num_heads = max((values.shape[2] for values in history.values.values()), default=0)
        index = pd.MultiIndex.from_product([steps, sites, range(num_heads)], names=["step", "layer", "head"])
        return pd.DataFrame({name: history[name].ravel() for name in history.statistics}, index=index)
    columns = {"loss": np.repeat(history.loss, len(sites))}
    for name, statistic in history.statistics.items():
        reduce = nan_max if statistic.reduction is Reduction.MAX else nan_mean
        columns[name] = reduce(history[name]).ravel()
    columns |= {name: history[name].ravel() for name in history.layer_statistics}
    return pd.DataFrame(columns, index=pd.MultiIndex.from_product([steps, sites], names=["step", "layer"]))
