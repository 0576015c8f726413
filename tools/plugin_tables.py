"""Lists of the documentation that follow from declarations in the package. They are written when the site is built.

A page holds `<!-- list x -->` as a line, and `x` is the name of a function in this module.
"""

import contextlib
import inspect
import io
import os
import re
from collections.abc import Callable, Mapping
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

_LIST = re.compile(r"^<!-- list (\w+) -->$", re.MULTILINE)
_WIDTH = "100"
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
    return _table_of_pages(FindingRule.registry, "finding")


def causes() -> str:
    columns = {"what people do": _summary, "speaks for it": _signs_for, "speaks against it": _signs_against}
    return _table(CauseRule.registry, "cause", columns)


def cause_sections() -> str:
    """Return a section for each cause: its documentation, and what to do."""
    return "\n\n".join(
        f"## {cause.name}\n\n{inspect.getdoc(type(cause))}\n\n**What to do:** {cause.remedy}"
        for cause in CauseRule.registry.values()
    )


def signs() -> str:
    """Return a table of the signs that causes weigh."""
    return table({"sign": f"`{name}`", "meaning": _summary_of(look)} for name, look in SIGNS.items())


def checks() -> str:
    return _table_of_pages(Check.registry, "check")


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


def _table_of_pages(registry: Registry[Any], kind: str) -> str:
    """Return a table of the kinds of findings, each with a link to its page (`tools/kind_pages.py`)."""
    return table(
        {
            kind: f"[`{name}`]({name}.md)",
            "what it means": _summary(plugin),
            "status of the run": "(a note)" if plugin.status is None else f"`{plugin.status.value}`",
        }
        for name, plugin in registry.items()
    )


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


def _reads(criterion: HeadCriterion) -> str:
    return ", ".join(f"`{name}`" for name in criterion.reads) or "–"


def _help(command: list[str]) -> str:
    """Return what `--help` prints, at a width that does not depend on the terminal."""
    printed = io.StringIO()
    environment = mock.patch.dict(os.environ, {"COLUMNS": _WIDTH, "NO_COLOR": "1"})
    with environment, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return printed.getvalue().strip()
