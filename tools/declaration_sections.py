"""Texts that follow from declarations in the package."""

import contextlib
import io
import os
import re
from unittest import mock

from attnwatch.cli import main

_WIDTH = "100"


def command_line() -> str:
    """Return the help of the command line and of each of its commands."""
    overview = _help([])
    commands = re.findall(r"^    (\w+)  ", overview, re.MULTILINE)
    parts = [f"```text\n{overview}\n```"]
    parts += [f"## attnwatch {command}\n\n```text\n{_help([command])}\n```" for command in commands]
    return "\n\n".join(parts)


def _help(command: list[str]) -> str:
    """Return what `--help` prints, at a width that does not depend on the terminal."""
    printed = io.StringIO()
    environment = mock.patch.dict(os.environ, {"COLUMNS": _WIDTH, "NO_COLOR": "1"})
    with environment, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return printed.getvalue().strip()
