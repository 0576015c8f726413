"""Token dropping in real trainings by each trainer."""

import itertools

import pytest
from torch import nn

from tests.support.layers_by_hand import LAYERS, deep
from tests.support.lightning_training import BATCH
from tests.support.models import TOKENS, llama

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")

WHOLE = BATCH * LAYERS * TOKENS
DROPPED = BATCH * (2 * TOKENS + 2 * TOKENS // 2)  # in the two layers between the first and the last


def deep_llama() -> nn.Module:
    return deep(llama)().float()


def test_tokens_are_dropped_until_the_last_fifth_of_the_run_and_in_training_only(training):
    callback, counts = training.callbacks.TokenDropping(0.5, min_tokens=2), []
    training.train(
        callback,
        model=deep_llama(),
        before_batch=lambda *_: counts.append(callback.dropper.layer_tokens),
        validate_every=4,
    )
    computed = [after - before for before, after in itertools.pairwise([*counts, callback.dropper.layer_tokens])]
    assert computed == [DROPPED] * 16 + [WHOLE] * 4
    assert callback.dropper.all_layer_tokens == 20 * WHOLE


def test_model_is_left_as_it_was(training):
    def fail(model, step):
        return 1 / 0

    model = deep_llama()
    classes = [type(module) for module in model.modules()]
    training.train(training.callbacks.TokenDropping(0.5, min_tokens=2), model=model, steps=8)
    assert [type(module) for module in model.modules()] == classes
    assert not any("forward" in vars(module) for module in model.modules())
    failing = deep_llama()
    with pytest.raises(ZeroDivisionError):
        training.train(training.callbacks.TokenDropping(0.5, min_tokens=2), model=failing, before_batch=fail)
    assert [type(module) for module in failing.modules()] == classes
    assert not any("forward" in vars(module) for module in failing.modules())
