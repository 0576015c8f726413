"""Markdown tables, and numbers as their cells."""

from collections.abc import Iterable, Mapping, Sequence


def table(rows: Iterable[Mapping[str, str]], caption: str = "") -> str:
    """Return a table of rows, each from the names of the columns to cells, and a caption below it."""
    rows = list(rows)
    return plain_table(list(rows[0]), [list(row.values()) for row in rows], caption)


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Return a table whose columns may share names."""
    lines = [_line(columns), "|" + "---|" * len(columns), *map(_line, rows)]
    return "\n".join([*lines, "", caption] if caption else lines)


def _line(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def interval(estimate: Mapping[str, float]) -> str:
    """Return an estimate with its 95% interval."""
    return f"{estimate['median']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


def points(estimate: Mapping[str, float]) -> str:
    """Return a difference in percentage points with its 95% interval."""
    return f"{estimate['median']:+.2f} ({estimate['low']:+.2f} to {estimate['high']:+.2f})"


def with_stderr(mean: float, stderr: float, style: str = ".2f") -> str:
    """Return a mean and its standard error."""
    return f"{mean:{style}} ± {stderr:.2f}"
