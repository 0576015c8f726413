"""Show doctests of docstrings as code, whether they stand under "Example:" or on their own."""

import re
from typing import Any

import griffe

_HEADING = re.compile(r"^( *)Example:$", re.MULTILINE)
_DOCTEST = re.compile(r"(?<=\n\n)>>> .*?(?=\n\n|\Z)", re.DOTALL)
"""A doctest that is not indented, and so not in a section."""


class Examples(griffe.Extension):
    """Rewrite docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **options: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_sections(obj.docstring.value)


def as_sections(docstring: str) -> str:
    """Return a docstring whose doctests griffe takes for code."""
    return _DOCTEST.sub(lambda doctest: f"```pycon\n{doctest[0]}\n```", _HEADING.sub(r"\1Examples:", docstring))
