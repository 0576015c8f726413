"""Table of the statistics, from their declarations."""

from attnwatch.attention import STATISTICS
from tools.markdown import table


def statistics() -> str:
    return table(
        {
            "statistic": f"`{name}`",
            "what it is": statistic.summary,
            "for one query row": statistic.formula,
            "unit": statistic.unit or "–",
        }
        for name, statistic in STATISTICS.items()
    )
