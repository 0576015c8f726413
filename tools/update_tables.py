"""Write the tables of measurements into README.md and docs/, from the newest files in benchmarks/results.

    python -m tools.update_tables [--check]

A table stands between `<!-- begin x -->` and `<!-- end x -->`. `x` is the name of a function in one of the modules
`tools/*_sections.py`. With --check nothing is written, and the exit code is 1 where something is out of date. Lists
that follow from the package are written by `tools/plugin_tables.py` when the site is built.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

from tools.results import ROOT

_SECTION = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
_BEGIN = re.compile(r"<!-- begin (\w+) -->")


def sections() -> dict[str, Callable[[], str]]:
    """Return the functions that write sections, by name."""
    files = sorted(Path(__file__).parent.glob("*_sections.py"))
    modules = [importlib.import_module(f"tools.{file.stem}") for file in files]
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
    }


def updated(document: str, sections: dict[str, Callable[[], str]]) -> str:
    """Return a document with every section written anew.

    Raises:
        SystemExit: a section has a name that nobody knows, or no end.
    """
    complete = {name for _, name, _ in _SECTION.findall(document)}
    wrong = [name for name in _BEGIN.findall(document) if name not in complete & sections.keys()]
    if wrong:
        raise SystemExit(f"sections without an end, or of unknown names: {', '.join(wrong)}.")
    return _SECTION.sub(lambda match: f"{match[1]}{sections[match[2]]()}\n{match[3]}", document)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something is out of date")
    options = parser.parse_args()
    known, out_of_date = sections(), False
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        before = path.read_text(encoding="utf-8")
        after = updated(before, known)
        if before != after:
            out_of_date = True
            if options.check:
                print(f"{path.relative_to(ROOT)} is out of date: python -m tools.update_tables", file=sys.stderr)
            else:
                path.write_text(after, encoding="utf-8")
    return int(out_of_date and options.check)


if __name__ == "__main__":
    sys.exit(main())
