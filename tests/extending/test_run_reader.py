"""A format of runs from outside of the package: found, read and judged as those of attnwatch."""

import json

import pytest

import attnwatch
from attnwatch import ConfigurationError, RunReader
from attnwatch.cli import main
from attnwatch.runs import Points, logged_run, read_run
from tests.support.histories import course, falling
from tests.support.kept_runs import assert_layers_are_those_of, logged

HISTORY = course(normalized_entropy=falling(0.99, 0.4), loss=falling(5, 1))


class JsonLines(RunReader):
    """A log of lines of JSON."""

    name, title, gives = "json_lines", "JSON lines log", "what was logged"

    def find(self, path):
        files = path.glob("*.jsonl") if path.is_dir() else [path]
        return [file for file in files if file.suffix == ".jsonl"]

    def read(self, place, *, loss_tag=None):
        points = Points()
        for line in place.read_text().splitlines():
            points.add_row(*json.loads(line))
        return logged_run(place.stem, points.curves(), source=self.title, loss_tag=loss_tag)


@pytest.fixture
def folder(tmp_path):
    lines = [json.dumps([step, numbers]) for step, numbers in logged(HISTORY)]
    (tmp_path / "below").mkdir()
    (tmp_path / "below/night.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_format_is_found_below_a_folder_and_read(folder, registered, capsys):
    with pytest.raises(ConfigurationError, match="contain no run"):
        read_run(folder)
    registered(JsonLines)
    run = read_run(folder)
    assert_layers_are_those_of(run.history, HISTORY)
    assert (run.name, run.source) == ("night", "JSON lines log")
    assert main(["judge", str(folder)]) == 0
    assert "night (JSON lines log): AttentionHistory(40 observations" in capsys.readouterr().out


def test_format_with_a_smaller_precedence_comes_first(folder, registered):
    (folder / "below/metrics.csv").write_text("step,loss\n0,3\n")
    registered(JsonLines)
    assert read_run(folder).source == "Lightning CSVLogger table"
    registered(type("First", (JsonLines,), {"precedence": -1, "name": "first"}))
    assert read_run(folder).source == "JSON lines log"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            KeyError("x"),
            r"night\.jsonl' is damaged, or the run reader 'json_lines' \(.*JsonLines\) can't read it",
        ),
        (FileNotFoundError("gone"), r"night\.jsonl' can't be read: gone"),
    ],
)
def test_reader_that_fails_is_named(folder, registered, error, message, monkeypatch):
    def fail(self, place, *, loss_tag=None):
        raise error

    registered(JsonLines)
    monkeypatch.setattr(JsonLines, "read", fail)
    with pytest.raises(ConfigurationError, match=message):
        read_run(folder)


def test_wrong_declarations_are_refused_by_name():
    with pytest.raises(ConfigurationError, match=r"'untitled' .* must have a string `title`"):
        attnwatch.register(type("Untitled", (RunReader,), {"name": "untitled", "gives": "nothing"}))
    declared = {"name": "half", "title": "half a log", "gives": "half", "find": JsonLines.find}
    with pytest.raises(ConfigurationError, match=r"'half' .* must have a method `read`; see RunReader"):
        attnwatch.register(type("Half", (RunReader,), declared))
