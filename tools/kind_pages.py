"""Pages of the documentation about each kind of finding. They are written when the site is built."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from attnwatch import Check, FindingRule
from tools.checkup_sections import scripts_of_first_runs
from tools.markdown import table
from tools.results import newest

Script = Mapping[str, Any]
"""A script of the benchmark and what was found in it, as stored."""
_IMAGES = Path(__file__).parent.parent / "docs" / "images" / "verdicts"
_THRESHOLD = """\
    options:
      heading_level: 3
      show_labels: false
"""


def kind_pages() -> dict[str, str]:
    """Return the text of each page by its path in the documentation."""
    checks = {f"reference/checks/{name}.md": _check_page(check) for name, check in Check.registry.items()}
    rules = {f"reference/findings/{name}.md": _rule_page(rule) for name, rule in FindingRule.registry.items()}
    return checks | rules


def _check_page(check: type[Check]) -> str:
    result = newest("checkup")
    said = {check.remedy: ""} | result["messages"].get(check.name, {})
    parts = [f"# {check.name}", inspect.getdoc(check) or "", "## What it says, and what to do"]
    for advice, what in said.items():
        parts += [f"> {what}", advice] if what else [advice]
    return "\n\n".join([*parts, *_how_often_right(check.name, result["scripts"])])


def _how_often_right(kind: str, scripts: Sequence[Script]) -> list[str]:
    """Return a section on how often a check found its fault, how often it reported it wrongly, and a table by fault."""
    faults = [script for script in scripts if script["kinds"][:1] == [kind]]
    if not faults:
        return []
    unseen = [script for script in scripts_of_first_runs() if script["kinds"][:1] == [kind]]
    others = [script for script in scripts if script["kinds"] and kind not in script["kinds"]]
    sound = [script for script in scripts if not script["kinds"] and not script["deliberate"]]
    parts = {
        "faults of this kind, first run on unseen scripts": unseen,
        "faults of this kind, all scripts today": faults,
        "other faults": others,
        "no fault": sound,
    }
    by_name: dict[str, list[Script]] = {}
    for script in faults:
        by_name.setdefault(script["name"], []).append(script)
    return [
        "## How often it is right",
        "Each script of [the benchmark](../../benchmarks/checkup.md) combines one fault, or none, with an architecture "
        "and a training loop.",
        table({"scripts with": name, "found in": _found_in(kind, part)} for name, part in parts.items() if part),
        "Faults of this kind:",
        table({"fault": name, "found in": _found_in(kind, part)} for name, part in by_name.items()),
    ]


def _found_in(kind: str, scripts: Sequence[Script]) -> str:
    """Return the number of scripts in which a check reported a fault. Notes count only in scripts with that fault."""
    found = sum(kind in script["found"] + script["notes"] * (kind in script["kinds"]) for script in scripts)
    return f"{found} of {len(scripts)}"


def _rule_page(rule: FindingRule) -> str:
    kind = type(rule)
    parts = [f"# {rule.name}"]
    if (_IMAGES / f"{rule.name}.png").exists():
        parts.append(f"![A run with {rule.name} beside a sound one](../../images/verdicts/{rule.name}.png)")
    parts += [inspect.getdoc(kind) or "", "## What to do", rule.remedy]
    if rule.note:
        parts.append(f"As a note: {rule.note}")
    counts = newest("verdicts")["kinds"].get(rule.name)
    if counts:
        parts += [
            "## How often it is right",
            f"{counts['runs']} runs of [the benchmark](../../benchmarks/diagnosis.md#findings) had this finding "
            f"halfway through their budget, and {counts['failed']:.0%} of them failed.",
        ]
    path = f"{kind.__module__}.{kind.__qualname__}"
    thresholds = [f"::: {path}.{each.name}\n{_THRESHOLD}" for each in fields(rule) if each.name != "enabled"]
    return "\n\n".join([*parts, *(["## Thresholds", *thresholds] if thresholds else [])])
