"""A schedule from outside of the package: how many heads each cut takes, in a run and in a resumed one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint

import attnwatch
from attnwatch import ConfigurationError, Schedule
from attnwatch.heads.schedule import PruningSchedule
from tests.support.equality import assert_same_weights
from tests.support.lightning_training import pruning, train

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")


class Late(Schedule):
    name = "late"

    def __call__(self, progress):
        return progress**2


class Waiting(Schedule):
    """Nothing goes at first."""

    name = "waiting"

    def __call__(self, progress):
        return 0 if progress < 0.5 else 1


class Failing(Schedule):
    name = "failing"

    def __call__(self, progress):
        raise RuntimeError("no such time")


class Falling(Schedule):
    name = "falling"

    def __call__(self, progress):
        return 1 - progress


class Short(Schedule):
    name = "short"

    def __call__(self, progress):
        return progress / 2


class Text(Schedule):
    name = "text"

    def __call__(self, progress):
        return "half"


def spread(schedule, num_cuts=4, target=0.5) -> PruningSchedule:
    return PruningSchedule.spread(target, start=10, end=40, num_cuts=num_cuts, total_steps=100, schedule=schedule)


@pytest.mark.parametrize("given_as", ["late", Late, Late()], ids=["name", "class", "instance"])
def test_cuts_take_what_the_schedule_says(registered, given_as):
    registered(Late)
    schedule = spread(given_as)
    assert schedule.steps == (10, 20, 30, 40)
    assert schedule.targets == pytest.approx([0.5 / 16, 0.5 / 4, 0.5 * 9 / 16, 0.5])


@given(st.integers(1, 9), st.floats(0.01, 0.99))
def test_cubic_is_that_of_zhu_and_gupta(num_cuts, target):
    """s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n Δt))³, eq. 1, from an initial sparsity of 0."""
    share_over = [(index + 1) / num_cuts for index in range(num_cuts)]
    expected = [target + (0 - target) * (1 - share) ** 3 for share in share_over]
    assert spread("cubic", num_cuts, target).targets == pytest.approx(expected)
    assert spread("linear", num_cuts, target).targets == pytest.approx([target * share for share in share_over])


def test_cut_of_nothing_is_left_out():
    assert spread(Waiting()).steps == (20, 30, 40)
    assert spread(Waiting()).targets == (0.5, 0.5, 0.5)


CUTS = {"late": [(10, 6)], "linear": [(4, 2), (10, 4)], "cubic": [(4, 4), (10, 2)]}  # of 8 heads, two at a time


@pytest.mark.slow
def test_heads_go_by_the_schedule_also_after_a_resume(registered, tmp_path):
    registered(Late)

    def run(schedule, **more):
        callback = pruning(0.75, schedule=schedule, grouping="within", min_heads=0)
        saves = ModelCheckpoint(tmp_path / schedule, filename="{step}", every_n_train_steps=4, save_top_k=-1)
        return callback, train(callback, saves, limit_train_batches=4, **more)

    for schedule, cuts in CUTS.items():
        whole, expected = run(schedule)
        assert [(cut.step, cut.plan.num_removed) for cut in whole.cuts] == cuts
        resumed, module = run(schedule, ckpt_path=tmp_path / schedule / "step=8.ckpt")
        assert [cut.plan for cut in resumed.cuts] == [cut.plan for cut in whole.cuts]
        assert_same_weights(module, expected)


def test_names_are_listed(registered):
    registered(Late)
    with pytest.raises(
        ConfigurationError, match=r"`schedule` must be one of .*'cubic', .*'late', or a Schedule; got 'l"
    ):
        pruning(schedule="later")


WRONG = {
    "failing": (Failing, r"the schedule 'failing' \(.*Failing\) failed with RuntimeError: no such time"),
    "falling": (
        Falling,
        r"'falling' .* must rise to 1, because removed heads do not return; got 0.75, 0.5, 0.25, 0",
    ),
    "short": (Short, r"'short' .* must rise to 1, .* got 0.125, 0.25, 0.375, 0.5"),
    "text": (Text, r"'text' .* must return a number from 0 to 1, got 'half' at 0.25"),
}


@pytest.mark.parametrize(("schedule", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_before_the_first_step(schedule, message):
    with pytest.raises(ConfigurationError, match=message):
        spread(schedule())
    with pytest.raises(ConfigurationError, match=message):
        train(pruning(schedule=schedule(), num_cuts=4), steps=12)


def test_wrong_declarations_are_named():
    with pytest.raises(
        ConfigurationError, match=r"the schedule 'mine' .* must have a method `__call__\(self, progress\)`"
    ):
        attnwatch.register(type("Mine", (Schedule,), {"name": "mine"}))
    with pytest.raises(ConfigurationError, match=r"'cubic' .*Mine.* has the name of the schedule 'cubic'"):
        attnwatch.register(type("Mine", (Late,), {"name": "cubic"}))
