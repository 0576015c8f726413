"""Lists of the documentation that follow from declarations in the package. They are written when the site is built.

A page holds `<!-- list x -->` as a line, and `x` is the name of a function in this module.
"""

import contextlib
import inspect
import io
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

from attnwatch import (
    AttentionCall,
    Check,
    FindingRule,
    HeadCriterion,
    LayerStatistic,
    Logger,
    ModelFamily,
    Schedule,
    Statistic,
    TokenCriterion,
    TrainerAdapter,
)
from attnwatch.cli import main
from attnwatch.plugins import Registry
from tools.markdown import table

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


def checks() -> str:
    return _table(Check.registry, "check", {"what it means": _summary, "status of the run": _status})


def check_sections() -> str:
    """Return a section for each check: its documentation, and what to do."""
    return "\n\n".join(_section(check, {"What to do": check.remedy}) for check in Check.registry.values())


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
    kind = plugin if isinstance(plugin, type) else type(plugin)
    return (inspect.getdoc(kind) or "").partition("\n")[0].removesuffix(".")


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
