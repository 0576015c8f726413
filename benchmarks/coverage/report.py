"""Results in words, as a table, and in sum."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

RIGHT = 1e-4  # largest deviation of a statistic that is right
EQUAL = 1e-4  # largest deviation of outputs that are the same, relative to the largest output
GOALS = {"observed fully and right": 35, "heads prunable": 25, "tokens droppable": 15}
_HEADER = {
    "name": "architecture",
    "features": "features",
    "observed": "observed",
    "right": "right (max deviation)",
    "heads": "heads prunable",
    "tokens": "tokens droppable",
}
_WIDTHS = {"features": 40, "observed": 46, "right": 26, "heads": 46, "tokens": 46}


def row(measured: Mapping[str, Any]) -> dict[str, str]:
    """Describe one architecture."""
    return {
        "name": measured["name"],
        "features": measured["features"],
        "observed": _observed(measured["observation"]),
        "right": _right(measured["statistics"], measured["observation"].get("observed", 0)),
        "heads": _heads(measured["heads"]),
        "tokens": _tokens(measured["tokens"]),
    }


def totals(measured: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the number of architectures of each kind."""
    return {
        "architectures": len(measured),
        "without attention": sum(not each["observation"].get("sites") for each in measured),
        "observed fully and right": sum(is_observed(each) and is_right(each) for each in measured),
        "observed in part and right": sum(
            0 < each["observation"].get("observed", 0) < each["observation"]["sites"] and is_right(each)
            for each in measured
        ),
        "heads prunable": sum(is_prunable(each) for each in measured),
        "heads prunable in part": sum(
            0 < each["heads"].get("prunable", 0) < each["heads"]["sites"] for each in measured
        ),
        "tokens droppable": sum(is_droppable(each) for each in measured),
        "wrong": sum(is_wrong(each) for each in measured),
        "crashes": sum(bool(each["crashes"]) for each in measured),
    }


def goals(sums: Mapping[str, int]) -> list[dict[str, Any]]:
    return [
        {"goal": name, "measured": sums[name], "at_least": least, "holds": sums[name] >= least}
        for name, least in GOALS.items()
    ]


def is_observed(measured: Mapping[str, Any]) -> bool:
    """Return True if all attention modules are observed, none is missed, and outputs stay as they are."""
    seen = measured["observation"]
    return bool(seen.get("sites")) and seen["observed"] == seen["sites"] and seen["unchanged"] and not seen["missed"]


def is_right(measured: Mapping[str, Any]) -> bool:
    """Return True if something could be compared, and all of it is right."""
    largest = measured["statistics"].get("largest")
    return largest is not None and largest < RIGHT


def is_prunable(measured: Mapping[str, Any]) -> bool:
    """Return True if all modules lose heads, and outputs are those of the masked model and not of the whole one."""
    heads = measured["heads"]
    is_all = bool(heads.get("sites")) and heads["prunable"] == heads["sites"]
    return is_all and heads["deviation"] < EQUAL < heads["effect"]


def is_droppable(measured: Mapping[str, Any]) -> bool:
    """Return True if tokens are dropped in at least one stack of layers, and what could be compared is right."""
    tokens = measured["tokens"]
    return tokens.get("droppable", 0) > 0 and (tokens["deviation"] or 0.0) < EQUAL


def is_wrong(measured: Mapping[str, Any]) -> bool:
    """Return True if something was computed, without a refusal, and is not what it must be."""
    seen, statistics, heads, tokens = (measured[part] for part in ("observation", "statistics", "heads", "tokens"))
    return (
        bool(seen.get("missed"))
        or seen.get("unchanged") is False
        or (statistics.get("largest") or 0.0) >= RIGHT
        or heads.get("deviation", 0.0) >= EQUAL
        or (tokens.get("deviation") or 0.0) >= EQUAL
    )


def storable(value: Any) -> Any:
    """Return the same with three digits of each number, and words for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: storable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [storable(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.3g}") if math.isfinite(value) else str(value)
    return value


def print_table(rows: Sequence[Mapping[str, str]]) -> None:
    widths = {key: max(len(_cell(each, key)) for each in (_HEADER, *rows)) for key in _HEADER}
    for each in (_HEADER, *rows):
        print("  ".join(f"{_cell(each, key):<{width}}" for key, width in widths.items()).rstrip())


def _cell(words: Mapping[str, str], key: str) -> str:
    return textwrap.shorten(words[key], _WIDTHS.get(key, 80), placeholder=" …")


def _observed(seen: Mapping[str, Any]) -> str:
    parts = [f"{seen['observed']} of {seen['sites']}" if seen.get("sites") else "–"]
    parts += [f"MISSED: {', '.join(seen['missed'])}"] if seen.get("missed") else []
    parts += ["CHANGES the outputs"] if seen.get("unchanged") is False else []
    return "; ".join([*parts, *seen["reasons"]])


def _right(statistics: Mapping[str, Any], observed: int) -> str:
    largest = statistics.get("largest")
    if largest is None:
        return "; ".join(["–", *statistics["reasons"]])
    compared = "" if statistics["compared"] == observed else f" ({statistics['compared']} of {observed} compared)"
    return (f"{largest:.0e}" if largest < RIGHT else _wrong(largest)) + compared


def _heads(heads: Mapping[str, Any]) -> str:
    if not heads.get("prunable"):
        return "; ".join(["–", *heads["reasons"]])
    words = f"{heads['prunable']} of {heads['sites']}"
    words += f" ({heads['deviation']:.0e})" if heads["deviation"] < EQUAL else f" {_wrong(heads['deviation'])}"
    return "; ".join([words, *heads["reasons"]])


def _tokens(tokens: Mapping[str, Any]) -> str:
    if not tokens.get("droppable"):
        return "; ".join(["–", *tokens["reasons"]])
    words = "yes" if tokens["stacks"] == 1 else f"{tokens['droppable']} of {tokens['stacks']} stacks"
    if tokens["deviation"] is not None:
        is_equal = tokens["deviation"] < EQUAL
        words += f" ({tokens['deviation']:.0e})" if is_equal else f" {_wrong(tokens['deviation'])}"
    return "; ".join([words, *tokens["reasons"]])


def _wrong(deviation: float) -> str:
    return f"WRONG: {deviation:.2g}" if math.isfinite(deviation) else "WRONG: a number on one side only"
