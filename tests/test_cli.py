"""The command `attnwatch inspect`, as far as it needs no model; `report/test_model_page.py` has the rest."""

import re

import pytest

from attnwatch.cli import main


@pytest.mark.parametrize("command", ["judge", "inspect", "demo"])
def test_help_says_what_a_command_does_and_what_its_exit_code_means(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Exit code: 0" in shown
    for option in set(re.findall(r"--\w[\w-]*", shown)):
        assert re.search(rf"{option}( [A-Z_]+)? [A-Za-z]", shown), f"{option} is not explained"


def test_model_is_inspected_with_a_text_only(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(tmp_path)])
    assert ended.value.code == 2
    assert "the following arguments are required: --text" in capsys.readouterr().err


@pytest.mark.parametrize("out", [".", "nowhere/page.html"])
def test_page_that_can_not_be_written_is_refused_before_anything_is_loaded(tmp_path, capsys, out):
    assert main(["inspect", "model", "--text", "text.txt", "--out", str(tmp_path / out)]) == 2
    assert re.search(
        r"`--out`: .* (is a folder|lies in a folder that is not there); give the path", capsys.readouterr().err
    )
