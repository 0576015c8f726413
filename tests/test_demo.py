"""The demo and the command line, as a user runs them."""

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from attnwatch import AttentionHistory, RunStatus, cli, demo, diagnose

pytestmark = [
    pytest.mark.slow,
    pytest.mark.writes_pages,
    pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning"),
]


def test_demo_tells_the_faulty_run_from_the_healthy_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "_BATCH_SIZE", 6)  # and half of the steps
    runs = {}
    seen = demo.saw_what_it_should
    monkeypatch.setattr(demo, "saw_what_it_should", lambda finished: runs.update(finished) or seen(finished))
    assert cli.main(["demo", "--out", str(tmp_path), "--steps", "120"]) == 0
    printed = capsys.readouterr().out
    assert f"--logdir {tmp_path}" in printed
    assert printed.rstrip().endswith((tmp_path / "report.html").as_uri())
    assert "healthy" in (tmp_path / "report.html").read_text()
    assert re.search(r"healthy: healthy \(risk 0\.[0-4]", printed)
    assert re.search(r"faulty: not converging \(risk 0\.9", printed)
    assert re.search(r"step 1, the checkup: not_in_optimizer since step 0: .*q_proj", printed)
    assert re.search(r"step \d+, the curves: uniform_attention since step \d+", printed)
    for name, status in {"healthy": RunStatus.HEALTHY, "faulty": RunStatus.NOT_CONVERGING}.items():
        directory = tmp_path / name / "version_0"
        assert list(directory.glob("events.out.tfevents.*"))
        assert diagnose(AttentionHistory.load(directory / "attnwatch-run.npz")).status is status
    healthy, faulty = runs["healthy"], runs["faulty"]
    assert not seen({"healthy": faulty, "faulty": healthy})
    assert not seen({"healthy": healthy, "faulty": healthy})
    assert printed.count("heads): a step took") == 4
    assert "with 50% of them" in printed
    assert printed.count("final loss: ") == 2
    assert not demo.pruning_kept_up(healthy, healthy)  # it has lost no head
    assert demo.loss_kept_up(healthy, healthy)
    assert not demo.loss_kept_up(dataclasses.replace(healthy, history=_with_loss(healthy.history, 1.06)), healthy)


def _with_loss(history: AttentionHistory, factor: float) -> AttentionHistory:
    return dataclasses.replace(history, loss=factor * history.loss)


@pytest.mark.parametrize("place", ["on the path", "in an environment below", "in an environment elsewhere", "nowhere"])
def test_the_last_line_of_the_demo_works_as_typed(place, tmp_path, monkeypatch):
    here = tmp_path / "check out"
    folder = {"on the path": here / "bin", "in an environment below": here / ".venv" / "bin"}.get(
        place, tmp_path / "bin"
    )
    folder.mkdir(parents=True)
    for name in ("python", *(["tensorboard"] if place != "nowhere" else [])):
        (folder / name).write_text("#!/bin/sh\necho started with $*\n")
        (folder / name).chmod(0o755)
    here.mkdir(exist_ok=True)
    monkeypatch.chdir(here)
    monkeypatch.setattr("sys.executable", str(folder / "python"))
    if place == "on the path":
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    else:
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
    command = demo._tensorboard()
    typed = subprocess.run(f"{command} --logdir x", shell=True, capture_output=True, text=True, check=True)
    assert typed.stdout.strip().endswith("--logdir x")
    if place == "in an environment below":
        assert command == ".venv/bin/tensorboard"


def test_demo_refuses_fewer_steps_than_can_be_judged(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["demo", "--steps", "50"])
    assert exit.value.code == 2
    assert "must be an integer of at least 120, got '50'" in capsys.readouterr().err


def test_exit_code_is_1_when_it_was_not_seen(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "run_demo", lambda out, *, steps, seed: (out, steps, seed) != (Path(tmp_path), 130, 7))
    assert cli.main(["demo", "--out", str(tmp_path), "--steps", "130", "--seed", "7"]) == 1
