"""Complete programs and their edits, for `benchmarks.programs`."""

import ast

import pytest

from attnwatch import FindingKind
from benchmarks.programs.edits import SCRIPTS, all_edits
from benchmarks.programs.work import outcome_of

EDITS = all_edits()


def test_each_edit_applies_and_leaves_a_program():
    for edit in EDITS:
        ast.parse(edit.source())
    sources = [edit.source() for edit in EDITS]
    assert len(set(sources)) == len(sources)


def test_faults_are_named_by_kinds_that_exist():
    assert {kind for edit in EDITS for kind in edit.kinds} <= {kind.value for kind in FindingKind}
    assert {edit.program for edit in EDITS} == {path.stem for path in SCRIPTS.glob("*.py")}


def test_edit_whose_text_is_not_in_the_program():
    edit = next(edit for edit in EDITS if edit.replacements)
    wrong = type(edit)(edit.program, "wrong", (), (("no such text", ""),))
    with pytest.raises(ValueError, match="wrong: 'no such text' occurs 0 times"):
        wrong.source()


@pytest.mark.slow
@pytest.mark.parametrize("program", ["byte_gpt", "load_forecast", "ner_tags"])
def test_program_is_sound_as_it_is_and_its_error_is_told(program):
    edit = next(edit for edit in EDITS if edit.program == program)
    outcome = outcome_of(edit, steps=3)
    assert not outcome.error
    assert not outcome.alarms
    broken = type(edit)(program, "broken", (), (("def train(", "def other("),))
    assert "AttributeError" in outcome_of(broken, steps=3).error
