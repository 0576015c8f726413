"""Declaration of a statistic, from which its recording, curves, pictures and documentation follow."""

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
"""Groups of the curves of the whole model on dashboards: what people look at first, and the rest."""


class Reduction(Enum):
    """Ways in which the values of single query rows become one number per head."""

    MEAN = "mean over rows"
    MAX = "maximum over rows"
    STANDARD_ERROR = "standard error of the mean over rows, from sampling them"


class Statistic(Plugin, ABC):
    """Base class of the statistics: one number per head from the attention of its query rows.

    A statistic is a column of a history, a curve and a pair of pictures on dashboards, and a row in the documentation.
    Give `name`, `summary` and `formula`, and write `values`; the other attributes have defaults.

    Attributes:
        name: key in histories and files.
        summary: one line for people.
        formula: for one query row with weights p over its n visible keys and logits z.
        unit: unit of the values, such as "nats"; empty where they have none.
        low, high: ends of the range; None where it is unbounded.
        reduction: from rows to a head.
        per_layer: shown per layer on dashboards, not only for the whole model.
        is_detail: its curve of the whole model is behind those that people look at first.
        chart_limits: ends of the colour scale of pictures, where `low` and `high` do not give them. They are the same
            for all runs; what lies beyond has the colour of the end.
        chart_is_logarithmic: the colours of pictures grow with the logarithm of the values from 1 on.

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

        Values of rows that do not count may be anything, nan included. See `AttentionRows` for what rows have.
        """

    def counts(self, rows: "AttentionRows") -> Tensor:
        """Return which rows count: bool, broadcastable to [batch, heads, rows]. By default those that are `valid`."""
        return rows.valid

    @property
    def tag(self) -> str:
        """Name of the curve of the whole model on dashboards."""
        return f"{DETAILS if self.is_detail else OVERVIEW}/{self.name}"

    def layer_tag(self, label: str) -> str:
        """Return the name of the curve of a layer on dashboards."""
        return f"layers_{self.name}/{label}"

    def chart_range(self, values: np.ndarray) -> tuple[float, float]:
        """Return the ends of the colour scale.

        They depend on `values`, in which nan is what was not observed, only where the declaration does not give them.
        """
        if self.chart_limits is not None:
            return self.chart_limits
        shown = values[np.isfinite(values)]
        least, most = (shown.min(), shown.max()) if shown.size else (0.0, 1.0)
        return float(least if self.low is None else self.low), float(most if self.high is None else self.high)

    @classmethod
    def check(cls, plugin: Any) -> None:
        """Raise a `ConfigurationError` where a part of the declaration is missing or of the wrong type."""
        cls.registry.require_texts(plugin, "summary", "formula", "unit")
        if not isinstance(plugin.reduction, Reduction):
            raise ConfigurationError(
                f"{cls.registry.describe(plugin)} must have a `reduction` of attnwatch.statistics.Reduction, "
                f"got {plugin.reduction!r}."
            )
