"""What dashboards show: tags, numbers, pictures."""

import numpy as np
import pytest

from attnwatch import AttentionHistory
from attnwatch.dashboard import evenly_spaced, run_scalars, site_labels, site_scalars
from attnwatch.dashboard.figures import figures, pixels
from attnwatch.metrics import STATISTICS


def history(*, sites=3, heads=4, observations=2) -> AttentionHistory:
    rng = np.random.default_rng(0)
    values = {name: rng.random((observations, sites, heads)).astype(np.float32) for name in STATISTICS}
    names = tuple(f"model.layers.{i}.attn" for i in range(sites))
    return AttentionHistory(np.arange(observations) * 10, names, values, np.full(observations, np.nan))


def test_run_scalars_are_means_and_maxima():
    recorded = history()
    numbers = run_scalars(recorded, -1)
    assert set(numbers) == {statistic.tag for statistic in STATISTICS.values()}
    assert numbers["attention/entropy"] == pytest.approx(recorded["entropy"][-1].mean())
    assert numbers["attention/max_logit"] == pytest.approx(recorded["max_logit"][-1].max())


def test_what_was_not_observed_is_left_out_and_never_zero():
    recorded = history()
    recorded["content_sensitivity"][:] = np.nan
    recorded["entropy"][-1, 0] = np.nan
    numbers = run_scalars(recorded, -1) | site_scalars(recorded, -1, max_sites=12)
    assert not any("content_sensitivity" in tag for tag in numbers)
    assert numbers["attention/entropy"] == pytest.approx(recorded["entropy"][-1, 1:].mean())


def test_curves_of_a_deep_model_are_bounded():
    numbers = site_scalars(history(sites=96), -1, max_sites=12)
    per_layer = [name for name, statistic in STATISTICS.items() if statistic.per_layer]
    assert len(numbers) == 12 * len(per_layer)
    assert "attention_normalized_entropy/layer_0" in numbers
    assert "attention_normalized_entropy/layer_95" in numbers


@pytest.mark.parametrize(
    ("number", "most", "expected"),
    [(3, 5, [0, 1, 2]), (10, 4, [0, 3, 6, 9]), (5, 1, [0]), (4, 0, []), (0, 3, [])],
    ids=["fewer", "more", "one", "none", "empty"],
)
def test_evenly_spaced(number, most, expected):
    assert evenly_spaced(number, most) == expected


@pytest.mark.parametrize(
    ("sites", "labels"),
    [
        (["model.layers.0.self_attn", "model.layers.11.self_attn"], ["layer_0", "layer_11"]),
        (["dec.0.self_attn", "dec.0.cross_attn"], ["self_attn", "cross_attn"]),
        (["enc.0.attn", "dec.0.attn", "dec.0.cross"], ["enc.0.attn", "dec.0.attn", "dec.0.cross"]),
        (["attention"], ["attention"]),
    ],
    ids=["numbers", "kinds", "both", "single"],
)
def test_site_labels_say_what_differs(sites, labels):
    assert site_labels(sites) == labels


@pytest.mark.parametrize("sites", [1, 3, 96])
def test_pictures_show_every_layered_statistic(sites):
    drawn = figures(history(sites=sites))
    layered = [name for name, statistic in STATISTICS.items() if statistic.per_layer]
    assert set(drawn) == {f"attention_{kind}/{name}" for kind in ("heads", "layers") for name in layered}
    heads, layers = drawn["attention_heads/normalized_entropy"], drawn["attention_layers/normalized_entropy"]
    assert [axes.get_xlabel() for axes in (heads.axes[0], layers.axes[0])] == ["head", "step"]
    assert heads.axes[0].get_ylabel() == "layer"
    assert heads.axes[0].get_title() == "normalized entropy, step 10"
    image = pixels(heads)
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert image.std() > 10  # something is drawn


def test_not_observed_is_grey_in_pictures():
    recorded = history()
    recorded["normalized_entropy"][:] = np.nan
    image = pixels(figures(recorded)["attention_heads/normalized_entropy"])
    middle = image[image.shape[0] // 2, image.shape[1] // 2]
    assert middle.tolist() == [217, 217, 217]


def test_noise_does_not_fill_the_colour_scale():
    sensitivity = STATISTICS["content_sensitivity"]
    assert sensitivity.chart_range(np.array([1e-4, 2e-4])) == (0.0, 0.1)
    assert sensitivity.chart_range(np.array([0.5, np.nan])) == (0.0, 0.5)
    assert STATISTICS["max_logit"].chart_range(np.array([-50.0, 70.0])) == (-50.0, 70.0)
    assert STATISTICS["normalized_entropy"].chart_range(np.array([0.4, 0.5])) == (0.0, 1.0)
