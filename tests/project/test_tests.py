"""The tests themselves."""

import re
from pathlib import Path

from tests.support.paths import ROOT

IMPORT = re.compile(r"^\s*(?:from|import) (tests\b[\w.]*)(?: import (.*))?$", re.MULTILINE)


def imported(text: str) -> set[str]:
    """Modules and names that a text imports of the tests, with those that scripts in it import."""
    return {f"{module}.{name}" for module, names in IMPORT.findall(text) for name in re.findall(r"\w+", names) or [""]}


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def test_no_test_module_imports_another():
    """What they share lies in tests/support. A script that a test starts may import that test."""
    found = {}
    for file in (ROOT / "tests").rglob("*.py"):
        names = imported(file.read_text(encoding="utf-8"))
        others = {each for each in names if ".test_" in each and not each.startswith(f"{name_of(file)}.")}
        if others:
            found[name_of(file)] = others
    assert found == {}
