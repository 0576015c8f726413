"""What dashboards show: tags, numbers, pictures."""

import dataclasses

import matplotlib.pyplot
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from attnwatch import FindingKind, RunStatus
from attnwatch.callbacks.publisher import Publisher
from attnwatch.dashboard import layer_scalars, run_scalars, run_tags, site_scalars
from attnwatch.dashboard.card import RunCard
from attnwatch.dashboard.figures import figures
from attnwatch.dashboard.heatmaps import heatmap, pixels
from attnwatch.diagnosis import Diagnosis, Finding
from attnwatch.layers import LayerStatistic
from attnwatch.loggers.tensorboard import TensorBoardLogger
from attnwatch.statistics import Statistic
from attnwatch.utils.labels import evenly_spaced, site_labels
from tests.support.histories import random_history

PER_LAYER = [name for name, statistic in Statistic.registry.items() if statistic.per_layer]


def test_run_scalars_are_means_and_maxima():
    recorded = random_history()
    for index in (0, -1):
        numbers = run_scalars(recorded, index)
        assert set(numbers) == set(run_tags()) == {statistic.tag for statistic in Statistic.registry.values()}
        assert numbers["attention_details/entropy"] == pytest.approx(recorded["entropy"][index].mean())
        assert numbers["attention/max_logit"] == pytest.approx(recorded["max_logit"][index].max())
        assert {type(number) for number in numbers.values()} == {float}


def test_site_scalars_are_means_and_maxima_over_the_heads_of_their_site():
    recorded = random_history(sites=5)
    numbers = site_scalars(recorded, 0, max_sites=3)
    assert set(numbers) == {f"layers_{name}/layer_{layer}" for name in PER_LAYER for layer in (0, 2, 4)}
    assert numbers["layers_sink_mass/layer_4"] == pytest.approx(recorded["sink_mass"][0, 4].mean())
    assert numbers["layers_max_logit/layer_2"] == pytest.approx(recorded["max_logit"][0, 2].max())
    assert {type(number) for number in numbers.values()} == {float}


def test_what_was_not_observed_is_left_out_and_never_zero():
    recorded = random_history()
    recorded["content_sensitivity"][:] = np.nan
    recorded["entropy"][-1, 0] = np.nan
    numbers = run_scalars(recorded, -1) | site_scalars(recorded, -1, max_sites=12)
    assert not any("content_sensitivity" in tag for tag in numbers)
    assert numbers["attention_details/entropy"] == pytest.approx(recorded["entropy"][-1, 1:].mean())


def test_curves_of_a_deep_model_are_bounded():
    numbers = site_scalars(random_history(sites=96), -1, max_sites=12)
    assert len(numbers) == 12 * len(PER_LAYER)
    assert "layers_normalized_entropy/layer_0" in numbers
    assert "layers_normalized_entropy/layer_95" in numbers


def test_layer_scalars_are_those_of_the_layers_that_are_shown():
    recorded = random_history(sites=96)
    columns = {name: np.full((2, 96), np.nan, dtype=np.float32) for name in LayerStatistic.registry}
    columns["gradient_norm"][1] = np.arange(96)
    columns["token_cosine"][1, 0] = 0.5
    recorded = dataclasses.replace(recorded, layers=columns)
    assert layer_scalars(recorded, 0, max_sites=12) == {}
    numbers = layer_scalars(recorded, 1, max_sites=12)
    assert len(numbers) == 12 + 1
    assert numbers["layers_gradient_norm/layer_95"] == 95.0
    assert numbers["layers_token_cosine/layer_0"] == 0.5
    assert {type(number) for number in numbers.values()} == {float}


@pytest.mark.parametrize(
    ("number", "most", "expected"),
    [(3, 5, [0, 1, 2]), (4, 4, [0, 1, 2, 3]), (10, 4, [0, 3, 6, 9]), (5, 1, [0]), (4, 0, []), (0, 3, [])],
    ids=["fewer", "as many", "more", "one", "none", "empty"],
)
def test_evenly_spaced(number, most, expected):
    assert evenly_spaced(number, most) == expected


@pytest.mark.parametrize(
    ("sites", "labels"),
    [
        (["model.layers.0.self_attn", "model.layers.11.self_attn"], ["layer_0", "layer_11"]),
        (["dec.0.self_attn", "dec.0.cross_attn"], ["self_attn", "cross_attn"]),
        (["enc.0.attn", "dec.0.attn", "dec.0.cross"], ["enc.0.attn", "dec.0.attn", "dec.0.cross"]),
        (["encoder.0.attn", "encoder.0.attn.core"], ["attn", "attn.core"]),
        (["attention"], ["attention"]),
    ],
    ids=["numbers", "kinds", "both", "one within the other", "single"],
)
def test_site_labels_say_what_differs(sites, labels):
    assert site_labels(sites) == labels


@pytest.mark.parametrize("sites", [1, 3, 96])
def test_pictures_show_every_layered_statistic(sites):
    drawn = figures(random_history(sites=sites))
    assert set(drawn) == {f"attention_{kind}/{name}" for kind in ("heads", "layers") for name in PER_LAYER}
    for figure in drawn.values():
        assert len(figure.axes) == 2  # with its colour bar
        assert 3.0 <= figure.get_size_inches()[1] <= 6.5
        assert figure.axes[0].get_aspect() == "auto"  # fills the picture
    image = pixels(drawn["attention_heads/normalized_entropy"])
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert image.std() > 10  # something is drawn
    assert matplotlib.pyplot.get_fignums() == []  # and no figure stays open


def drawn_values(figure):
    (image,) = figure.axes[0].images
    assert (image.origin, image.get_interpolation()) == ("upper", "nearest")
    return image.get_array()


def test_pictures_show_what_was_recorded():
    recorded = random_history(sites=3, heads=4, observations=5)
    drawn = figures(recorded)
    for name, over_heads in {"max_logit": np.max, "sink_mass": np.mean}.items():
        heads, layers = drawn[f"attention_heads/{name}"], drawn[f"attention_layers/{name}"]
        np.testing.assert_array_equal(drawn_values(heads), recorded[name][-1])
        np.testing.assert_allclose(drawn_values(layers), over_heads(recorded[name], axis=-1).T)
    assert drawn["attention_heads/sink_mass"].axes[0].images[0].get_clim() == (0.0, 1.0)
    assert drawn["attention_layers/max_logit"].axes[0].images[0].get_clim() == (0.0, 100.0)


def test_pictures_say_what_they_show():
    drawn = figures(random_history(sites=3, heads=4, observations=3))
    heads, layers = (drawn[f"attention_{kind}/content_sensitivity"].axes[0] for kind in ("heads", "layers"))
    assert [axes.get_title() for axes in (heads, layers)] == [
        "content sensitivity [nats], step 20",
        "content sensitivity [nats]",
    ]
    assert drawn["attention_layers/sink_mass"].axes[0].get_title() == "sink mass"
    assert [(axes.get_xlabel(), axes.get_ylabel()) for axes in (heads, layers)] == [
        ("head", "layer"),
        ("step", "layer"),
    ]
    assert [label.get_text() for label in heads.get_yticklabels()] == ["0", "1", "2"]
    assert [label.get_text() for label in layers.get_xticklabels()] == ["0", "10", "20"]


def test_pictures_of_large_models_have_readable_ticks():
    drawn = figures(random_history(sites=96, heads=40, observations=50))
    heads, layers = (drawn[f"attention_{kind}/max_logit"].axes[0] for kind in ("heads", "layers"))
    assert heads.get_xticks().tolist() == list(range(0, 40, 4))
    assert layers.get_xticks().tolist() == list(range(0, 50, 10))
    assert heads.get_yticks().tolist() == list(range(0, 96, 8))
    assert [label.get_text() for label in heads.get_yticklabels()] == [str(layer) for layer in range(0, 96, 8)]


def test_largest_values_are_yellow():
    recorded = random_history()
    recorded["normalized_entropy"][:] = 1.0
    image = pixels(figures(recorded)["attention_heads/normalized_entropy"])
    assert image[image.shape[0] // 2, image.shape[1] // 2].tolist() == [253, 231, 36]


def test_removed_heads_are_told_from_heads_that_were_not_observed():
    recorded = random_history(sites=3, heads=4)
    recorded["sink_mass"][-1, 1, 1:] = np.nan
    sites = recorded.sites
    drawn = figures(recorded, removed={sites[1]: (1, 2)})["attention_heads/sink_mass"]
    (hatched,) = drawn.axes[0].patches
    assert hatched.get_bbox().bounds == (0.5, 0.5, 2.0, 1.0)  # heads 1 and 2 of the second layer
    assert hatched.get_hatch()
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["not observed", "removed"]
    whole = figures(random_history())["attention_heads/sink_mass"]
    assert (whole.legends, list(whole.axes[0].patches)) == ([], [])


def test_not_observed_is_grey_in_pictures():
    recorded = random_history()
    recorded["normalized_entropy"][:] = np.nan
    image = pixels(figures(recorded)["attention_heads/normalized_entropy"])
    middle = image[image.shape[0] // 2, image.shape[1] // 2]
    assert middle.tolist() == [217, 217, 217]


@pytest.mark.parametrize("name", PER_LAYER)
def test_colour_scale_does_not_depend_on_the_run(name):
    statistic = Statistic.registry[name]
    ranges = {statistic.chart_range(np.array(values)) for values in ([1e-4, 2e-4], [0.5, np.nan], [-50.0, 70.0])}
    assert ranges == {{"content_sensitivity": (0.0, 1.0), "max_logit": (0.0, 100.0)}.get(name, (0.0, 1.0))}


def test_colour_scale_says_where_values_may_lie_beyond_it():
    drawn = figures(random_history())
    ends = {name: drawn[f"attention_heads/{name}"].axes[0].images[0].colorbar.extend for name in PER_LAYER}
    assert ends == {
        "content_sensitivity": "max",
        "max_logit": "both",
        "normalized_entropy": "neither",
        "sink_mass": "neither",
    }


def test_numbers_of_a_colour_scale_differ_where_those_of_the_run_are_the_same():
    values = np.full((2, 3), 0.99991)
    figure, _ = heatmap(values, ["layer_0", "layer_1"], (0.99991, 0.99991), "uniform")
    figure.draw_without_rendering()
    numbers = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert len(set(numbers)) == len(numbers) >= 3
    assert figure.axes[1].yaxis.get_offset_text().get_text() == ""


def test_tensorboard_gets_pictures_as_they_are_drawn(tmp_path):
    recorded = random_history(observations=4)
    with SummaryWriter(tmp_path) as writer:
        Publisher().figures([TensorBoardLogger(writer)], recorded)
    events, drawn = EventAccumulator(str(tmp_path)).Reload(), figures(recorded)
    assert set(events.Tags()["images"]) == set(drawn)
    (image,) = events.Images("attention_layers/max_logit")
    assert image.step == 30
    assert (image.height, image.width) == pixels(drawn["attention_layers/max_logit"]).shape[:2]


def test_tensorboard_gets_the_verdict_in_words(tmp_path):
    findings = (
        Finding(FindingKind.NON_FINITE, ("a",), 20, 1.0, "nan at a.", {"nonfinite": 0.25}),
        Finding(FindingKind.UNIFORM_ATTENTION, ("a", "b"), 0, 0.4, "uniform at a, b.", {"start": 1.0, "now": 0.98765}),
    )
    with SummaryWriter(tmp_path) as writer:
        verdict = Diagnosis(RunStatus.NOT_CONVERGING, findings, 30, risk=1.0)
        Publisher().card([TensorBoardLogger(writer)], RunCard(verdict))
    (text,) = EventAccumulator(str(tmp_path)).Reload().Tensors("attention/diagnosis/text_summary")
    assert text.step == 30
    assert text.tensor_proto.string_val[0].decode().split("\n\n") == [
        "## not converging: risk 1.00, step 30",
        "The run will probably not reach its goal. Look at the causes below before you spend more time on it.",
        "| finding | since step | severity | where |\n|---|---|---|---|\n"
        "| non finite | 20 | 1.00 | a |\n| uniform attention | 0 | 0.40 | a and 1 more |",
        "- **non finite** since step 20, severity 1.00: nan at a.",
        "    nonfinite = 0.25",
        "- **uniform attention** since step 0, severity 0.40: uniform at a, b.",
        "    start = 1, now = 0.9877",
    ]
