"""Arrangement of curves in charts, for loggers whose charts can hold several curves."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attnwatch.dashboard.scalars import BAND_TAGS, LOSS_TAG, RATE_TAG, RISK_TAG
from attnwatch.layers import LayerStatistic
from attnwatch.statistics import Statistic


@dataclass(frozen=True)
class Chart:
    """Chart of several curves.

    Attributes:
        tags: regular expressions of the tags of the curves; for a band, the tags of a curve, its lower end and its
            upper end.
        is_band: True if the second and third curve are the ends of a band around the first.
    """

    tags: Sequence[str]
    is_band: bool = False


Layout = Mapping[str, Mapping[str, Chart]]
"""Charts by title, in groups by title, in reading order."""


def run_layout() -> Layout:
    """Return the charts of a run: loss, risk and entropy, then changes during training, then the layers."""
    overview = {
        "loss": Chart([_exactly(LOSS_TAG)]),
        "risk": Chart([_exactly(RISK_TAG)]),
        "normalized entropy, ± 2 standard errors": Chart(BAND_TAGS, is_band=True),
    }
    changes = {
        "share of heads and tokens that is computed": Chart(["pruning/heads$", "tokens/(.*/)?keep_ratio$"]),
        "learning rate": Chart([_exactly(RATE_TAG)]),
    }
    layers = [each for each in Statistic.registry.values() if each.per_layer]
    of_attention = {_title(each.name): _layer_chart(each.layer_tag("")) for each in layers}
    of_layers = {_title(each.name): _layer_chart(each.tag("")) for each in LayerStatistic.registry.values()}
    return {"run": overview, "changes": changes, "attention of each layer": of_attention, "layers": of_layers}


def _exactly(tag: str) -> str:
    return f"{re.escape(tag)}$"


def _layer_chart(beginning: str) -> Chart:
    return Chart([re.escape(beginning)])


def _title(name: str) -> str:
    return name.replace("_", " ")
