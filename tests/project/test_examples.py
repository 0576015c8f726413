"""Every example runs as its first lines say."""

import re
import subprocess
import sys

import pytest

from attnwatch import load_pruned
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow


def run(*command: str) -> str:
    finished = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=1800)
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


def test_plain_loop():
    printed = run("examples/plain_loop.py", "--steps", "5")
    assert "36  50%" in printed
    assert "the layers computed 7" in printed
    assert "attention: undetermined" in printed


def test_alerts():
    printed = run("examples/alerts.py")
    assert re.match(r"\[failure\] attnwatch: non_finite at step \d+\n", printed)  # rounding decides when
    assert printed.count("attnwatch:") == 1
    assert "1. rate_too_high" in printed


def test_checkup():
    printed = run("examples/checkup.py")
    faults = (
        "nothing was found",
        "padding_leak since step 0",
        "eval_mode since step 0",
        "not_in_optimizer since step 0",
    )
    places = [printed.index(fault) for fault in faults]
    assert places == sorted(places)
    assert printed.count("since step") == 3


def test_checkup_in_trainers():
    printed = run("examples/checkup_in_trainers.py")
    assert (
        printed.count("labels_shifted_twice   FOUND: each prediction is scored against the token after the next") == 2
    )
    assert printed.count("FOUND") == 2


def test_extending():
    printed = run("examples/extending.py", "--steps", "12")
    assert "Gini coefficient by layer: 0." in printed
    assert "18  25%" in printed


@pytest.mark.parametrize("lora", [[], ["--lora"]], ids=["whole", "lora"])
def test_transformers_trainer(lora, tmp_path):
    printed = run("examples/transformers_trainer.py", "--steps", "12", "--out", str(tmp_path), *lora)
    assert "loss on 512 held-out sentences" in printed
    assert "36  50%" in printed
    assert sum(parameter.numel() for parameter in load_pruned(tmp_path / "pruned").parameters()) < 22_000_000
    assert list((tmp_path / "runs").rglob("events.out.tfevents.*"))


def test_accelerate_loop_on_two_processes():
    launch = (
        "accelerate.commands.accelerate_cli",
        "launch",
        "--cpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    )
    printed = run("-m", *launch, "examples/accelerate_loop.py", "--steps", "3", "--cpu")
    assert printed.count("attention: undetermined (risk not known yet) at step 0") == 1
    assert "18  25%" in printed


def test_explain(tmp_path):
    printed = run("examples/explain.py", "--steps", "4", "--out", str(tmp_path))
    assert "previous_token (50 classes)" in printed
    assert "256 examples: accuracy" in printed
    assert "rank correlation with |importance|: attention received" in printed
    assert "Curve: deletion: area" in printed
    assert list(tmp_path.rglob("events.out.tfevents.*"))
    assert (tmp_path / "lines.txt").is_file()
