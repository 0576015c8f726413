"""Judging runs from what was kept of them."""

import dataclasses
import json
import re

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from attnwatch import ConfigurationError, RunStatus, diagnose
from attnwatch.cli import main
from attnwatch.dashboard import TOTAL_STEPS_TAG
from attnwatch.diagnosis import Diagnosis
from attnwatch.diagnosis.signals import SIGNALS, signals_of
from attnwatch.runs import RunRecord, read_run
from tests.support.histories import OBSERVATIONS, SITES, course, falling, write_log

LOSS = falling(5.0, 1.0)


def test_history_comes_back_from_the_logs(tmp_path):
    recorded = course(normalized_entropy=falling(0.99, 0.4), max_logit=falling(1, 20), loss=LOSS)
    write_log(tmp_path, recorded)
    back = read_run(tmp_path).history
    assert back.sites == tuple(f"layer_{site}" for site in range(SITES))
    np.testing.assert_array_equal(back.steps, recorded.steps)
    for name in ("normalized_entropy", "max_logit"):  # of each layer
        np.testing.assert_allclose(back[name][:, :, 0], recorded[name].mean(2), rtol=1e-5)
    for name in ("entropy", "nonfinite"):  # of the whole model
        np.testing.assert_allclose(
            back[name][:, :, 0], recorded[name].mean((1, 2))[:, None].repeat(SITES, 1), rtol=1e-5
        )
    np.testing.assert_allclose(back.loss, LOSS, rtol=1e-5)


def test_loss_is_known_only_where_it_was_logged(tmp_path):
    """Every 50 steps, as Lightning logs it: no course that a loss could be judged by."""
    recorded = course(normalized_entropy=falling(0.99, 0.4), loss=np.full(OBSERVATIONS, np.nan))
    write_log(tmp_path, recorded, loss_tag="other")
    with SummaryWriter(tmp_path) as writer:
        for step in range(49, 400, 50):
            writer.add_scalar("train_loss", 4.0 - step / 400, step)
    back = read_run(tmp_path, loss_tag="train_loss").history
    assert back.steps[np.isfinite(back.loss)].tolist() == [50, 100, 150, 200, 250, 300, 350]
    assert np.isnan(signals_of(back)[[signal.name.startswith("loss") for signal in SIGNALS]]).all()


def test_layers_are_in_their_order(tmp_path):
    recorded = course()
    values = {name: np.repeat(array, 3, axis=1) for name, array in recorded.values.items()}
    sites = tuple(f"layers.{site}.attn" for site in range(3 * SITES))
    write_log(tmp_path, dataclasses.replace(recorded, sites=sites, values=values))
    assert read_run(tmp_path).history.sites == tuple(f"layer_{site}" for site in range(3 * SITES))


def test_run_whose_layers_were_not_logged_is_judged_as_a_whole(tmp_path):
    write_log(tmp_path, course(normalized_entropy=0.999), layers=0)
    back = read_run(tmp_path).history
    assert back.sites == ("model",)
    assert diagnose(back).status is RunStatus.NOT_CONVERGING


@pytest.mark.parametrize("statistics", [{}, {"normalized_entropy": 0.999}, {"nonfinite": 0.5}, {"max_logit": 5000.0}])
def test_verdict_from_the_logs_is_the_verdict_of_the_run(tmp_path, statistics):
    recorded = course(**statistics)
    if "max_logit" in statistics:
        recorded["max_logit"][:5] = 10
    write_log(tmp_path, recorded)
    back, own = diagnose(read_run(tmp_path).history), diagnose(recorded)
    assert (back.status, back.risk) == (own.status, own.risk)
    assert [finding.kind for finding in back.findings] == [finding.kind for finding in own.findings]


@pytest.mark.parametrize("kept_as", ["history", "logs"])
@pytest.mark.parametrize("entropy", [np.linspace(0.9, 0.3, 40), np.full(40, 0.999)], ids=["learns", "uniform"])
def test_command_says_what_is_wrong_and_its_exit_code_too(tmp_path, capsys, kept_as, entropy):
    code = int(entropy[-1] == 0.999)
    noise = 0.05 * np.random.default_rng(0).normal(size=40)
    recorded = course(normalized_entropy=entropy, loss=LOSS * np.exp(noise))
    path = tmp_path / "run.npz" if kept_as == "history" else tmp_path / "logs"
    if kept_as == "history":
        recorded.save(path)
    else:
        write_log(path, recorded)
    assert main(["judge", str(path)]) == code
    printed = capsys.readouterr().out
    assert "40 observations, steps 0 to 390, 4 sites" in printed
    assert ("not converging" in printed) is (code == 1)
    assert ("uniform_attention since step 0" in printed) is (code == 1)
    assert printed.count(f"{entropy[0]:.3g} → {entropy[-1]:.3g}") == SITES


def test_verdict_of_the_monitor_stands(tmp_path, capsys):
    """As the page shows it: the monitor may have had other rules. With a length, the run is judged anew."""
    history = course(normalized_entropy=falling(0.99, 0.4), max_logit=falling(1, 20), loss=LOSS)
    verdict = Diagnosis(RunStatus.UNSTABLE, (), step=int(history.steps[-1]))
    RunRecord("run", history, judged=verdict).save(tmp_path / "run.npz")
    assert main(["judge", str(tmp_path / "run.npz")]) == 1
    assert "unstable" in capsys.readouterr().out
    assert main(["judge", str(tmp_path / "run.npz"), "--total-steps", "2000"]) == 0


def test_command_foresees_more_where_the_budget_is_known(tmp_path, capsys):
    uniform = course(normalized_entropy=0.999, max_logit=0.01, loss=np.full(40, 3.0), every=1)  # 40 steps
    uniform.save(tmp_path / "run.npz")
    assert main(["judge", str(tmp_path / "run.npz")]) == 2  # too early to say
    assert main(["judge", str(tmp_path / "run.npz"), "--total-steps", "150"]) == 1
    assert main(["judge", str(tmp_path / "run.npz"), "--total-steps", "0"]) == 2
    assert "`total_steps` must be an integer of at least 1" in capsys.readouterr().err
    assert main(["judge", str(tmp_path / "run.npz"), "--total-steps", "39"]) == 2
    assert "`total_steps`: the run already has 40 steps, got 39; give the number" in capsys.readouterr().err


@pytest.mark.parametrize("kept_as", ["history", "logs"])
def test_length_of_the_run_travels_with_it(tmp_path, capsys, kept_as):
    uniform = course(normalized_entropy=0.999, max_logit=0.01, loss=np.full(40, 3.0), every=1)  # 40 steps
    uniform, path = dataclasses.replace(uniform, total_steps=150), tmp_path / "run"
    if kept_as == "history":
        uniform.save(path)
    else:
        write_log(path, uniform)
        with SummaryWriter(path) as writer:
            writer.add_scalar(TOTAL_STEPS_TAG, 150, 39)
    assert str(diagnose(uniform)) == str(diagnose(uniform, total_steps=150)) != str(diagnose(uniform, total_steps=9999))
    assert main(["judge", str(path)]) == 1
    assert str(diagnose(uniform)).splitlines()[0] in capsys.readouterr().out
    assert main(["judge", str(path), "--total-steps", "9999"]) == 2  # too early to say


def test_statistics_that_were_not_recorded_are_not_known(tmp_path, capsys):
    dead = course(normalized_entropy=0.999)
    only = {"normalized_entropy": dead["normalized_entropy"]}
    dataclasses.replace(dead, values=only).save(tmp_path / "run.npz")
    assert main(["judge", str(tmp_path / "run.npz")]) == 1
    assert "0.999 → 0.999                   – → –" in capsys.readouterr().out


def test_loss_tag_is_of_logs(tmp_path, capsys):
    course().save(tmp_path / "run.npz")
    assert main(["judge", str(tmp_path / "run.npz"), "--loss-tag", "loss"]) == 2
    assert "`loss_tag` applies to logs only" in capsys.readouterr().err


def test_command_names_what_was_not_observed(tmp_path, capsys):
    coverage = {"layers.0.attn": "observed", "layers.9.attn": "adds a bias to its logits"}
    dataclasses.replace(course(), coverage=coverage).save(tmp_path / "run.npz")
    assert main(["judge", str(tmp_path / "run.npz")]) == 0
    assert "not observed: layers.9.attn: adds a bias to its logits" in capsys.readouterr().out


def test_loss_is_taken_from_the_tag_that_is_asked_for(tmp_path):
    write_log(tmp_path, course(loss=LOSS), loss_tag="objective")
    assert np.isnan(read_run(tmp_path).history.loss).all()
    assert np.isfinite(read_run(tmp_path, loss_tag="objective").history.loss).all()
    with pytest.raises(ConfigurationError, match="`loss_tag` 'nll' was not logged; logged tags: objective"):
        read_run(tmp_path, loss_tag="nll")


def test_what_can_not_be_read_is_an_error_with_a_remedy(tmp_path, capsys):
    with SummaryWriter(tmp_path / "logs" / "version_0") as writer:
        writer.add_scalar("objective", 1.0, 0)
    (tmp_path / "text.npz").write_text("no history")
    np.savez(tmp_path / "list.npz", header=np.array(json.dumps([1])))
    np.savez(tmp_path / "empty.npz", header=np.array(json.dumps({"format": 1, "sites": [], "coverage": {}})))
    dataclasses.replace(course(), sites=("a",)).save(tmp_path / "shapes.npz")
    for path, message in (
        ("nowhere", "does not exist; give a saved history"),
        ("text.npz", "is not a saved attention history"),
        ("x" * 300, "can't be read: .*name too long"),
        ("list.npz", "is not a saved attention history"),
        ("empty.npz", "is damaged"),
        ("shapes.npz", "is damaged: its statistics have the shape"),
        ("logs", "no training loss under a usual name .*logged tags: objective"),
    ):
        assert main(["judge", str(tmp_path / path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("attnwatch judge: ")
        assert re.search(message, error)


def test_folder_of_a_model_is_no_run(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert main(["judge", str(tmp_path)]) == 2
    assert "holds a model, not a run; to inspect it: attnwatch inspect MODEL_DIR" in capsys.readouterr().err
