"""Declaration of a statistic, which determines its recording, curves, pictures and documentation."""

from abc import ABC, abstractmethod
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from attnwatch.errors import ConfigurationError
from attnwatch.plugins import Plugin, Registry

if TYPE_CHECKING:
    from attnwatch.attention.rows import AttentionRows


OVERVIEW, DETAILS = "attention", "attention_details"
"""Groups of whole-model curves on dashboards: the overview, and the details."""


class Reduction(Enum):
    """Ways to reduce the values of single query rows to one number per head."""

    MEAN = "mean over rows"
    MAX = "maximum over rows"
    STANDARD_ERROR = "standard error of the mean over rows, from sampling them"


class Statistic(Plugin, ABC):
    """Base class of statistics: one number per head, computed from the attention of its query rows.

    A statistic is a column of a history, a curve and a pair of pictures on dashboards, and a row in the documentation.
    Give `name`, `summary` and `formula`, and write `values`; the other attributes have defaults.

    Attributes:
        name: key in histories and files.
        summary: description in one line.
        formula: formula for one query row with weights p over its n visible keys and logits z.
        unit: unit of the values, such as "nats"; empty if they have none.
        low, high: ends of the range; None if unbounded.
        reduction: reduction from rows to a head.
        per_layer: True to show it per layer on dashboards, not only for the whole model.
        is_detail: True to put its whole-model curve among the details.
        chart_limits: ends of the colour scale of pictures, if `low` and `high` do not give them. They are the same for
            all runs; values beyond an end get its colour.
        chart_is_logarithmic: True for a colour scale that is logarithmic above 1.

    Example:
        >>> import attnwatch, torch
        >>> class LargestWeight(attnwatch.Statistic):
        ...     name, summary, formula = "largest_weight", "largest attention weight of a row", "max_j p_j"
        ...     low, high = 0, 1
        ...
        ...     def values(self, rows):
        ...         return rows.weights.amax(-1)
        >>> attnwatch.register(LargestWeight)
        <class '...LargestWeight'>
        >>> query, key = torch.zeros(2, 4, 16, 8), torch.randn(2, 4, 16, 8)
        >>> attnwatch.attention_statistics(query, key).largest_weight
        tensor([0.0625, 0.0625, 0.0625, 0.0625])
        >>> attnwatch.unregister(LargestWeight)
    """

    registry: ClassVar[Registry["Statistic"]] = Registry("statistic", "attnwatch.statistics", as_instances=True)

    summary: str
    formula: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    reduction: Reduction = Reduction.MEAN
    per_layer: bool = False
    is_detail: bool = False
    chart_limits: tuple[float, float] | None = None
    chart_is_logarithmic: bool = False

    @abstractmethod
    def values(self, rows: "AttentionRows") -> Tensor:
        """Return the value of each query row, broadcastable to [batch, heads, rows].

        Rows that do not count may have any value, including nan. `AttentionRows` documents the attributes of `rows`.
        """

    def counts(self, rows: "AttentionRows") -> Tensor:
        """Return which rows count, bool, broadcastable to [batch, heads, rows]. The default is `rows.valid`."""
        return rows.valid

    @property
    def tag(self) -> str:
        """Name of the whole-model curve on dashboards."""
        return f"{DETAILS if self.is_detail else OVERVIEW}/{self.name}"

    def layer_tag(self, label: str) -> str:
        """Return the name of a layer's curve on dashboards."""
        return f"layers_{self.name}/{label}"

    def chart_range(self, values: np.ndarray) -> tuple[float, float]:
        """Return the ends of the colour scale.

        They depend on `values` (nan where nothing was observed) only if the declaration does not give them.
        """
        if self.chart_limits is not None:
            return self.chart_limits
        shown = values[np.isfinite(values)]
        least, most = (shown.min(), shown.max()) if shown.size else (0.0, 1.0)
        return float(least if self.low is None else self.low), float(most if self.high is None else self.high)

    @classmethod
    def check(cls, plugin: Any) -> None:
        """Raise a `ConfigurationError` if part of the declaration is missing or has the wrong type."""
        cls.registry.require_texts(plugin, "summary", "formula", "unit")
        if not isinstance(plugin.reduction, Reduction):
            raise ConfigurationError(
                f"{cls.registry.describe(plugin)} must have a `reduction` of attnwatch.statistics.Reduction, "
                f"got {plugin.reduction!r}."
            )
