"""Pictures of a training: what they are told of the model."""

import io

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from attnwatch.dashboard.figures import figures
from attnwatch.dashboard.heatmaps import pixels
from attnwatch.heads import PruningPlan
from attnwatch.lightning import AttentionMonitor, HeadPruning
from tests.support.lightning_loggers import events_of
from tests.support.lightning_training import Llama, train

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")


@pytest.mark.slow
def test_heads_that_were_removed_are_hatched(tmp_path):
    logger, monitor, module = TensorBoardLogger(tmp_path), AttentionMonitor(every_n_steps=2), Llama()
    pruning = HeadPruning(0.5, start=4, end=4, num_cuts=1, guard=None)
    train(monitor, pruning, module=module, logger=logger)
    removed = PruningPlan.of(module).heads
    assert removed
    (logged,) = events_of(logger).Images("attention_heads/sink_mass")
    image = np.asarray(Image.open(io.BytesIO(logged.encoded_image_string)))
    history = monitor.history
    hatched, plain = (pixels(figures(history, removed=each)["attention_heads/sink_mass"]) for each in (removed, {}))
    np.testing.assert_array_equal(image, hatched)
    assert hatched.shape != plain.shape or (hatched != plain).any()
