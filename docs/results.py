"""Stored results of benchmarks."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def newest(benchmark: str) -> dict[str, Any]:
    files = (ROOT / "benchmarks" / "results").glob(f"{benchmark}-*.json")
    return max((json.loads(file.read_text()) for file in files), key=lambda result: result["date"])


def machine(result: dict[str, Any]) -> str:
    hardware = result["hardware"]
    return f"{hardware['gpu'] or str(hardware['cores']) + ' CPU cores (' + hardware['cpu'] + ')'}, {result['date']}"
