"""Layer statistics of the monitor under each trainer."""

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from attnwatch.layers import LayerStatistic
from tests.support.models import LAYERS, llama

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")


class Oracle:
    """Gradients and weights of each layer, before each step of the optimizer."""

    def __init__(self):
        self.step, self.weights, self.gradients = None, [], []

    def __call__(self, model, step):
        layers = [list(layer.parameters()) for layer in model.model.layers]
        if self.step is None:
            for index, layer in enumerate(layers):
                for place, parameter in enumerate(layer):
                    parameter.register_post_accumulate_grad_hook(
                        lambda each, key=(index, place): self.gradients[-1].update({key: each.grad.double().norm()})
                    )
        if step != self.step:
            self.step = step
            self.weights.append([torch.cat([each.detach().double().flatten() for each in layer]) for layer in layers])
            self.gradients.append({})

    def gradient_norm(self, step: int, layer: int) -> float:
        norms = [norm for (index, _), norm in self.gradients[step].items() if index == layer]
        return torch.stack(norms).norm().item()

    def update_ratio(self, step: int, layer: int) -> float:
        before, after = self.weights[step][layer], self.weights[step + 1][layer]
        return ((after - before).norm() / before.norm()).item()


@pytest.mark.parametrize("options", [{}, {"accumulate": 3}, {"bf16": True}, {"clip": 1e-3}], ids=str)
def test_values_are_those_of_the_definition(training, options):
    oracle, steps = Oracle(), 6
    monitor = training.callbacks.AttentionMonitor(every_n_steps=2)
    training.train(monitor, model=llama(), before_batch=oracle, steps=steps, **options)
    history = monitor.history
    assert history.steps.tolist() == [0, 2, 4]
    for row, step in enumerate(history.steps):
        for layer in range(LAYERS):
            weights = oracle.weights[step][layer].norm().item()
            assert history["weight_norm"][row, layer] == pytest.approx(weights, rel=1e-5)
            # Neither clipped nor those of a part of the micro-batches.
            assert history["gradient_norm"][row, layer] == pytest.approx(oracle.gradient_norm(step, layer), rel=1e-4)
            assert history["update_ratio"][row, layer] == pytest.approx(oracle.update_ratio(step, layer), rel=2e-2)
    for name in LayerStatistic.registry:
        assert np.isfinite(history[name]).all(), name


@pytest.mark.parametrize("training", ["lightning"], indirect=True)
def test_curves_of_each_layer(training, tmp_path):
    monitor = training.callbacks.AttentionMonitor(every_n_steps=2)
    training.train(monitor, steps=6, logger=TensorBoardLogger(tmp_path, name="run", version=""))
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    found = {
        tag for tag in events.Tags()["scalars"] if tag.split("/")[0].removeprefix("layers_") in LayerStatistic.registry
    }
    assert found == {f"layers_{name}/layer_{layer}" for name in LayerStatistic.registry for layer in range(LAYERS)}
    for name in LayerStatistic.registry:
        curve = [event.value for event in events.Scalars(f"layers_{name}/layer_1")]
        np.testing.assert_allclose(curve, monitor.history[name][:, 1], rtol=1e-6)
