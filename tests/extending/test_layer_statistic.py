"""A layer statistic from outside of the package: recorded, logged, saved and resumed as those of attnwatch."""

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import attnwatch
from attnwatch import AttentionHistory, AttentionRecorder, AttnwatchWarning, ConfigurationError, LayerSource
from attnwatch.lightning import AttentionMonitor
from attnwatch.runs import read_run
from tests.support.lightning_training import train_epochs
from tests.support.models import LAYERS, llama, token_ids

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")


class LargestGradient(attnwatch.LayerStatistic):
    name = "largest_gradient"
    summary = "largest absolute entry of a gradient"
    formula = "max |∇W|"
    source = LayerSource.GRADIENTS

    def values(self, blocks):
        return torch.stack([torch.stack([gradient.abs().amax() for gradient in block]).amax() for block in blocks])


class SignFlips(LargestGradient):
    name = "sign_flips"
    summary = formula = "share of the entries whose sign an update changes"
    source = LayerSource.UPDATE

    def values(self, blocks):
        before, after = blocks
        return (before.sign() != after.sign()).float().mean(1)


class Failing(LargestGradient):
    name = "failing"

    def values(self, blocks):
        raise RuntimeError("no such tensor")


class WrongShape(LargestGradient):
    name = "wrong_shape"
    source = LayerSource.OUTPUT

    def values(self, blocks):
        return blocks.mean()


def record(steps, state=None) -> AttentionRecorder:
    torch.manual_seed(0)
    model = llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with AttentionRecorder(model, every_n_steps=1, optimizers=optimizer) as recorder:
        if state is not None:
            recorder.load_state_dict(state)
        for step in steps:
            with recorder.step(step):
                ids = token_ids(batch=2, tokens=8, seed=step)
                model(input_ids=ids, labels=ids).loss.backward()
            recorder.gradients = [layer.mlp.up_proj.weight.grad.abs().amax() for layer in model.model.layers]
            optimizer.step()
            optimizer.zero_grad()
    return recorder


@pytest.mark.slow
def test_recorded_logged_and_saved(registered, tmp_path):
    registered(LargestGradient)
    registered(SignFlips)
    monitor = AttentionMonitor(every_n_steps=2)
    train_epochs(monitor, tmp_path=tmp_path, logger=TensorBoardLogger(tmp_path, name="run", version=""))
    history = monitor.history
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    for name in ("largest_gradient", "sign_flips"):
        assert history[name].shape == (len(history), LAYERS)
        for layer in range(LAYERS):
            curve = {event.step: event.value for event in events.Scalars(f"layers_{name}/layer_{layer}")}
            assert list(curve) == history.steps.tolist()
            np.testing.assert_allclose(list(curve.values()), history[name][:, layer], rtol=1e-6)
    assert (history["largest_gradient"] > 0).all()
    history.save(tmp_path / "history.npz")
    for again in (AttentionHistory.load(tmp_path / "history.npz"), read_run(tmp_path / "run").history):
        np.testing.assert_allclose(again["largest_gradient"], history["largest_gradient"], rtol=1e-6)


def test_values_are_those_of_the_definition(registered):
    registered(LargestGradient)
    recorder = record([0])
    history = recorder.history()
    assert (history["largest_gradient"][0] >= torch.stack(recorder.gradients).numpy()).all()


def test_columns_of_a_missing_statistic_stay(registered, tmp_path):
    attnwatch.register(LargestGradient)
    expected, before = record(range(8)).history(), record(range(4))
    attnwatch.unregister(LargestGradient)
    resumed = record(range(4, 8), before.state_dict())
    history = resumed.history()
    np.testing.assert_array_equal(history["largest_gradient"][:3], expected["largest_gradient"][:3])
    assert np.isnan(history["largest_gradient"][3:]).all()  # the last step was still open
    np.testing.assert_array_equal(history["gradient_norm"], expected["gradient_norm"])
    assert "largest_gradient" not in history.layer_statistics
    history.save(tmp_path / "history.npz")
    loaded = AttentionHistory.load(tmp_path / "history.npz")
    np.testing.assert_array_equal(loaded["largest_gradient"], history["largest_gradient"])
    registered(LargestGradient)
    again = record(range(8, 10), resumed.state_dict()).history()
    np.testing.assert_array_equal(again["largest_gradient"][:3], expected["largest_gradient"][:3])
    assert np.isfinite(again["largest_gradient"][8:]).all()


WRONG = {
    Failing: rf"the layer statistic 'failing' \({__name__}.Failing\) failed with RuntimeError: no such tensor",
    WrongShape: r"'wrong_shape' .* failed with ValueError: `values` must return a tensor with one number for each "
    r"block, \[2\], got \[\]",
}


@pytest.mark.parametrize("statistic", WRONG)
def test_failing_statistic_is_named_and_left_out_once(registered, statistic):
    registered(statistic)
    registered(LargestGradient)
    with pytest.warns(AttnwatchWarning, match=WRONG[statistic]) as warned:
        history = record(range(3)).history()
    assert len(warned) == 1
    assert np.isnan(history[statistic.name]).all()
    for name in history.layers.keys() - {statistic.name}:
        assert np.isfinite(history[name]).all(), name


def test_training_goes_on_without_a_failing_statistic(registered, tmp_path):
    _, expected = train_epochs(None, tmp_path=tmp_path)
    registered(Failing)
    with pytest.warns(AttnwatchWarning, match="'failing'"):
        _, module = train_epochs(AttentionMonitor(every_n_steps=2), tmp_path=tmp_path)
    assert module.losses == expected.losses


def test_declaration_without_a_source_is_refused():
    class Nowhere(LargestGradient):
        source = "gradients"

    with pytest.raises(ConfigurationError, match=r"must have a `source` of attnwatch\.LayerSource, got 'gradients'"):
        attnwatch.register(Nowhere)
