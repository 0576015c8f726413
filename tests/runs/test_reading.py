"""Finding of a run in a file or a folder, and what is said where there is none."""

import re

import pytest

from attnwatch import ConfigurationError
from attnwatch.cli import main
from attnwatch.runs import read_run
from tests.support.histories import course

TABLE = "step,loss\n0,3\n10,2\n"


def write_table(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.csv").write_text(TABLE)


def test_only_run_below_a_folder_is_read_however_nested(tmp_path):
    write_table(tmp_path / "a/b/c/d")
    (tmp_path / "a/model").mkdir()
    assert read_run(tmp_path).name == "d"


def test_several_runs_are_listed_with_their_formats(tmp_path):
    write_table(tmp_path / "b/one")
    (tmp_path / "a").mkdir()
    course().save(tmp_path / "a/two.npz")
    with pytest.raises(ConfigurationError) as raised:
        read_run(tmp_path)
    assert re.search(
        r"contains 2 runs; give one of them: '.*/a/two\.npz' \(saved history\), '.*/b/one/metrics\.csv' \(Lightning ",
        str(raised.value),
    )


def test_long_list_is_cut(tmp_path):
    for number in range(14):
        write_table(tmp_path / f"{number:02}")
    with pytest.raises(ConfigurationError, match=r"contains 14 runs; .*09/metrics\.csv' \(.*\) and 4 more\.$"):
        read_run(tmp_path)


def test_saved_history_is_read_before_the_log_beside_it(tmp_path):
    write_table(tmp_path)
    course().save(tmp_path / "attnwatch-run.npz")
    assert read_run(tmp_path).name == "attnwatch-run"


def test_links_lead_to_a_run_once_and_nowhere_in_circles(tmp_path):
    write_table(tmp_path / "runs/first")
    (tmp_path / "runs/latest").symlink_to(tmp_path / "runs/first")
    (tmp_path / "runs/first/up").symlink_to(tmp_path)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "runs/gone").symlink_to(tmp_path / "nowhere")
    assert len(read_run(tmp_path).history) == 2
    assert len(read_run(tmp_path / "runs/latest").history) == 2


def test_circle_of_links_ends_in_words(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ConfigurationError, match=r"/a' does not exist|can't be read"):
        read_run(tmp_path / "a")


def test_hidden_folders_are_left_out(tmp_path):
    write_table(tmp_path / ".trash/old")
    with pytest.raises(ConfigurationError, match=r"and the folders below it contain no run; .*TensorBoard log"):
        read_run(tmp_path)


def test_folder_of_many_files_is_not_searched_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("attnwatch.runs.reading._MOST_ENTRIES", 20)
    for number in range(21):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(ConfigurationError, match="has more than 20 files and folders; give the folder of one run"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("loss", "code", "word"),
    [
        ([3.0 - 0.01 * step for step in range(120)], 2, "undetermined"),
        ([3.0 - 0.01 * step for step in range(118)] + ["nan"] * 2, 1, "loss_non_finite since step 118"),
        (["inf"] * 120, 1, "loss at 120 of 120 observations: none is finite"),
        ([3.0 + 0.05 * step for step in range(120)], 1, "loss_diverged since step"),
    ],
    ids=["falls", "nan", "inf", "rises"],
)
def test_loss_alone_is_judged_as_far_as_it_can_be(tmp_path, capsys, loss, code, word):
    rows = "".join(f"{step},{value}\n" for step, value in enumerate(loss))
    (tmp_path / "metrics.csv").write_text("step,loss\n" + rows)
    assert main(["judge", str(tmp_path)]) == code
    printed = capsys.readouterr().out
    assert word in printed
    assert "attention alone" not in printed
    assert "No attention was recorded, so the run is judged by its loss alone" in printed
    assert "(Lightning CSVLogger table): AttentionHistory(120 observations, steps 0 to 119, 0 sites)" in printed


def test_names_from_files_do_not_move_the_cursor(tmp_path, capsys):
    folder = tmp_path / "night\x1b[2J\u202e<b>\nhealthy"
    write_table(folder)
    assert main(["judge", str(folder)]) == 2
    printed = capsys.readouterr().out
    assert r"night\x1b[2J\u202e<b>\nhealthy (Lightning CSVLogger table" in printed
    (folder / "metrics.csv").write_text("step,\x1b[2J\n1,2\n")
    assert main(["judge", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert "\u202e" not in error
