"""Texts that follow from declarations in the package."""

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
    FindingRule,
    HeadCriterion,
    Logger,
    ModelFamily,
    Schedule,
    TokenCriterion,
    TrainerAdapter,
)
from attnwatch.cli import main
from attnwatch.plugins import Registry

_WIDTH = "100"
Cell = Callable[[Any], str]


def findings() -> str:
    return _table(FindingRule.registry, "finding", {"what it means": _summary, "status of the run": _status})


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


def _table(registry: Registry[Any], kind: str, columns: Mapping[str, Cell]) -> str:
    """A row for each plugin of a kind: its name, and what the cells say of it."""
    lines = [[kind, *columns], ["---"] * (len(columns) + 1)]
    lines += [[f"`{name}`", *(cell(plugin) for cell in columns.values())] for name, plugin in registry.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _summary(plugin: Any) -> str:
    """The first line of the plugin's documentation, as part of a table."""
    kind = plugin if isinstance(plugin, type) else type(plugin)
    return (inspect.getdoc(kind) or "").partition("\n")[0].removesuffix(".").replace("|", "\\|")


def _status(rule: FindingRule) -> str:
    return "(a note)" if rule.status is None else f"`{rule.status.value}`"


def _reads(criterion: HeadCriterion) -> str:
    return ", ".join(f"`{name}`" for name in criterion.reads) or "–"


def _help(command: list[str]) -> str:
    """Return what `--help` prints, at a width that does not depend on the terminal."""
    printed = io.StringIO()
    environment = mock.patch.dict(os.environ, {"COLUMNS": _WIDTH, "NO_COLOR": "1"})
    with environment, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return printed.getvalue().strip()
