"""Charts of a page as inline SVG, and colours of its cells and words."""

import io
import math
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

import numpy as np

from attnwatch.report.rendering import visible
from attnwatch.utils.extras import extra_needed

with extra_needed("report", "the model page"):
    import matplotlib
    from cycler import cycler
    from markupsafe import Markup
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from matplotlib.ticker import MaxNLocator

_HURTS, _HELPS = "214 69 53", "49 106 197"  # red, green and blue
_NOT_MEASURED = "rgb(150 150 150 / 25%)"
_XLINK = "{http://www.w3.org/1999/xlink}href"


def heat_cells(values: np.ndarray, value_range: tuple[float, float]) -> list[list[tuple[str, str]]]:
    """Return the text and the style of each cell of a heat map; a cell with nan is grey."""
    low, high = value_range
    digits = 2 if np.nanmax(np.abs(values), initial=0.0) < 100 else 0
    shades = matplotlib.colormaps["viridis"]((np.nan_to_num(values) - low) / ((high - low) or 1.0))[..., :3]
    return [
        [_cell(value, shade, digits) for value, shade in zip(*row, strict=True)]
        for row in zip(values.tolist(), (255 * shades).round().astype(int).tolist(), strict=True)
    ]


def _cell(value: float, shade: Sequence[int], digits: int) -> tuple[str, str]:
    if math.isnan(value):
        return "–", f"background: {_NOT_MEASURED}"
    red, green, blue = shade
    is_light = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    return f"{value:.{digits}f}", f"background: rgb({red} {green} {blue}); color: {'#111' if is_light else '#fff'}"


def highlight_styles(values: Sequence[float]) -> list[str]:
    """Return the style of each word: red above 0, blue below, more opaque for larger values; "" for nan."""
    largest = max((abs(value) for value in values if not math.isnan(value)), default=0.0) or 1.0
    return [
        ""
        if math.isnan(value)
        else f"background: rgb({_HURTS if value > 0 else _HELPS} / {0.75 * abs(value) / largest:.0%})"
        for value in values
    ]


def line_figure(series: Mapping[str, Sequence[float]], *, x_name: str, y_name: str) -> Figure:
    """Return curves over 0, 1, 2, … with gaps at nan, in up to 40 different styles."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(cycler(linestyle=["-", "--", ":", "-."]) * cycler(color=matplotlib.color_sequences["tab10"]))
    names = list(map(visible, series))
    lines = [
        axes.plot(values, marker="o", markersize=4, gid=f"curve of {name}")[0]
        for name, values in zip(names, series.values(), strict=True)
    ]
    axes.axhline(0.0, color="0.6", linewidth=0.8)
    axes.set_xlabel(x_name)
    axes.set_ylabel(y_name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(lines, names, loc="outside right upper", frameon=False)
    return figure


def inline_svg(figure: Figure) -> Markup:
    """Return a figure as SVG for HTML, in which text stays text and black becomes the colour of the page's text.

    Ids of artists (`set_gid`) with a space in them become tooltips.
    """
    for artist in figure.findobj():
        artist.set_clip_on(False)  # clip paths are references by url()
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "attnwatch"}):
        figure.savefig(stream, format="svg", transparent=True)
    root = ElementTree.fromstring(stream.getvalue())
    referenced = {element.get(_XLINK, "").removeprefix("#") for element in root.iter()}
    for element in list(root.iter()):
        for child in list(element):
            if child.tag.endswith(("}metadata", "}style")):
                element.remove(child)
        element.tag = element.tag.rpartition("}")[2]
        identifier = element.get("id", "")
        if " " in identifier:
            title = ElementTree.Element("title")
            title.text = identifier
            element.insert(0, title)
        if identifier not in referenced:
            element.attrib.pop("id", None)
        if _XLINK in element.attrib:
            element.set("xlink:href", element.attrib.pop(_XLINK))
        if "style" in element.attrib:
            element.set("style", element.attrib["style"].replace("#000000", "currentColor"))
    root.set("role", "img")
    return Markup(ElementTree.tostring(root, encoding="unicode", method="html"))
