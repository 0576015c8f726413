"""Pages are safe whatever text is in them, and say what they are given."""

from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from attnwatch.report.charts import heatmap, highlighted, line_chart, reliability_chart
from attnwatch.report.html import Markup, element, joined, page, rows, visible

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></style></div><svg onload=alert(1)>",
    "&lt;b&gt; &amp; &#60;",
    "javascript:alert(1)' style='position:fixed",
    "\u202eevil\x00\x0b\ud800",
]


class Reader(HTMLParser):
    """What a browser finds in a page: its elements with their attributes, and its text, with the element it is in."""

    def __init__(self, document: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.texts_in: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(document)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)
            self.texts_in.append((data, self.open[-1] if self.open else ""))


def built(text: str) -> str:
    """With the text in every place where a page takes one."""
    return page(
        text,
        element("h1", text, title=text),
        rows([text], [[text, "plain"]]),
        heatmap(np.array([[0.5]]), row_names=[text], column_names=[text], value_range=(0, 1)),
        highlighted([text, "after"], [0.5, float("nan")], unit=text),
        line_chart({text: [0.1, 0.2]}, x_name=text, y_name=text),
    )


SHAPE = Reader(built("a")).elements


@given(text=st.text())
@example(HOSTILE[0])
@example(HOSTILE[1])
@example(HOSTILE[2])
@example(HOSTILE[3])
@example(HOSTILE[4])
@example(HOSTILE[5])
def test_text_stays_text(text: str):
    document = built(text)
    document.encode("utf-8")
    found = Reader(document)
    assert found.open == []
    assert [(tag, set(attributes)) for tag, attributes in found.elements] == [(tag, set(more)) for tag, more in SHAPE]
    assert visible(text) in "".join(found.texts)
    assert visible(text) in [attributes.get("title") for tag, attributes in found.elements if tag == "h1"]


def test_nothing_is_loaded_or_run():
    document = built("a")
    assert "default-src 'none'" in document
    for tag, attributes in Reader(document).elements:
        assert tag not in ("script", "link", "iframe", "img", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "href")]
    assert "url(" not in document
    assert "http://" not in document.replace("http-equiv", "")


def test_markup_is_not_escaped_again():
    inner = element("b", "x < y")
    assert inner == "<b>x &lt; y</b>"
    assert joined(inner, "&") == "<b>x &lt; y</b>&amp;"
    assert (
        element("p", [inner, Markup("<br>")], class_="soft", data_of=None) == '<p class="soft"><b>x &lt; y</b><br></p>'
    )


def test_heatmap_has_the_numbers_and_says_what_is_missing():
    values = np.array([[0.0, 1.0], [np.nan, 0.25]])
    found = Reader(heatmap(values, row_names=["0", "1"], column_names=["a", "b"], value_range=(0, 1)))
    assert [text for text in found.texts if text] == ["a", "b", "0", "0.00", "1.00", "1", "–", "0.25"]
    colours = [attributes["style"].split(";")[0] for tag, attributes in found.elements if tag == "td"]
    assert colours[0] == "background: rgb(68 1 84)"
    assert colours[1] == "background: rgb(253 231 37)"
    assert len(set(colours)) == 4


@pytest.mark.parametrize(("value", "colour"), [(2.0, "214 69 53 / 75%"), (-1.0, "49 106 197 / 38%")])
def test_highlighted_text_is_red_where_it_matters(value: float, colour: str):
    found = Reader(highlighted(["one", "two", "three"], [2.0, value, float("nan")], unit="nats"))
    spans = [attributes for tag, attributes in found.elements if tag == "span"]
    assert spans[1] == {"style": f"background: rgb({colour})", "title": f"{value:+.3g} nats"}
    assert spans[2]["class"] == "unknown"


def test_charts_put_points_where_they_belong():
    found = Reader(line_chart({"a": [0.0, float("nan"), 1.0], "b": [0.5]}, x_name="layer", y_name="accuracy"))
    points = [(float(a["cx"]), float(a["cy"])) for tag, a in found.elements if tag == "circle"]
    assert points[0][0] < points[1][0]  # layers to the right
    assert points[0][1] > points[1][1]  # accuracy upwards
    assert points[2] == (points[0][0], (points[0][1] + points[1][1]) / 2)
    dots = Reader(reliability_chart([0.1, 0.5, 0.9], [0.1, 0.4, 0.95], [5, 0, 20]))
    assert len([tag for tag, _ in dots.elements if tag == "circle"]) == 2
    assert "20 predictions, confidence 0.90, accuracy 0.95" in dots.texts


def test_charts_of_nothing():
    for chart in (line_chart({}, x_name="x", y_name="y"), reliability_chart([], [], []), highlighted([], [], unit="")):
        assert Reader(chart).open == []
    assert Reader(highlighted(["a"], [float("nan")], unit="")).texts == ["a"]
