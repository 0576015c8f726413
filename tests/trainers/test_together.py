"""The monitor, head pruning and token dropping in one training by each trainer."""

import pytest

from attnwatch import Guard
from tests.support.equality import assert_same_history, assert_same_weights
from tests.support.models import LAYERS

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(training):
    """The checkpoint is from between the cuts."""

    def all_three():
        return (
            training.callbacks.AttentionMonitor(every_n_steps=3),
            training.callbacks.HeadPruning(0.5, start=4, end=10, num_cuts=2, guard=Guard(tolerance=10.0, window=2)),
            training.callbacks.TokenDropping(0.5, min_tokens=4, first_layer=0, last_layer=LAYERS - 1),
        )

    def kill(model, step):
        if step == 9:
            raise KeyboardInterrupt

    uninterrupted, resumed = all_three(), all_three()
    whole = training.train(*uninterrupted, save_every=20)
    with pytest.raises(training.interruption):
        training.train(*all_three(), before_batch=kill, save_every=8)
    rest = training.train(*resumed, checkpoint=8)
    assert whole.losses[8:] == rest.losses
    assert_same_weights(whole.model, rest.model)
    (monitor, pruning, dropping), (other_monitor, other_pruning, other_dropping) = uninterrupted, resumed
    assert_same_history(monitor.history, other_monitor.history)
    assert [cut.plan for cut in pruning.cuts] == [cut.plan for cut in other_pruning.cuts]
    assert dropping.dropper.layer_tokens == other_dropping.dropper.layer_tokens
