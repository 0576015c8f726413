"""A statistic from outside of the package: recorded, logged, drawn, saved and resumed as those of attnwatch."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import attnwatch
from attnwatch import AttentionHistory, AttentionRecorder, AttnwatchWarning, ConfigurationError, attention_statistics
from attnwatch.lightning import AttentionMonitor
from attnwatch.statistics import Reduction
from tests.support.lightning_training import train_epochs
from tests.support.models import gpt, token_ids

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")


class Gini(attnwatch.Statistic):
    name = "gini"
    summary = "Gini coefficient of the attention weights (0: uniform)"
    formula = "Σ_j (2j - n - 1) p_(j) / n"
    low, high = 0.0, 1.0
    per_layer = True

    def values(self, rows):
        weights = rows.weights.sort(-1).values  # hidden keys have no weight and come first
        number = rows.num_visible.unsqueeze(-1)
        rank = torch.arange(1, weights.shape[-1] + 1, device=rows.device) - (weights.shape[-1] - number)
        return ((2 * rank - number - 1) * weights).sum(-1) / rows.num_visible


class Failing(Gini):
    name = "failing"

    def values(self, rows):
        raise RuntimeError("no such key")


class WrongShape(Gini):
    name = "wrong_shape"

    def values(self, rows):
        return rows.weights


def record(model, steps, state=None) -> AttentionRecorder:
    with AttentionRecorder(model, every_n_steps=1, num_query_rows=4) as recorder:
        if state is not None:
            recorder.load_state_dict(state)
        for step in steps:
            with recorder.step(step):
                model(token_ids(batch=2, tokens=8, seed=step))
    return recorder


def test_values_are_those_of_the_definition(registered):
    registered(Gini)
    query, key = torch.randn(2, 2, 3, 6, 8, dtype=torch.float64).unbind()
    found = attention_statistics(query, key, is_causal=True)["gini"]
    logits = (query @ key.mT / 8**0.5).masked_fill(~torch.ones(6, 6, dtype=torch.bool).tril(), -torch.inf)
    of_rows = []
    for row in range(1, 6):
        weights = logits.softmax(-1)[:, :, row, : row + 1]
        differences = (weights.unsqueeze(-1) - weights.unsqueeze(-2)).abs().sum((-1, -2))
        of_rows.append(differences / (2 * (row + 1)))  # the weights of a row sum to one
    torch.testing.assert_close(found, torch.stack(of_rows).mean(0).mean(0).float())


def test_maximum_over_rows(registered):
    registered(type("LargestGini", (Gini,), {"name": "largest_gini", "reduction": Reduction.MAX}))
    registered(Gini)
    query, key = torch.randn(2, 2, 3, 6, 8).unbind()
    found = attention_statistics(query, key)
    assert (found.largest_gini > found.gini).all()


@pytest.mark.slow
def test_recorded_logged_drawn_and_saved(registered, tmp_path):
    registered(Gini)
    monitor = AttentionMonitor(every_n_steps=2)
    train_epochs(monitor, tmp_path=tmp_path, logger=TensorBoardLogger(tmp_path, name="run", version=""))
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    curve = {event.step: event.value for event in events.Scalars("attention/gini")}
    history = monitor.history
    assert list(curve) == history.steps.tolist()
    np.testing.assert_allclose(list(curve.values()), history["gini"].mean((1, 2)), rtol=1e-6)
    assert {"layers_gini/layer_0", "layers_gini/layer_1"} <= set(events.Tags()["scalars"])
    assert {"attention_heads/gini", "attention_layers/gini"} <= set(events.Tags()["images"])
    history.save(tmp_path / "history.npz")
    np.testing.assert_array_equal(AttentionHistory.load(tmp_path / "history.npz")["gini"], history["gini"])


def test_resumed(registered):
    registered(Gini)
    expected = record(gpt(layers=1), range(8)).history()
    state = record(gpt(layers=1), range(4)).state_dict()
    resumed = record(gpt(layers=1), range(4, 8), state).history()
    np.testing.assert_array_equal(resumed["gini"], expected["gini"])


def test_columns_of_a_missing_statistic_stay(registered, tmp_path):
    attnwatch.register(Gini)
    before = record(gpt(layers=1), range(4))
    attnwatch.unregister(Gini)
    resumed = record(gpt(layers=1), range(4, 8), before.state_dict())
    history = resumed.history()
    np.testing.assert_array_equal(history["gini"][:3], before.history()["gini"][:3])
    assert np.isnan(history["gini"][3:]).all()  # the last step was still open
    np.testing.assert_array_equal(history["entropy"], record(gpt(layers=1), range(8)).history()["entropy"])
    assert "gini" not in history.statistics
    history.save(tmp_path / "history.npz")
    np.testing.assert_array_equal(AttentionHistory.load(tmp_path / "history.npz")["gini"], history["gini"])
    registered(Gini)
    again = record(gpt(layers=1), range(8, 10), resumed.state_dict()).history()
    np.testing.assert_array_equal(again["gini"][:3], before.history()["gini"][:3])
    assert np.isfinite(again["gini"][8:]).all()


WRONG = {
    Failing: rf"the statistic 'failing' \({__name__}.Failing\) failed with RuntimeError: no such key",
    WrongShape: r"'wrong_shape' .* failed with ValueError: `values` must return a tensor that can be broadcast to "
    r"\[batch, heads, rows\] = \[2, 4, 4\], got \[2, 4, 4, 8\]",
}


@pytest.mark.parametrize("statistic", WRONG)
def test_failing_statistic_is_named_and_left_out_once(registered, statistic):
    registered(statistic)
    registered(Gini)
    with pytest.warns(AttnwatchWarning, match=WRONG[statistic]) as warned:
        history = record(gpt(layers=1), range(3)).history()
    assert len(warned) == 1
    assert np.isnan(history[statistic.name]).all()
    assert np.isfinite(history["gini"]).all()
    assert np.isfinite(history["entropy"]).all()
    with pytest.raises(ConfigurationError, match=WRONG[statistic]):
        attention_statistics(torch.randn(2, 4, 4, 8), torch.randn(2, 4, 8, 8))


def test_training_goes_on_without_a_failing_statistic(registered, tmp_path):
    registered(Failing)
    _, expected = train_epochs(None, tmp_path=tmp_path)
    monitor = AttentionMonitor(every_n_steps=2)
    with pytest.warns(AttnwatchWarning, match="'failing'"):
        _, module = train_epochs(monitor, tmp_path=tmp_path)
    assert module.losses == expected.losses
    assert isinstance(module, pl.LightningModule)
    assert np.isfinite(monitor.history["entropy"]).all()
