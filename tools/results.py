"""Stored results of benchmarks."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def newest(benchmark: str) -> dict[str, Any]:
    """Return the newest stored result of a benchmark."""
    files = (ROOT / "benchmarks" / "results").glob(f"{benchmark}-*.json")
    return max((json.loads(file.read_text()) for file in files), key=lambda result: result["date"])


def machine(result: dict[str, Any]) -> str:
    """Return the machine and the date of a result in words."""
    hardware = result["hardware"]
    return f"{hardware['gpu'] or str(hardware['cores']) + ' CPU cores (' + hardware['cpu'] + ')'}, {result['date']}"
