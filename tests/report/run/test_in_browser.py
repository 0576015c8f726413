"""The run page in a real browser: what it shows, and that it asks nobody for anything."""

import dataclasses
import json

import numpy as np
import pytest

from attnwatch.report.run import write_run_page
from tests.support.browser import visit
from tests.support.records import a_history, a_record

pytestmark = pytest.mark.slow

_SHOW = """
  const told = () => document.getElementById("value-0").textContent;
  const select = document.getElementById("statistic-0");
  const slider = document.getElementById("step-0");
  const all = [];
  for (const name of ["normalized_entropy", "max_logit"]) {
    select.value = name;
    select.dispatchEvent(new Event("change"));
    for (const step of [1, 6]) {
      slider.value = step;
      slider.dispatchEvent(new Event("input"));
      point("layers", step, 1);
      const ofLayer = told();
      for (const head of [0, 2]) { point("heads", head, 0); all.push([name, step, head, ofLayer, told()]); }
    }
  }
  say(JSON.stringify(all));
  say(performance.getEntriesByType("resource").length);
"""


def test_numbers_under_the_pointer_are_those_of_the_history(tmp_path):
    history = a_history()
    write_run_page([a_record(history=history)], tmp_path / "page.html")
    seen = visit(tmp_path / "page.html", _SHOW)
    assert seen.errors == []
    told, requests = seen.output.split("\n")[:2]
    assert requests == "0"
    assert len(json.loads(told)) == 8
    for name, step, head, of_layer, of_head in json.loads(told):
        values = history[name][step]
        mean = values[1].max() if name == "max_logit" else values[1].mean()
        assert of_layer.startswith(f"step {10 * step} · layers.1.attn · ")
        assert float(of_layer.split()[-1]) == pytest.approx(mean, rel=2e-4)
        assert of_head.startswith(f"layers.0.attn · head {head} · ")
        if np.isnan(values[0, head]):
            assert of_head.endswith("removed")
        else:
            assert float(of_head.split()[-1]) == pytest.approx(values[0, head], rel=2e-4)


def test_mark_of_the_time_line_leads_to_its_evidence(tmp_path):
    write_run_page([a_record()], tmp_path / "page.html")
    click = """
      const marks = Bokeh.documents.map((each) => each.get_model_by_name("events marks")).find((each) => each !== null);
      const place = marks.data.anchor.indexOf("event-0");
      marks.selected.indices = [place];
      say(document.activeElement.id);
    """
    assert visit(tmp_path / "page.html", click).output.strip() == "event-0"


def test_names_are_text(tmp_path):
    name = "<b id=injected>&\u202e$$x$$\x00</b>"
    history = dataclasses.replace(a_history(), sites=(name, "other"))
    record = dataclasses.replace(a_record(name, history), settings={name: name}, remarks=(name,))
    write_run_page([record], tmp_path / "page.html")
    look = 'say(document.getElementById("injected") === null); say(document.querySelector(".run").textContent);'
    seen = visit(tmp_path / "page.html", look)
    assert seen.errors == []
    assert seen.output.startswith("true\n")
    assert "\u202e" not in seen.dom
    assert "$$x$$" in seen.output.replace("\u200b", "")


def test_two_runs_and_a_narrow_window(tmp_path):
    records = [a_record("first"), a_record("second", a_history(seed=1))]
    write_run_page(records, tmp_path / "page.html")
    seen = visit(tmp_path / "page.html", "say(document.documentElement.scrollWidth <= innerWidth);", width=500)
    assert seen.errors == []
    assert seen.output.strip() == "true"
    assert "first and second" in seen.dom


def test_run_without_attention_and_run_without_anything(tmp_path):
    full = a_history()
    nothing = a_history(num_steps=0)
    only_loss = dataclasses.replace(
        full,
        sites=(),
        values={name: array[:, :0] for name, array in full.values.items()},
        layers={name: array[:, :0] for name, array in full.layers.items()},
    )
    for history in (nothing, only_loss):
        write_run_page([dataclasses.replace(a_record(history=history), checked=())], tmp_path / "page.html")
        seen = visit(tmp_path / "page.html", 'say("drawn");')
        assert seen.errors == []
        assert seen.output.strip() == "drawn"
