"""Figures of the run page, drawn by Bokeh in the browser."""

from collections.abc import Mapping, Sequence
from typing import Any

from attnwatch.report.rendering import visible
from attnwatch.utils.extras import extra_needed

with extra_needed("report", "the run page"):
    from bokeh.core.types import ID
    from bokeh.embed import json_item
    from bokeh.models import LayoutDOM
    from bokeh.models.annotations import Title
    from bokeh.plotting import figure

# Readable on white and on black, so that figures need no second set of colours.
INK, FAINT = "#7d8794", "#9aa4b144"
COLOURS = ("#3b82f6", "#e0752d", "#2a9d6f", "#a855c7", "#d64550", "#8a7a3a")
GOOD, WATCH, BAD = "#2a9d6f", "#d9a21b", "#d64550"

Figure = figure
"""A Bokeh figure."""


def new_figure(*, height: int, title: str = "", x_name: str = "", y_name: str = "", **options: Any) -> Figure:
    """Return a figure as wide as the page, with a transparent background and muted axes.

    Args:
        height: height in pixels.
        title, x_name, y_name: title and axis labels; empty for none.
        options: further arguments of `bokeh.plotting.figure`.
    """
    options = {"tools": "xbox_zoom,xpan,reset", "toolbar_location": None, "sizing_mode": "stretch_width"} | options
    made = figure(height=height, min_border_left=64, min_border_right=16, **options)
    made.title = Title(text=plain(title), text_color=INK, text_font_size="13px", text_font_style="normal")
    made.background_fill_alpha = made.border_fill_alpha = 0.0
    made.outline_line_color = None
    made.grid.grid_line_color = FAINT
    for axis, name in ((made.xaxis, x_name), (made.yaxis, y_name)):
        axis.axis_label = plain(name) or None
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_color = axis.major_label_text_color = INK
        axis.axis_line_color = axis.major_tick_line_color = INK
        axis.minor_tick_line_color = None
    return made


def plain(text: str) -> str:
    """Return text that Bokeh shows verbatim: it would load a script to render $$…$$ as a formula."""
    return visible(text).replace("$$", "$\u200b$")


def as_json(root: LayoutDOM, place: str) -> dict[str, Any]:
    """Return the JSON with which Bokeh shows a figure in the element with the id `place`."""
    return dict(json_item(root, ID(place)))


def step_ticks(steps: Sequence[int], indices: Sequence[int]) -> tuple[list[int], Mapping[float | str, str]]:
    """Return the ticks of an axis of observations, and the steps as their labels."""
    return list(indices), {index: f"{steps[index]:,}" for index in indices}
