"""Check that docstrings begin with a sentence in the imperative or with a noun phrase, and end their first line.

    python -m tools.check_docstrings [FOLDER …]

Prints each docstring that begins with a fragment; the exit code is 1 where there is one.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

_FIRST_WORDS = """
    after although and as at because before behind beside between but by else everything for from how if in into like
    none not nothing now of on once only or outside over per so than that then there these they this those to under
    unless until what whatever when where whether which while who whoever whose why with within without
"""
FRAGMENTS = frozenset(word.capitalize() for word in _FIRST_WORDS.split())


def fragments(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the first words of each docstring that begins with a fragment."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        words = (text or "").split()
        if words and words[0].strip(",.:;") in FRAGMENTS:
            yield node.body[0].lineno, " ".join(words[:9])


def main(folders: list[str]) -> int:
    """Check all Python files in these folders and return the exit code."""
    files = sorted(file for folder in folders for file in Path(folder).rglob("*.py"))
    found = [(file, *each) for file in files for each in fragments(file.read_text(encoding="utf-8"))]
    for file, line, words in found:
        print(f"{file}:{line}: the docstring begins with a fragment: {words} …")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["attnwatch"]))
