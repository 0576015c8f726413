"""Every example runs as its first lines say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(*command: str) -> str:
    finished = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_finetune_minilm(tmp_path):
    data = tmp_path / "reviews.tsv"
    lines = [f"{'a fine film' if i % 2 else 'a dull film'} number {i}\t{i % 2}" for i in range(900)]
    data.write_text("\n".join(["sentence\tlabel", *lines]))
    printed = run("examples/finetune_minilm.py", "--data", str(data), "--steps", "4", "--out", str(tmp_path / "out"))
    assert "accuracy on 512 held-out sentences" in printed
    assert "attention: undetermined" in printed
    assert list((tmp_path / "out").rglob("events.out.tfevents.*"))
