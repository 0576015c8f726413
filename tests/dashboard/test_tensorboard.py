"""What TensorBoard is given beside curves, pictures and text: charts of several curves, and a row in HParams."""

import dataclasses
import re

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata as hparams
from torch.utils.tensorboard import SummaryWriter

from attnwatch import RunStatus
from attnwatch.callbacks.publisher import Publisher
from attnwatch.dashboard import RISK_TAG
from attnwatch.dashboard.outcome import RunOutcome
from attnwatch.diagnosis import Diagnosis
from attnwatch.layers import LayerStatistic
from attnwatch.loggers.tensorboard import TensorBoardLogger
from attnwatch.recorder import RecordingOptions
from attnwatch.statistics import Statistic
from tests.support.histories import random_history

OPTIONS = RecordingOptions(10, 32, None, None, 512, 0)


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A history, and the events of its log."""
    folder, history = tmp_path_factory.mktemp("run"), random_history(observations=4)
    columns = {name: np.ones((4, 3), dtype=np.float32) for name in LayerStatistic.registry}
    history = dataclasses.replace(history, loss=np.arange(4.0), layers=columns)
    with SummaryWriter(folder) as writer:
        publisher, loggers = Publisher(max_layer_curves=12), [TensorBoardLogger(writer)]
        for end in (2, 4):
            publisher.history(loggers, history.first(end), after_step=-1 if end == 2 else 10)
        publisher.scalars(loggers, {RISK_TAG: 0.3}, 30)
        settings = {"learning_rate": 1e-3, "betas": (0.9, 0.99), "clip": None}
        publisher.outcome(loggers, RunOutcome(Diagnosis(RunStatus.HEALTHY, (), 30, risk=0.3), OPTIONS, settings))
    assert [file.parent for file in folder.rglob("*tfevents*")] == [folder]  # one run, and no other one beside it
    return history, EventAccumulator(str(folder)).Reload()


def test_charts_of_several_curves_have_curves(logged):
    _, events = logged
    (config,) = events.Tensors("custom_scalars__config__")  # once a run
    layout = layout_pb2.Layout.FromString(config.tensor_proto.string_val[0])
    scalars = events.Tags()["scalars"]
    assert [group.title for group in layout.category] == ["run", "changes", "attention of each layer", "layers"]
    charts = {chart.title: chart for group in layout.category for chart in group.chart}
    for title, chart in charts.items():
        for pattern in chart.multiline.tag:
            is_there = any(re.match(pattern, tag) for tag in scalars)
            assert is_there or title in ("share of heads and tokens that is computed", "learning rate"), title
    (band,) = charts["normalized entropy, ± 2 standard errors"].margin.series
    assert {band.value, band.lower, band.upper} <= set(scalars)


def test_band_is_two_standard_errors_around_the_curve(logged):
    history, events = logged
    middle, low, high = (
        [event.value for event in events.Scalars(tag)]
        for tag in (
            "attention/normalized_entropy",
            "attention_details/normalized_entropy_low",
            "attention_details/normalized_entropy_high",
        )
    )
    error = history["normalized_entropy_stderr"].mean((1, 2))
    np.testing.assert_allclose(np.subtract(high, middle), 2 * error, rtol=1e-4)
    np.testing.assert_allclose(np.subtract(middle, low), 2 * error, rtol=1e-4)


def test_row_in_hparams_has_the_verdict_and_the_settings(logged):
    _, events = logged
    start = _content(events, hparams.SESSION_START_INFO_TAG, hparams.parse_session_start_info_plugin_data)
    texts = {name: value.string_value for name, value in start.hparams.items() if value.string_value}
    assert texts == {"attention/verdict": "healthy", "attention/findings": "none", "betas": "(0.9, 0.99)"}
    assert start.hparams["learning_rate"].number_value == 1e-3
    assert start.hparams["monitor/num_query_rows"].number_value == 32
    assert "clip" not in start.hparams
    experiment = _content(events, hparams.EXPERIMENT_TAG, hparams.parse_experiment_plugin_data)
    metrics = [info.name.tag for info in experiment.metric_infos]
    assert metrics[0] == RISK_TAG
    assert set(metrics) <= set(events.Tags()["scalars"])


def _content(events, tag, parse):
    return parse(events.SummaryMetadata(tag).plugin_data.content)


def test_first_group_is_short_and_comes_first(logged):
    _, events = logged
    groups = sorted({tag.partition("/")[0] for tag in events.Tags()["scalars"]})
    assert groups[:2] == ["attention", "attention_details"]
    first = [tag for tag in events.Tags()["scalars"] if tag.startswith("attention/")]
    assert sorted(first) == [
        "attention/loss",
        "attention/max_logit",
        "attention/normalized_entropy",
        "attention/risk",
    ]


@pytest.mark.parametrize("sites", [6, 24, 96])
def test_tags_of_layers_do_not_depend_on_the_depth(sites):
    labels = {Statistic.registry["sink_mass"].layer_tag(f"layer_{index}") for index in range(sites)}
    assert "layers_sink_mass/layer_0" in labels
    assert "layers_sink_mass/layer_5" in labels
