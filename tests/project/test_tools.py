"""Scripts for maintainers: tables that are written into documents."""

import pytest

import attnwatch
from tools import kind_pages as pages_of_kinds
from tools.kind_pages import kind_pages
from tools.markdown import table
from tools.plugin_tables import with_lists
from tools.update_tables import sections, updated

WRITERS = {"one": lambda: "1", "two": lambda: r"\2"}


def test_table_has_its_caption_below():
    rows = [{"": "dense", "time": "1.00"}, {"": "pruned", "time": ""}]
    assert table(rows, "On a CPU.") == "| | time |\n|---|---|\n| dense | 1.00 |\n| pruned | |\n\nOn a CPU."


def test_sections_are_written_and_the_rest_stays():
    document = "a\n<!-- begin one -->\nold\n<!-- end one -->\nb\n<!-- begin two -->\n<!-- end two -->\n"
    written = "a\n<!-- begin one -->\n1\n<!-- end one -->\nb\n<!-- begin two -->\n\\2\n<!-- end two -->\n"
    assert updated(document, WRITERS) == updated(written, WRITERS) == written


@pytest.mark.parametrize("document", ["<!-- begin three -->\n<!-- end three -->\n", "<!-- begin one -->\n"])
def test_section_that_nobody_writes_is_an_error(document):
    with pytest.raises(SystemExit, match=r"unknown names: (three|one)\."):
        updated(document, WRITERS)


def test_every_function_for_a_section_is_found():
    assert {"overhead", "verdicts", "coverage", "tokens"} <= sections().keys()
    assert not {"table", "newest", "machine", "Path"} & sections().keys()


def test_lists_follow_from_what_is_registered(registered):
    @registered
    class Half(attnwatch.Statistic):
        """Half of the largest weight."""

        name = "half_weight"
        summary = "half of the largest weight"
        formula = "max_j p_j | 2"

        def values(self, rows):
            return rows.weights.amax(-1) / 2

    page = with_lists("a\n<!-- list statistics -->\nb")
    assert page.startswith("a\n| statistic | what it is | for one query row | unit |\n|---|---|---|---|\n| `content_")
    assert page.endswith("\n| `half_weight` | half of the largest weight | max_j p_j \\| 2 | – |\nb")


def test_each_kind_of_finding_has_a_page():
    pages = kind_pages()
    for registry, folder in ((attnwatch.Check.registry, "checks"), (attnwatch.FindingRule.registry, "findings")):
        for name, plugin in registry.items():
            page = pages[f"reference/{folder}/{name}.md"]
            assert page.startswith(f"# {name}\n")
            assert plugin.remedy in page
            assert "## How often it is right" in page or folder == "findings"
    assert "loss_rises" in with_lists("<!-- list checks -->")
    assert "[`loss_rises`](loss_rises.md)" in with_lists("<!-- list checks -->")


def test_pages_count_scripts_with_the_fault_and_without(monkeypatch):
    scripts = [
        {"name": "one", "kinds": ["eval_mode"], "found": ["eval_mode"], "notes": [], "deliberate": False},
        {"name": "one", "kinds": ["eval_mode"], "found": [], "notes": ["eval_mode"], "deliberate": False},
        {"name": "two", "kinds": ["eval_mode"], "found": [], "notes": [], "deliberate": False},
        {"name": "other", "kinds": ["future_leak"], "found": ["eval_mode"], "notes": [], "deliberate": False},
        {"name": "sound", "kinds": [], "found": [], "notes": ["eval_mode"], "deliberate": False},
        {"name": "on purpose", "kinds": [], "found": ["eval_mode"], "notes": [], "deliberate": True},
    ]
    said = {attnwatch.Check.registry["eval_mode"].remedy: "The model was in eval mode.", "Use it.": "It is unused."}
    result = {"scripts": scripts, "messages": {"eval_mode": said}}
    monkeypatch.setattr(pages_of_kinds, "newest", lambda name: {"checkup": result, "verdicts": {"kinds": {}}}[name])
    monkeypatch.setattr(pages_of_kinds, "scripts_of_first_runs", lambda: scripts[2:3])
    page = kind_pages()["reference/checks/eval_mode.md"]
    assert f"\n> The model was in eval mode.\n\n{next(iter(said))}\n\n> It is unused.\n\nUse it.\n" in page
    rows = [line for line in page.splitlines() if line.startswith("|") and " of " in line]
    assert [row.rpartition("| ")[2].removesuffix(" |") for row in rows] == [
        "0 of 1",
        "2 of 3",
        "1 of 1",
        "0 of 1",
        "2 of 2",
        "0 of 1",
    ]


def test_list_that_nobody_writes_is_an_error():
    with pytest.raises(ValueError, match="asks for the list 'with_nothing', which"):
        with_lists("<!-- list with_nothing -->")
