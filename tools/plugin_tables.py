"""Lists of the documentation that follow from declarations in the package. They are written when the site is built.

A page holds `<!-- list x -->` as a line, and `x` is the name of a function in this module.
"""

import contextlib
import inspect
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

from attnwatch import (
    AttentionCall,
    CauseRule,
    Check,
    FindingRule,
    HeadCriterion,
    LayerStatistic,
    Logger,
    ModelFamily,
    RunReader,
    Schedule,
    Statistic,
    TokenCriterion,
    TrainerAdapter,
)
from attnwatch.cli import main
from attnwatch.diagnosis.signs import SIGNS
from attnwatch.plugins import Registry
from tools.markdown import table
from tools.results import newest

_IMAGES = Path(__file__).parent.parent / "docs" / "images" / "verdicts"
_LIST = re.compile(r"^<!-- list (\w+) -->$", re.MULTILINE)
_WIDTH = "100"
_THRESHOLD = """\
    options:
      heading_level: 3
      show_labels: false
"""
Cell = Callable[[Any], str]


def with_lists(page: str) -> str:
    """Return a page with its lists.

    Raises:
        ValueError: the page asks for a list that nobody writes.
    """
    return _LIST.sub(lambda match: _list(match[1])(), page)


def statistics() -> str:
    return _table(
        Statistic.registry,
        "statistic",
        {
            "what it is": lambda statistic: statistic.summary,
            "for one query row": lambda statistic: statistic.formula,
            "unit": lambda statistic: statistic.unit or "–",
        },
    )


def layer_statistics() -> str:
    return _table(
        LayerStatistic.registry,
        "statistic",
        {
            "what it is": lambda statistic: statistic.summary,
            "formula": lambda statistic: statistic.formula,
            "is computed from": lambda statistic: statistic.source.value,
        },
    )


def findings() -> str:
    return _table(FindingRule.registry, "finding", {"what it means": _summary, "status of the run": _status})


def finding_sections() -> str:
    """Return a section for each finding: its picture if there is one, its documentation, and what to do."""
    return "\n\n".join(map(_finding_section, FindingRule.registry.values()))


def causes() -> str:
    columns = {"what people do": _summary, "speaks for it": _signs_for, "speaks against it": _signs_against}
    return _table(CauseRule.registry, "cause", columns)


def cause_sections() -> str:
    """Return a section for each cause: its documentation, and what to do."""
    return "\n\n".join(_section(cause, {"What to do": cause.remedy}) for cause in CauseRule.registry.values())


def signs() -> str:
    """Return a table of the signs that causes weigh."""
    return table({"sign": f"`{name}`", "meaning": _summary_of(look)} for name, look in SIGNS.items())


def checks() -> str:
    return _table(Check.registry, "check", {"what it means": _summary, "status of the run": _status})


def check_sections() -> str:
    """Return a section for each check: its documentation, what to do, and how often it was right."""
    scripts = newest("checkup")["scripts"]
    return "\n\n".join(
        _section(check, {"What to do": check.remedy, "How often right": _how_often_right(check.name, scripts)})
        for check in Check.registry.values()
    )


def _how_often_right(kind: str, scripts: Sequence[Mapping[str, Any]]) -> str:
    """Say in how many scripts of the benchmark a check has found its fault, and in how many others."""
    said = {id(script): kind in script["found"] + script["notes"] * (kind in script["kinds"]) for script in scripts}
    with_fault = [script for script in scripts if script["kinds"][:1] == [kind]]
    other = [script for script in scripts if script["kinds"] and kind not in script["kinds"]]
    sound = [script for script in scripts if not script["kinds"]]
    if not with_fault:
        return ""
    named, wrong, alarms = (sum(said[id(script)] for script in part) for part in (with_fault, other, sound))
    return (
        f"found in {named} of {len(with_fault)} scripts of which it is the cause, in {wrong} of {len(other)} scripts "
        f"with other faults, and in {alarms} of {len(sound)} sound ones ([benchmark](../benchmarks/checkup.md))."
    )


def head_criteria() -> str:
    return _table(HeadCriterion.registry, "criterion", {"importance of a head": _summary, "reads": _reads})


def token_criteria() -> str:
    return _table(TokenCriterion.registry, "criterion", {"score of a token": _summary})


def schedules() -> str:
    return _table(Schedule.registry, "schedule", {"value": _summary})


def model_families() -> str:
    return _table(ModelFamily.registry, "family", {"what": _summary})


def attention_calls() -> str:
    return _table(AttentionCall.registry, "call", {"what": _summary})


def loggers() -> str:
    return _table(Logger.registry, "logger", {"what it shows": _summary})


def run_readers() -> str:
    return _table(RunReader.registry, "format", {"what": _summary, "what it gives": lambda reader: reader.gives})


def trainers() -> str:
    return _table(TrainerAdapter.registry, "trainer", {"callbacks": lambda adapter: f"`{adapter.module}`"})


def command_line() -> str:
    """Return the help of the command line and of each of its commands."""
    overview = _help([])
    commands = re.findall(r"^    ([a-z]+) ", overview, re.MULTILINE)
    parts = [f"```text\n{overview}\n```"]
    parts += [f"## attnwatch {command}\n\n```text\n{_help([command])}\n```" for command in commands]
    return "\n\n".join(parts)


def _list(name: str) -> Callable[[], str]:
    function = globals().get(name)
    if name.startswith("_") or getattr(function, "__module__", None) != __name__:
        raise ValueError(f"a page asks for the list {name!r}, which tools/plugin_tables.py does not write.")
    return function


def _table(registry: Registry[Any], kind: str, columns: Mapping[str, Cell]) -> str:
    """Return a table with a row for each plugin: its name, and what the cells say of it."""
    rows = (
        {kind: f"`{name}`"} | {column: cell(plugin) for column, cell in columns.items()}
        for name, plugin in registry.items()
    )
    return table({column: cell.replace("|", "\\|") for column, cell in row.items()} for row in rows)


def _summary(plugin: Any) -> str:
    """Return the first line of the plugin's documentation, as part of a table."""
    return _summary_of(plugin if isinstance(plugin, type) else type(plugin))


def _summary_of(documented: Any) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0].removesuffix(".")


def _signs_for(cause: CauseRule) -> str:
    return _weighed({name: weight for name, weight in cause.weights.items() if weight > 0})


def _signs_against(cause: CauseRule) -> str:
    return _weighed({name: weight for name, weight in cause.weights.items() if weight < 0})


def _weighed(weights: Mapping[str, float]) -> str:
    return ", ".join(f"`{name}` {abs(weight):.1f}" for name, weight in weights.items()) or "–"


def _finding_section(rule: FindingRule) -> str:
    kind = type(rule)
    path = f"{kind.__module__}.{kind.__qualname__}"
    thresholds = [f"::: {path}.{each.name}\n{_THRESHOLD}" for each in fields(rule) if each.name != "enabled"]
    return "\n\n".join([_section(rule, {"What to do": rule.remedy, "As a note": rule.note}), *thresholds])


def _section(plugin: Any, advice: Mapping[str, str]) -> str:
    """Return a section about a fault: its picture if there is one, its documentation, and advice."""
    kind = plugin if isinstance(plugin, type) else type(plugin)
    parts = [f"## {plugin.name}"]
    if (_IMAGES / f"{plugin.name}.png").exists():
        parts.append(f"![A run with {plugin.name} beside a sound one](../images/verdicts/{plugin.name}.png)")
    parts.append(inspect.getdoc(kind) or "")
    return "\n\n".join([*parts, *(f"**{title}:** {text}" for title, text in advice.items() if text)])


def _status(plugin: FindingRule | type[Check]) -> str:
    return "(a note)" if plugin.status is None else f"`{plugin.status.value}`"


def _reads(criterion: HeadCriterion) -> str:
    return ", ".join(f"`{name}`" for name in criterion.reads) or "–"


def _help(command: list[str]) -> str:
    """Return what `--help` prints, at a width that does not depend on the terminal."""
    printed = io.StringIO()
    environment = mock.patch.dict(os.environ, {"COLUMNS": _WIDTH, "NO_COLOR": "1"})
    with environment, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return printed.getvalue().strip()
