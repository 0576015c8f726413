"""A cause from outside of the package: ranked, shown, documented and left out where it fails, as those of attnwatch."""

import inspect

import numpy as np
import pytest

import attnwatch
from attnwatch import AttnwatchWarning, CauseRule, Clue, ConfigurationError
from attnwatch.dashboard.markdown import diagnosis_markdown
from attnwatch.diagnosis import RuleSet
from tests.support.histories import OBSERVATIONS, course, diagnose
from tools.plugin_tables import with_lists

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")


class StaleCache(CauseRule):
    """Batches come from a cache that is never renewed."""

    name = "stale_cache"
    title = "the batches come from a stale cache"
    remedy = "Delete the cache."
    prior = 9.0
    weights = {"uniform_everywhere": 2.0, "loss_falls": -1.0}  # noqa: RUF012


class FarKeys(CauseRule):
    """Queries attend to keys that are far away."""

    name = "far_keys"
    title = "positions are counted from the wrong end"
    remedy = "Count them from the start."

    def look(self, run):
        distance = float(run.evidence.mean("distance")[-1].mean())
        if distance > 10:
            yield Clue(f"keys are {distance:.0f} tokens away", 9.0)


def causes(**options):
    loss = np.geomspace(4, 2, OBSERVATIONS)
    return diagnose(course(normalized_entropy=0.999, loss=loss), **options).findings[0].causes


def failing(look) -> type[CauseRule]:
    return type("Failing", (FarKeys,), {"name": "failing", "look": look})


def test_a_cause_is_short():
    assert len(inspect.getsource(StaleCache).splitlines()) <= 12


def test_cause_is_ranked_by_its_weights(registered):
    registered(StaleCache)
    (first, *_) = causes()
    assert (first.name, first.title, first.remedy) == ("stale_cache", StaleCache.title, StaleCache.remedy)
    assert first.speaks_for == ("attention is uniform in all layers (normalized entropy 0.999 or more)",)
    assert first.speaks_against == ("the loss falls (4 → 2.05)",)


def test_cause_may_look_for_itself(registered):
    registered(FarKeys)
    (first, *_) = causes()
    assert (first.name, first.speaks_for) == ("far_keys", ("keys are 20 tokens away",))
    assert first.score > 0.9


def test_cause_is_shown_and_documented(registered):
    registered(StaleCache)
    diagnosis = diagnose(course(normalized_entropy=0.999))
    assert "1. stale_cache (" in str(diagnosis)
    assert "**stale cache** (" in diagnosis_markdown(diagnosis)
    row = "| `stale_cache` | Batches come from a cache that is never renewed | `uniform_everywhere` 2.0 |"
    assert f"{row} `loss_falls` 1.0 |" in with_lists("<!-- list causes -->")
    assert "**What to do:** Delete the cache." in with_lists("<!-- list cause_sections -->")


def test_cause_may_be_ruled_out_by_its_name(registered):
    registered(StaleCache)
    assert "stale_cache" not in [cause.name for cause in causes(ruled_out=["stale_cache"])]


@pytest.mark.parametrize(
    ("look", "reason"),
    [
        (lambda self, run: [][0], "IndexError: list index out of range"),
        (lambda self, run: ["a clue"], "TypeError: `look` must yield attnwatch.Clue with finite weights, got 'a clue'"),
        (lambda self, run: [Clue("so", float("nan"))], "TypeError: `look` must yield attnwatch.Clue with finite"),
        (lambda self, run: None, "TypeError: 'NoneType' object is not iterable"),
    ],
    ids=["an error", "no clue", "no number", "nothing"],
)
def test_cause_that_fails_is_named_once_and_left_out(registered, look, reason):
    registered(failing(look))
    rules = RuleSet()
    expected = rf"the cause 'failing' \({__name__}.Failing\) failed; causes are ranked without it from now on: {reason}"
    with pytest.warns(AttnwatchWarning, match=expected):
        assert next(cause.name for cause in causes(rules=rules)) == "not_in_optimizer"
    assert causes(rules=rules)
    rules.reset()
    with pytest.warns(AttnwatchWarning, match="'failing'"):
        causes(rules=rules)


def test_ctrl_c_in_a_cause_is_not_swallowed(registered):
    def look(self, run):
        raise KeyboardInterrupt

    registered(failing(look))
    with pytest.raises(KeyboardInterrupt):
        causes()


WRONG = {
    "no title": ({"title": ""}, "must have a `title`, which is shown to the user"),
    "no remedy": ({"remedy": ""}, "must have a `remedy`"),
    "no sign": ({"weights": {}}, r"must have `weights`, or a method `look\(run\)`; see attnwatch.CauseRule"),
    "an unknown sign": ({"weights": {"moon": 1.0}}, "has `weights` for unknown signs: moon; the known signs are "),
    "no number": ({"prior": float("inf")}, "must have finite numbers as `prior` and `weights`"),
    "a taken name": ({"name": "rate_too_low"}, "has the name of the cause 'rate_too_low'"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_what_a_cause_lacks_is_said_when_it_is_registered(changes, message):
    with pytest.raises(ConfigurationError, match=rf"the cause.*{__name__}.Wrong\) {message}"):
        attnwatch.register(type("Wrong", (StaleCache,), changes))


def test_every_cause_says_what_it_means_and_has_its_file():
    """Documentation is made of this."""
    for name, cause in CauseRule.registry.items():
        assert inspect.getdoc(type(cause)).splitlines()[0].endswith(".")
        assert type(cause).__module__ == f"attnwatch.diagnosis.causes.{name}"
