"""Table of the statistics, from their declarations."""

from attnwatch.statistics import Statistic
from tools.markdown import table


def statistics() -> str:
    return table(
        {
            "statistic": f"`{name}`",
            "what it is": statistic.summary,
            "for one query row": statistic.formula,
            "unit": statistic.unit or "–",
        }
        for name, statistic in Statistic.registry.items()
    )
