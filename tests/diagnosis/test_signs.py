"""Signs in histories that have them, and in the nearest ones that do not."""

import numpy as np
import pytest

from attnwatch import AttentionHistory, Thresholds
from attnwatch.diagnosis import Evidence, RiskModel, RunCourse
from attnwatch.diagnosis.signs import SIGNS, signs_of
from tests.support.histories import course

NUMBER = 60
_NOISE = np.random.default_rng(0).normal(size=NUMBER)


def noisy(values, *, noise: float = 0.02) -> np.ndarray:
    return np.broadcast_to(values, NUMBER) * np.exp(noise * _NOISE)


def run(sites=slice(None), **statistics) -> AttentionHistory:
    """A run with a noisy spread of the logits, and a loss that falls, unless these say otherwise."""
    taken = {"loss": noisy(np.geomspace(4, 2, NUMBER)), "logit_std": noisy(2.0)} | statistics
    return course(sites=sites, observations=NUMBER, **taken)


def seen(history: AttentionHistory) -> dict[str, str]:
    return dict(signs_of(RunCourse(Evidence(history, Thresholds(), RiskModel.zero(), None))))


def pieces(*parts: tuple[float, int]) -> np.ndarray:
    return np.concatenate([np.full(number, value) for value, number in parts])


def one_site(statistic: str, values: np.ndarray) -> AttentionHistory:
    """The ordinary run, in which one site takes another course."""
    history = run(logit_std=noisy(1.0))
    history[statistic][:, 0] = np.broadcast_to(values, NUMBER)[:, None]
    return history


def blind() -> AttentionHistory:
    return run(sites=[0], normalized_entropy=np.nan)


def trained(*, sites=slice(None), **columns) -> AttentionHistory:
    """The ordinary run with layer statistics as a training has them."""
    return run(sites=sites, **{"update_ratio": 0.01, "gradient_norm": 1.0, "weight_norm": 8.0} | columns)


def of_layers(*norms: float) -> AttentionHistory:
    """The ordinary run, in which the layers' outputs have these norms."""
    history = run(output_norm=1.0)
    history.layers["output_norm"][:] = norms
    return history


PLAIN = run()
FLAT = noisy(4.0, noise=0.005)
LEARNING = noisy(np.geomspace(0.1, 1.0, NUMBER))
CASES = {
    "loss_flat": (run(loss=FLAT), PLAIN, "from the start (4 → 3.99)"),
    "loss_creeps": (run(loss=noisy(np.geomspace(4, 3.7, NUMBER), noise=0.005)), PLAIN, "falls slowly (4"),
    "loss_falls": (PLAIN, run(loss=FLAT), "the loss falls (4"),
    "loss_falls_late": (PLAIN, run(loss=FLAT), "second half"),
    "loss_stuck": (run(loss=noisy(np.r_[np.geomspace(4, 3, 20), np.full(40, 3.0)])), PLAIN, "has stayed there"),
    "loss_rebounds": (run(loss=noisy(np.r_[np.geomspace(4, 2, 30), np.geomspace(2, 3, 30)])), PLAIN, "has risen to"),
    "loss_above_start": (run(loss=noisy(np.geomspace(4, 6, NUMBER))), PLAIN, "rose from 4"),
    "loss_explodes": (run(loss=pieces((4, 50), (40, 10))), PLAIN, "reached 40, 10.0 times"),
    "loss_nearly_gone": (run(loss=noisy(np.geomspace(4, 0.01, NUMBER))), PLAIN, "below a tenth of the first near step"),
    "loss_smooth": (
        run(loss=np.geomspace(4, 1, NUMBER)),
        run(loss=noisy(np.geomspace(4, 1, NUMBER), noise=0.1)),
        "without noise (0.00%",
    ),
    "loss_noisy": (run(loss=noisy(np.geomspace(4, 2, NUMBER), noise=0.2)), PLAIN, "varies by"),
    "loss_comes_again": (
        run(loss=np.geomspace(4, 2, NUMBER) * np.resize([1, 1.1, 0.9], NUMBER)),
        PLAIN,
        "every 30 steps",
    ),
    "loss_drops_at_once": (run(loss=pieces((40, 2), (4, 58))), PLAIN, "from 40 to 4 by step 40"),
    "loss_above_any_guess": (run(loss=pieces((40, 2), (4, 58))), PLAIN, "the first loss of 40"),
    "loss_lost": (run(loss=pieces((4, 30), (np.nan, 30))), PLAIN, "since step 300"),
    "loss_never_finite": (run(loss=np.full(NUMBER, np.nan)), PLAIN, "none was recorded"),
    "loss_gone_at_once": (run(loss=pieces((4, 3), (0.001, 57))), PLAIN, "0.001 at step 60"),
    "loss_negative": (run(loss=noisy(np.linspace(-4, -40, NUMBER))), PLAIN, "below 0"),
    "loss_unsteady": (run(loss=np.r_[FLAT[:30], 9.0, FLAT[31:]]), run(loss=FLAT), "spikes (near step 300"),
    "attention_frozen": (PLAIN, run(logit_std=LEARNING), "in all layers"),
    "attention_moves": (run(logit_std=LEARNING), PLAIN, "in 4 of 4 layers"),
    "attention_stopped": (
        run(logit_std=noisy(np.r_[np.geomspace(0.5, 2, 15), np.full(45, 2.0)])),
        run(logit_std=LEARNING),
        "frozen since step 150",
    ),
    "attention_without_noise": (run(logit_std=np.geomspace(0.1, 1, NUMBER)), run(logit_std=LEARNING), "0.00%"),
    "layers_frozen": (one_site("logit_std", np.geomspace(1, 9, NUMBER)), PLAIN, "keep their spread"),
    "logits_steady": (PLAIN, run(logit_std=LEARNING), "within a factor of 1.0"),
    "logits_grow_slowly": (run(logit_std=noisy(np.geomspace(1, 1.4, NUMBER))), PLAIN, "grows slowly (1.3"),
    "logits_learn": (run(logit_std=LEARNING), PLAIN, "-fold"),
    "logits_shrink": (run(logit_std=LEARNING[::-1]), PLAIN, "of its maximum"),
    "logits_vanish": (run(logit_std=noisy(np.geomspace(1, 1e-6, NUMBER))), PLAIN, "to nothing"),
    "logits_large_at_start": (run(logit_std=9.0), PLAIN, "spread 9 in"),
    "logits_sizeable_at_start": (run(logit_std=1.5), run(logit_std=0.5), "is 1.5 at the start"),
    "logits_tiny_at_start": (run(logit_std=1e-4), PLAIN, "spread 0.0001"),
    "logits_explode": (run(max_logit=np.geomspace(12, 1200, NUMBER)), run(max_logit=1200.0), "from 12 to 1.2e+03"),
    "logits_jump_at_once": (run(logit_std=pieces((0.1, 1), (1.0, 59))), PLAIN, "10-fold by step 30"),
    "uniform_everywhere": (run(normalized_entropy=0.99), PLAIN, "0.990 or more"),
    "uniform_in_some": (run(sites=[0], normalized_entropy=0.99), PLAIN, "is uniform in"),
    "sharp_from_start": (run(normalized_entropy=0.01), PLAIN, "0.010"),
    "becomes_sharp": (run(normalized_entropy=np.linspace(0.5, 0.01, NUMBER)), PLAIN, "0.50 → 0.0"),
    "becomes_uniform": (run(normalized_entropy=np.linspace(0.5, 1, NUMBER)), PLAIN, "→ 0.97"),
    "same_keys_each_time": (run(max_entropy=np.log(16)), run(max_entropy=3.0), "every query sees 16 keys"),
    "keys_vary": (run(max_entropy=noisy(3.0, noise=0.01)), PLAIN, "there is padding"),
    "keys_vary_much": (run(max_entropy=noisy(3.0, noise=0.1)), run(max_entropy=noisy(3.0, noise=0.01)), "varies by"),
    "few_keys": (run(max_entropy=np.log(2)), PLAIN, "only 2.0 keys"),
    "one_key": (blind(), PLAIN, "in 1 of 4 layers"),
    "nan_from_start": (run(nonfinite=pieces((0, 1), (1, 59))), PLAIN, "not finite as early as step 10"),
    "nan_later": (run(nonfinite=pieces((0, 30), (1, 30))), PLAIN, "since step 300"),
    "updates_large": (trained(update_ratio=pieces((0.4, 1), (0.01, 59))), trained(update_ratio=0.05), "0.4 times"),
    "updates_overwrite": (trained(update_ratio=pieces((9, 15), (0.1, 45))), trained(update_ratio=1.0), "25% of the"),
    "updates_usual": (trained(update_ratio=pieces((0.03, 1), (0.01, 59))), trained(update_ratio=0.1), "than 3.00%"),
    "updates_small": (trained(update_ratio=3e-4), trained(update_ratio=3e-3), "than 0.0003 of their norm"),
    "updates_tiny": (trained(update_ratio=1e-8), trained(update_ratio=2e-5), "by 1e-08 of their norm"),
    "updates_zero": (trained(update_ratio=0.0), trained(update_ratio=1e-8), "change no weight"),
    "updates_end": (
        trained(update_ratio=pieces((0.01, 20), (0, 40))),
        trained(update_ratio=np.linspace(0.01, 0, NUMBER)),
        "from 0.01 to 0 of the weights",
    ),
    "weights_stand_still": (
        trained(update_ratio=np.nan),
        trained(update_ratio=np.nan, weight_norm=np.linspace(8, 8.01, NUMBER)),
        "though they have gradients",
    ),
    "weights_fall": (trained(weight_norm=np.geomspace(8, 4, NUMBER)), trained(weight_norm=7.9), "fallen to 51%"),
    "weights_grow": (trained(weight_norm=np.geomspace(8, 80, NUMBER)), trained(weight_norm=8.5), "-fold"),
    "weights_keep_norm": (
        trained(weight_norm=np.linspace(8, 8.4, NUMBER)),
        trained(weight_norm=np.linspace(8, 9, NUMBER)),
        "now 1.05 times",
    ),
    "gradients_zero": (trained(gradient_norm=0.0), trained(gradient_norm=pieces((0, 59), (1, 1))), "are zero"),
    "gradients_zero_in_some": (trained(sites=[1, 2]), trained(), "layer_0, layer_3 never had a gradient, but"),
    "gradients_grow": (
        trained(gradient_norm=np.geomspace(1, 30, NUMBER)),
        trained(gradient_norm=np.geomspace(1, 5, NUMBER)),
        "-fold",
    ),
    "lost_after_usual_updates": (
        trained(weight_norm=pieces((8, 30), (np.nan, 30))),
        trained(weight_norm=pieces((8, 30), (np.nan, 30)), update_ratio=9.0),
        "no update before changed the weights by more than 1.00%",
    ),
    "states_grow_over_depth": (of_layers(0.1, 0.4, 2, 9), of_layers(0.1, 0.2, 0.4, 0.8), "from 0.1 to 9 at the start"),
    "states_tiny_at_start": (of_layers(1e-5, 1e-5, 2e-5, 2e-5), of_layers(0.1, 0.1, 0.2, 0.2), "(norm 2e-05)"),
    "nothing_moves": (run(loss=FLAT), PLAIN, "neither the loss nor attention"),
    "learns_without_attention": (PLAIN, run(loss=FLAT), "queries and keys stay as they were"),
    "attention_moves_for_nothing": (run(loss=FLAT, logit_std=LEARNING), run(logit_std=LEARNING), "does not improve"),
}


@pytest.mark.parametrize("name", CASES)
def test_sign_is_seen_with_its_numbers_and_not_in_the_nearest_run_without_it(name):
    with_it, without_it, words = CASES[name]
    assert words in seen(with_it)[name]
    assert name not in seen(without_it)


def test_loss_that_has_jumped_at_once_is_not_flat():
    """The first two losses differ by more than all others: their difference is no noise."""
    assert "loss_flat" not in seen(run(loss=np.append(4.0, noisy(140.0)[1:])))


def test_layers_whose_gradients_were_never_finite_are_lost_from_the_start():
    lost = pieces((8, 1), (np.nan, 59))
    words = seen(trained(weight_norm=lost, gradient_norm=np.nan, update_ratio=np.nan))["lost_after_usual_updates"]
    assert "from the start" in words


def test_layers_of_a_recorder_that_saw_forwards_only_have_no_signs_of_missing_gradients():
    """Outside of a step, neither gradients nor updates are seen."""
    forwards = seen(trained(gradient_norm=np.nan, update_ratio=np.nan))
    assert not {"gradients_zero", "gradients_zero_in_some", "weights_stand_still", "updates_zero"} & set(forwards)


def test_attention_that_has_jumped_at_once_is_not_frozen():
    """A jump at the second observation looks like noise."""
    assert "attention_frozen" not in seen(run(logit_std=pieces((0.05, 1), (500, 59))))


def test_logits_that_fall_back_to_a_multiple_of_the_start_have_not_vanished():
    assert "logits_vanish" not in seen(run(logit_std=pieces((0.05, 1), (5e5, 9), (500, 50))))


def test_every_sign_is_tested():
    assert set(CASES) == set(SIGNS)


def test_runs_that_are_too_short_or_empty_have_no_signs_of_change():
    short = course(observations=5)
    assert set(seen(short)) <= {"loss_never_finite"}
    assert seen(course(observations=0)) == {}
