"""Scripts of the benchmark of the checkup under trainers."""

from dataclasses import replace

import pytest

from benchmarks.checkup import changes
from benchmarks.checkup.architectures import ADDED_ARCHITECTURES, ARCHITECTURES
from benchmarks.checkup.baselines import diagnosed
from benchmarks.checkup.edits import optimized, prepared
from benchmarks.checkup.odd_blind_trainings import in_turns
from benchmarks.checkup.odd_trainings import without_dropout
from benchmarks.checkup.scripts import run, train
from benchmarks.checkup.trainers import TRAINERS, NotExpressible

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")

STEPS = 4
SCRIPT = replace(prepared(without_dropout)(ARCHITECTURES["llama"]), steps=STEPS)


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize(
    "script",
    [SCRIPT, replace(SCRIPT, clip=0.1, schedule=lambda step: step / STEPS)],
    ids=["plain", "clipped, with a schedule"],
)
def test_trainers_train_as_the_plain_loop_does(trainer, script):
    here = TRAINERS[trainer](script).trained
    assert here.error == ""
    assert here.losses == pytest.approx(train(script).losses, rel=1e-4)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_trainers_accumulate_as_the_plain_loop_does(trainer):
    script = replace(prepared(without_dropout)(ADDED_ARCHITECTURES["sentence encoder"]), accumulate=2, steps=STEPS)
    losses = TRAINERS[trainer](script).trained.losses
    assert [sum(losses[step : step + 2]) / 2 for step in range(0, len(losses), 2)] == pytest.approx(
        train(script).losses, rel=1e-4
    )


@pytest.mark.parametrize("trainer", TRAINERS)
def test_trainers_find_what_the_plain_loop_finds(trainer):
    script = prepared(changes.freeze(changes.QUERIES_AND_KEYS))(SCRIPT)
    kinds = [[finding.kind.value for finding in ran.findings] for ran in (run(script), TRAINERS[trainer](script))]
    assert kinds == [["frozen_parameters"], ["frozen_parameters"]]


def test_what_a_trainer_does_not_do_is_told():
    with pytest.raises(NotExpressible, match="one optimizer"):
        TRAINERS["Trainer"](optimized(in_turns)(SCRIPT))
    with pytest.raises(NotExpressible, match="clears the gradients"):
        TRAINERS["Trainer"](replace(SCRIPT, clear="never"))


def test_diagnosed_training_is_the_plain_one():
    assert diagnosed(SCRIPT, STEPS).trained.losses == train(SCRIPT).losses
