"""Runs the tests with the oldest and the newest versions of transformers and Lightning that pyproject.toml allows.

    python -m tests.support.version_matrix [--numprocesses N] [ROW …]

The versions of a row go to a folder that is laid over the environment with the locked set. Left out are the tests that
depend on neither library, which `make test` runs.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.support.paths import ROOT

# Beside the two libraries, what they need of other libraries where the locked set does not have it.
ROWS = {
    "oldest": (
        *("transformers==4.57.6", "huggingface_hub==0.36.0", "tokenizers==0.22.1"),
        *("lightning==2.5.6", "pytorch-lightning==2.5.6"),
    ),
    "first-of-5": (
        *("transformers==5.0.0", "huggingface_hub==1.3.0", "tokenizers==0.22.1"),
        *("lightning==2.6.0", "pytorch-lightning==2.6.0"),
    ),
    "newest": ("transformers==5.24.0", "lightning==2.6.6", "pytorch-lightning==2.6.6"),
}
_FOLDER = ROOT / ".matrix"
_DEPENDS = re.compile(r"tests.support.(models|head_models)|trainers|transformers|lightning|coverage|examples/")
_COUNT = re.compile(r"(\d+) (passed|failed|skipped|error)")
_CHECK = """
import sys, attnwatch
from importlib.metadata import version
from pathlib import Path
root, *pins = sys.argv[1:]
assert Path(root) in Path(attnwatch.__file__).parents, f"attnwatch comes from {attnwatch.__file__}"
for name, pinned in (pin.split("==") for pin in pins):
    assert version(name) == pinned, f"{name} {version(name)} runs in the place of {pinned}"
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all by default")
    parser.add_argument("--numprocesses", default="2", help="of pytest-xdist, as in `make test`")
    arguments = parser.parse_args()
    lines, all_passed = [], True
    for row in arguments.rows or ROWS:
        begin = time.perf_counter()
        counts, passed = _run(ROWS[row], _FOLDER / row, arguments.numprocesses)
        all_passed &= passed
        numbers = [counts["passed"], counts["failed"] + counts["error"], counts["skipped"]]
        cells = [row, *numbers, f"{time.perf_counter() - begin:.0f} s"]
        lines.append("".join(f"{cell:>12}" for cell in cells) + f"  {', '.join(ROWS[row])}")
    print("\n" + "".join(f"{title:>12}" for title in ("row", "passed", "failed", "skipped", "time")) + "  versions")
    print("\n".join(lines))
    return 0 if all_passed else 1


def _run(pins: tuple[str, ...], overlay: Path, num_processes: str) -> tuple[Counter, bool]:
    """How many tests passed, failed and were skipped, and whether all is well."""
    print(f"\n{', '.join(pins)}", flush=True)
    _install(pins, overlay)
    path = [str(ROOT), str(overlay), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    subprocess.run([sys.executable, "-c", _CHECK, str(ROOT), *pins], env=environment, cwd=ROOT, check=True)
    every = ["-m", "slow or not slow"]
    command = [sys.executable, "-m", "pytest", "--quiet", f"--numprocesses={num_processes}", *every, *_tests()]
    running = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    last = ""
    for line in running.stdout:
        print(line, end="", flush=True)
        last = line.strip() or last
    counts = Counter({what: int(number) for number, what in _COUNT.findall(last)})
    return counts, running.wait() == 0 and counts["passed"] > 0


def _install(pins: tuple[str, ...], overlay: Path) -> None:
    complete = overlay / "pins.txt"
    if complete.is_file() and complete.read_text().split() == list(pins):
        return
    shutil.rmtree(overlay, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--target", str(overlay), *pins], check=True)
    complete.write_text("\n".join(pins))


def _tests() -> list[str]:
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file) for file in files if _DEPENDS.search(file.read_text())]


if __name__ == "__main__":
    sys.exit(main())
