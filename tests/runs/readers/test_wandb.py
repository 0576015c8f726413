"""Runs of W&B on the disk."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnwatch.runs import read_run
from tests.support.histories import course, falling
from tests.support.kept_runs import assert_layers_are_those_of, logged, read_or_refused

wandb = pytest.importorskip("wandb")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")]
HISTORY = course(normalized_entropy=falling(0.99, 0.4), loss=falling(5, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of a run that wandb has written offline."""
    directory = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_SILENT", "true")
        run = wandb.init(mode="offline", dir=directory, project="tests", name="night\x1b[2J", config={"rate": 1e-3})
        for (step, numbers), loss in zip(logged(HISTORY), [*HISTORY.loss.tolist(), np.nan], strict=True):
            row = {f"train/{tag}": number for tag, number in numbers.items()}  # as transformers does
            run.log(row | {"train/loss": loss, "train/global_step": step})
        run.log({"picture": wandb.Image(np.zeros((2, 2, 3), dtype=np.uint8)), "note": "x" * 40_000})
        run.finish()
        wandb.teardown()  # only then its file is complete
    return directory


def test_run_has_what_was_logged(folder):
    run = read_run(folder)
    assert_layers_are_those_of(run.history, HISTORY)
    assert run.history.loss[:-1].tolist() == HISTORY.loss[:-1].tolist()
    assert (run.name, run.settings) == ("night\x1b[2J", {"rate": "0.001"})
    assert set(run.curves) == {"train/loss"}


def test_run_is_found_by_each_of_its_paths(folder):
    (file,) = {path.resolve() for path in folder.rglob("run-*.wandb")}
    for place in (folder / "wandb", folder / "wandb/latest-run", file.parent, file):
        assert len(read_run(place).history) == len(HISTORY)


def test_without_wandb_the_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb.proto", None)
    with pytest.raises(ImportError, match="reading a W&B run needs wandb: pip install wandb"):
        read_run(folder)


@settings(max_examples=60)
@given(share=st.floats(0, 1, exclude_max=True), damage=st.sampled_from(["cut", "bit"]))
def test_damaged_run_is_refused_or_read_up_to_its_end(folder, tmp_path_factory, share, damage):
    (file,) = {path.resolve() for path in folder.rglob("run-*.wandb")}
    content = bytearray(file.read_bytes())
    place = int(share * len(content))
    if damage == "cut":
        del content[place:]
    else:
        content[place] ^= 16
    copy = tmp_path_factory.mktemp("copy") / file.name
    copy.write_bytes(content)
    run = read_or_refused(copy, r"is damaged|does not begin like|no training loss|is not JSON")
    if run is None:
        return
    history, number = run.history, len(run.history)
    np.testing.assert_array_equal(history.steps, HISTORY.steps[:number])
    whole = read_run(folder)
    for tag, curve in run.curves.items():
        np.testing.assert_array_equal(curve.values, whole.curves[tag].values[: len(curve.values)])
    for name, values in history.values.items():  # of the last step a part may be missing
        np.testing.assert_array_equal(values[:-1], whole.history[name][: number - 1], err_msg=name)
