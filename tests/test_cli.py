"""The command `attnwatch inspect`, as far as it needs no model; `report/test_model_page.py` has the rest."""

import os
import re
import subprocess
import sys

import pytest

from attnwatch.cli import main
from tests.support.records import a_record


@pytest.mark.parametrize("command", ["judge", "inspect", "demo"])
def test_help_says_what_a_command_does_and_what_its_exit_code_means(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Exit code: 0" in shown
    for option in set(re.findall(r"--\w[\w-]*", shown)):
        assert re.search(rf"{option}( [A-Z_]+)? [A-Za-z]", shown), f"{option} is not explained"


def test_package_is_run_as_a_module():
    command = [sys.executable, "-m", "attnwatch", "judge", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.startswith("usage: attnwatch judge")


def test_model_is_inspected_with_a_text_only(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(tmp_path)])
    assert ended.value.code == 2
    assert "the following arguments are required: --text" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pipe", "n" * 300])
def test_page_that_the_system_refuses_is_an_error_with_a_remedy(tmp_path, capsys, name):
    os.mkfifo(tmp_path / "pipe")
    a_record().save(tmp_path / "run.npz")
    assert main(["report", str(tmp_path / "run.npz"), "--out", str(tmp_path / name)]) == 2
    assert re.fullmatch(
        rf"attnwatch report: `--out`: '.*{name}' can't be written \(.*\); give the path of a file in a folder that you "
        r"may write to\.\n",
        capsys.readouterr().err,
    )


def test_model_page_does_not_replace_what_is_no_page(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("The text.")
    text = str(tmp_path / "text.txt")
    assert main(["inspect", "model", "--text", text, "--out", text]) == 2
    assert re.search(r"`--out`: '.*text\.txt' is not a page", capsys.readouterr().err)


@pytest.mark.parametrize("out", [".", "nowhere/page.html"])
def test_page_that_can_not_be_written_is_refused_before_anything_is_loaded(tmp_path, capsys, out):
    assert main(["inspect", "model", "--text", "text.txt", "--out", str(tmp_path / out)]) == 2
    assert re.search(
        r"`--out`: .* (is a folder|lies in a folder that is not there); give the path", capsys.readouterr().err
    )


@pytest.mark.slow
def test_reader_that_goes_away_is_no_error(tmp_path):
    """As in `attnwatch judge RUN | head -1`."""
    a_record().save(tmp_path / "run.npz")
    command = [sys.executable, "-c", "import sys; from attnwatch.cli import main; sys.exit(main(sys.argv[1:]))"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "judge", str(tmp_path / "run.npz")], **options) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
