"""Pictures for a page, as tables and inline SVG."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from attnwatch.report.html import Markup, element, joined

# Anchors of matplotlib's viridis (CC0), from its lowest to its highest value.
_VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_SERIES = ("#3366cc", "#d9662c", "#2a9d6f", "#8e4fb5", "#c2415c", "#7a6a2e", "#3b9ab2", "#666f7d")
_HURTS, _HELPS = (214, 69, 53), (49, 106, 197)
_NOT_MEASURED = "rgb(150 150 150 / 25%)"


def heatmap(
    values: np.ndarray,
    *,
    row_names: Sequence[str],
    column_names: Sequence[str],
    value_range: tuple[float, float],
    corner: str = "",
) -> Markup:
    """A table [rows, columns] of coloured numbers; grey where there is none."""
    digits = 2 if np.nanmax(np.abs(values), initial=0.0) < 100 else 0
    head = element("tr", element("th", corner), (element("th", name, scope="col") for name in column_names))
    body = [
        element("tr", element("th", name, scope="row"), (_cell(value, value_range, digits) for value in line))
        for name, line in zip(row_names, values, strict=True)
    ]
    return element(
        "div", element("table", element("thead", head), element("tbody", body), class_="heat"), class_="wide"
    )


def _cell(value: float, value_range: tuple[float, float], digits: int) -> Markup:
    if math.isnan(value):
        return element("td", "–", style=f"background: {_NOT_MEASURED}")
    low, high = value_range
    red, green, blue = _between(_VIRIDIS, (value - low) / (high - low) if high > low else 0.0)
    is_light = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    style = f"background: rgb({red} {green} {blue}); color: {'#111' if is_light else '#fff'}"
    return element("td", f"{value:.{digits}f}", style=style)


def _between(anchors: Sequence[tuple[int, int, int]], share: float) -> tuple[int, ...]:
    place = min(max(share, 0.0), 1.0) * (len(anchors) - 1)
    index = min(int(place), len(anchors) - 2)
    weight = place - index
    return tuple(round(a + (b - a) * weight) for a, b in zip(anchors[index], anchors[index + 1], strict=True))


def highlighted(pieces: Sequence[str], values: Sequence[float], *, unit: str) -> Markup:
    """A text in pieces: red where a value is above 0, blue below, the stronger the larger; grey where there is none."""
    largest = max((abs(value) for value in values if not math.isnan(value)), default=0.0) or 1.0
    spans = []
    for piece, value in zip(pieces, values, strict=True):
        if math.isnan(value):
            spans.append(element("span", piece, class_="unknown", title="not hidden"))
            continue
        red, green, blue = _HURTS if value > 0 else _HELPS
        style = f"background: rgb({red} {green} {blue} / {0.75 * abs(value) / largest:.0%})"
        spans.append(element("span", piece, style=style, title=f"{value:+.3g} {unit}"))
    return element("div", spans, class_="text")


def line_chart(
    series: Mapping[str, Sequence[float]], *, x_name: str, y_name: str, y_range: tuple[float, float] | None = None
) -> Markup:
    """Curves over 0, 1, 2, …; gaps where a value is nan."""
    finite = [value for values in series.values() for value in values if math.isfinite(value)]
    low, high = y_range or (min([0.0, *finite]), max([*finite, 1e-9]))
    number = max((len(values) for values in series.values()), default=1)
    plot = _Plot((0, max(number - 1, 1)), (low, high))
    curves = []
    for index, values in enumerate(series.values()):
        colour = _SERIES[index % len(_SERIES)]
        for stretch in _stretches(values):
            points = " ".join(f"{plot.x(at):.1f},{plot.y(value):.1f}" for at, value in stretch)
            curves.append(element("polyline", points=points, fill="none", stroke=colour, stroke_width=2))
            curves += [element("circle", cx=plot.x(at), cy=plot.y(value), r=2.5, fill=colour) for at, value in stretch]
    legend = element(
        "p",
        (
            joined(element("span", "● ", style=f"color: {_SERIES[index % len(_SERIES)]}"), f"{name}   ")
            for index, name in enumerate(series)
        ),
        class_="soft",
    )
    ticks = [index for index in range(number) if index % max(1, number // 12) == 0]
    return joined(plot.drawn(curves, ticks, x_name, y_name), legend)


def reliability_chart(confidence: Sequence[float], accuracy: Sequence[float], counts: Sequence[int]) -> Markup:
    """Accuracy of the predictions of each confidence; calibrated ones lie on the diagonal."""
    plot = _Plot((0.0, 1.0), (0.0, 1.0))
    most = max([*counts, 1])
    marks = [
        element(
            "line", x1=plot.x(0), y1=plot.y(0), x2=plot.x(1), y2=plot.y(1), stroke="var(--soft)", stroke_dasharray="4 4"
        )
    ]
    for sure, right, count in zip(confidence, accuracy, counts, strict=True):
        if count:
            words = element("title", f"{count} predictions, confidence {sure:.2f}, accuracy {right:.2f}")
            radius = 3 + 7 * math.sqrt(count / most)
            marks.append(
                element("circle", words, cx=plot.x(sure), cy=plot.y(right), r=radius, fill=_SERIES[0], fill_opacity=0.7)
            )
    return plot.drawn(marks, [0, 0.25, 0.5, 0.75, 1], "confidence", "accuracy")


class _Plot:
    """Axes of an SVG."""

    width, height, left, bottom, top, right = 460, 280, 52, 42, 34, 14

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float]):
        self._x_range, self._y_range = x_range, y_range

    def x(self, value: float) -> float:
        low, high = self._x_range
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        low, high = self._y_range
        share = (value - low) / (high - low) if high > low else 0.0
        return self.height - self.bottom - share * (self.height - self.bottom - self.top)

    def drawn(self, marks: Iterable[Markup], x_ticks: Sequence[float], x_name: str, y_name: str) -> Markup:
        low, high = self._y_range
        axes = []
        for value in (low + (high - low) * part / 4 for part in range(5)):
            axes.append(
                element(
                    "line",
                    x1=self.left,
                    x2=self.width - self.right,
                    y1=self.y(value),
                    y2=self.y(value),
                    stroke="var(--line)",
                )
            )
            axes.append(element("text", f"{value:.2f}", x=self.left - 6, y=self.y(value) + 4, text_anchor="end"))
        for value in x_ticks:
            place = {"x": self.x(value), "y": self.height - self.bottom + 18}
            axes.append(element("text", f"{value:g}", text_anchor="middle", **place))
        middle = (self.left + self.width - self.right) / 2
        axes.append(element("text", x_name, x=middle, y=self.height - 6, text_anchor="middle"))
        axes.append(element("text", y_name, x=6, y=14))
        return element(
            "svg",
            axes,
            marks,
            viewBox=f"0 0 {self.width} {self.height}",
            width=self.width,
            height=self.height,
            role="img",
            aria_label=f"{y_name} over {x_name}",
        )


def _stretches(values: Sequence[float]) -> list[list[tuple[int, float]]]:
    """Neighbours that are not nan, each with its place."""
    found: list[list[tuple[int, float]]] = [[]]
    for place, value in enumerate(values):
        if math.isfinite(value):
            found[-1].append((place, value))
        elif found[-1]:
            found.append([])
    return [stretch for stretch in found if stretch]
