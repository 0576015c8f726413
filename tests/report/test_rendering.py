"""Pages are safe whatever text is in them, and say what they are given."""

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from attnwatch.dashboard.reliability import reliability_figure
from attnwatch.explain import calibration
from attnwatch.report.charts import heat_cells, highlight_styles, inline_svg, line_figure
from attnwatch.report.rendering import environment, render, visible
from attnwatch.report.sections import Section
from tests.support.pages import HOSTILE, Reader


def macro(name: str, *arguments: object, **options: object) -> str:
    return getattr(environment().get_template("macros.html.jinja").module, name)(*arguments, **options)


def words(texts: list[str], values: list[float]) -> list[tuple[str, str, str]]:
    return [(text, style, text) for text, style in zip(texts, highlight_styles(values), strict=True)]


def built(text: str, chart: Markup) -> str:
    """A page with the text in every place where it takes one."""
    inputs = {
        "measured": text,
        "texts": [{"words": words([text, "after"], [0.5, float("nan")]), "caption": text}],
        "disagreement": 0.2,
        "agreement": [[text, "plain"]],
    }
    statistic = {"title": text, "summary": text, "heads": [text], "cells": heat_cells(np.array([[0.5]]), (0, 1))}
    attention = {"statistics": [statistic], "layers": [text], "not_observed": [text]}
    example = {"prompt": text, "choice": text, "verdict": text, "claim": text}
    calibrated = {"heading": f"h{text}", "chart": chart, "numbers": [[text, text]]}
    confidence = {
        "questions": f"q{text}",
        "calibrations": [calibrated],
        "examples": [example],
        "skipped": [(text, text)],
    }
    sections = [
        Section("attention", attention),
        Section("inputs", inputs),
        Section("layers", {"chart": chart, "targets": [[text]], "skipped": {text: text}}),
        Section("confidence", confidence),
        Section("layers", reason=f"r{text}"),
    ]
    return render("model_page.html.jinja", name=text, summary=text, sections=sections)


def chart(text: str = "a") -> Markup:
    return inline_svg(line_figure({text: [0.1, 0.2]}, x_name="layer", y_name="accuracy"))


CHART = chart()
SHAPE = Reader(built("a", CHART)).elements


def hostile_examples(test):
    for text in HOSTILE:
        test = example(text)(test)
    return test


@pytest.mark.slow
@hostile_examples
@given(text=st.text())
def test_text_stays_text(text: str):
    document = built(text, CHART)
    document.encode("utf-8")
    found = Reader(document)
    assert found.open == []
    assert [(tag, set(attributes)) for tag, attributes in found.elements] == [(tag, set(more)) for tag, more in SHAPE]
    assert visible(text) in "".join(found.texts)
    assert visible(text) in [attributes.get("title") for tag, attributes in found.elements if tag == "span"]


@pytest.mark.filterwarnings("ignore:Glyph")  # which the browser draws
@pytest.mark.parametrize("text", [*HOSTILE, "$x_1$ and \\frac", "日本"])
def test_text_stays_text_in_charts(text: str):
    drawn = chart(text)
    drawn.encode("utf-8")
    found, plain = Reader(drawn), Reader(CHART)
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in plain.elements]
    assert visible(text) in found.texts
    assert f"curve of {visible(text)}" in [text for text, tag in found.texts_in if tag == "title"]


def test_nothing_is_loaded_or_run():
    document = built("a", CHART)
    assert "default-src 'none'" in document
    for tag, attributes in Reader(document).elements:
        assert tag not in ("script", "link", "iframe", "img", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "href")]
        assert attributes.get("xlink:href", "#").startswith("#")  # a part of the same chart
    assert "url(" not in document
    assert "http://" not in document.replace("http-equiv", "")


def test_markup_is_not_escaped_again():
    inner = Markup("<b>{}</b>").format("x < y")
    assert inner == "<b>x &lt; y</b>"
    assert "<td><b>x &lt; y</b></td><td>&amp;</td>" in macro("rows", ["a", "b"], [[inner, "&"]])


def test_variables_that_are_missing_are_an_error():
    import jinja2

    with pytest.raises(jinja2.UndefinedError, match="summary"):
        render("model_page.html.jinja", name="a", sections=[])


def test_heatmap_has_the_numbers_and_says_what_is_missing():
    values = np.array([[0.0, 1.0], [np.nan, 0.25]])
    found = Reader(macro("heatmap", ["0", "1"], ["a", "b"], heat_cells(values, (0, 1))))
    assert [text for text in found.texts if text.strip()] == ["a", "b", "0", "0.00", "1.00", "1", "–", "0.25"]
    colours = [attributes["style"].split(";")[0] for tag, attributes in found.elements if tag == "td"]
    assert colours[0] == "background: rgb(68 1 84)"
    assert colours[1] == "background: rgb(253 231 37)"
    assert len(set(colours)) == 4


@pytest.mark.parametrize(("value", "colour"), [(2.0, "214 69 53 / 75%"), (-1.0, "49 106 197 / 38%")])
def test_highlighted_text_is_red_where_it_matters(value: float, colour: str):
    found = Reader(macro("highlighted", words(["one", "two", "three"], [2.0, value, float("nan")])))
    spans = [attributes for tag, attributes in found.elements if tag == "span"]
    assert spans[1] == {"style": f"background: rgb({colour})", "title": "two"}
    assert spans[2]["class"] == "unknown"


def points_of(svg: str, title: str) -> list[tuple[float, float]]:
    """The markers of the curve with this title, in a chart."""
    root = ElementTree.fromstring(svg.replace("xlink:href", "reference"))
    (curve,) = (group for group in root.iter("g") if group.findtext("title") == title)
    return [(float(each.get("x")), float(each.get("y"))) for each in curve.iter("use")]


def test_charts_put_points_where_they_belong():
    svg = inline_svg(line_figure({"a": [0.0, float("nan"), 1.0], "b": [0.5]}, x_name="layer", y_name="accuracy"))
    points = [*points_of(svg, "curve of a"), *points_of(svg, "curve of b")]
    assert points[0][0] < points[1][0]  # layers to the right
    assert points[0][1] > points[1][1]  # accuracy upwards
    assert points[2] == pytest.approx((points[0][0], (points[0][1] + points[1][1]) / 2))


def test_reliability_chart_has_a_bar_for_each_bin_that_is_not_empty():
    confidences, right = [0.1] * 10 + [0.9] * 20, [1] + [0] * 9 + [1] * 19 + [0]
    svg = inline_svg(reliability_figure(calibration(confidences, right, num_bins=5), ""))
    titles = [str(text) for text, tag in Reader(svg).texts_in if tag == "title"]
    assert titles == [
        "10 predictions, confidence 0.10, accuracy 0.10",
        "20 predictions, confidence 0.90, accuracy 0.95",
    ]


def test_no_two_curves_look_alike():
    figure = line_figure({f"target {index}": [0.0, 1.0] for index in range(30)}, x_name="x", y_name="y")
    lines = [line for line in figure.axes[0].lines if line.get_gid()]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(lines) == 30


@settings(max_examples=10)
@given(st.integers(0, 3))
def test_charts_are_the_same_each_time(number: int):
    series = {f"target {index}": [0.1 * index, 0.5] for index in range(number)}
    first, second = (inline_svg(line_figure(series, x_name="x", y_name="y")) for _ in "ab")
    assert first == second


def test_charts_of_nothing():
    empty = inline_svg(line_figure({}, x_name="x", y_name="y")), macro("highlighted", words([], []))
    for each in empty:
        assert Reader(each).open == []
    found = Reader(macro("highlighted", words(["a"], [float("nan")])))
    assert [text for text in found.texts if text.strip()] == ["a"]
