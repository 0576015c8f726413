"""Recorders come and go in any order, and leave torch, transformers and the models as they were."""

import gc
import itertools
import weakref

import numpy as np
import pytest
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface

from attnwatch import ConfigurationError
from attnwatch.recorder import AttentionRecorder
from attnwatch.statistics import Statistic
from tests.support import models
from tests.support.models import AliasedAttention, gpt, llama, token_ids
from tests.support.versions import GETS_FUNCTIONS


def patched_places() -> list:
    return [F.scaled_dot_product_attention, models.sdpa, getattr(AttentionInterface, GETS_FUNCTIONS)]


def mixed(layers: int) -> nn.Module:
    """Attention of every kind."""
    model = nn.ModuleDict({"llama": llama(), "plain": gpt(AliasedAttention, layers=layers)})
    model["encoder"] = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
    model.forward = lambda ids: [
        model["llama"](ids),
        model["plain"](ids),
        model["encoder"](model["plain"].embedding(ids)),
    ]
    return model


def observe(recorder: AttentionRecorder, model: nn.Module):
    with recorder.step(0):
        model(token_ids())
    return recorder.history()


@pytest.mark.parametrize("closed_first", [0, 1, 2])
def test_recorders_of_several_models_close_in_any_order(closed_first: int):
    originals = patched_places()
    watched = [mixed(layers=1), mixed(layers=2), gpt()]
    recorders = [AttentionRecorder(model) for model in watched]
    assert all(place is not original for place, original in zip(patched_places(), originals, strict=True))
    for index in (closed_first, *(index for index in range(3) if index != closed_first)):
        history = observe(recorders[index], watched[index])
        assert set(history.coverage.values()) == {"observed"}
        recorders[index].close()
        recorders[index].close()  # twice is fine
    assert all(place is original for place, original in zip(patched_places(), originals, strict=True))
    for module in itertools.chain(*(model.modules() for model in watched)):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_two_recorders_do_not_change_what_one_sees():
    """A call that is delivered once per recorder has the same means, but half the sampling variance."""
    model, other = mixed(layers=1), mixed(layers=1)
    with AttentionRecorder(model, num_query_rows=6) as recorder:
        alone = observe(recorder, model)
    with AttentionRecorder(other), AttentionRecorder(model, num_query_rows=6) as recorder:
        together = observe(recorder, model)
    for name in Statistic.registry:
        np.testing.assert_array_equal(together[name], alone[name])


@pytest.mark.parametrize("closed_first", [0, 1])
@pytest.mark.parametrize(
    "sites",
    [
        (None, None),
        (["*layers.0.*"], ["*layers.1.*"]),
        (["*layers.1.*"], ["*layers.0.*"]),
        (None, ["plain*"]),
        (["plain*"], None),
        (["llama*"], ["plain*", "encoder*"]),
    ],
    ids=str,
)
def test_recorders_of_one_model_each_see_their_sites(sites, closed_first: int):
    originals, model = patched_places(), mixed(layers=2)
    alone = []
    for patterns in sites:
        with AttentionRecorder(model, sites=patterns, num_query_rows=6) as recorder:
            alone.append(observe(recorder, model))
    recorders = [AttentionRecorder(model, sites=patterns, num_query_rows=6) for patterns in sites]
    with recorders[0].step(0), recorders[1].step(0):
        model(token_ids())
    for recorder, expected in zip(recorders, alone, strict=True):
        history = recorder.history()
        assert history.sites == expected.sites
        for name in Statistic.registry:
            np.testing.assert_array_equal(history[name], expected[name])
    recorders[closed_first].close()
    left = recorders[1 - closed_first]
    with left.step(10):
        model(token_ids())
    assert left.history().steps.tolist() == [0, 10]
    assert not np.isnan(left.history()["entropy"][1]).any()
    left.close()
    assert patched_places() == originals
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_patch_of_somebody_else_stays():
    """Here it outlives the recorder, and leads to a patch of it that a second one does not count again."""
    original = F.scaled_dot_product_attention
    model = gpt()
    with AttentionRecorder(model, num_query_rows=6) as recorder:
        expected = observe(recorder, model)
        watched = F.scaled_dot_product_attention

        def of_somebody_else(*args, **kwargs):
            return watched(*args, **kwargs)

        F.scaled_dot_product_attention = of_somebody_else
    try:
        assert F.scaled_dot_product_attention is of_somebody_else
        with AttentionRecorder(model, num_query_rows=6) as recorder:
            history = observe(recorder, model)
        assert F.scaled_dot_product_attention is of_somebody_else
    finally:
        F.scaled_dot_product_attention = original
    for name in Statistic.registry:
        np.testing.assert_array_equal(history[name], expected[name])


def test_failed_construction_leaves_nothing_behind():
    originals = patched_places()
    with pytest.raises(ConfigurationError):
        AttentionRecorder(gpt(), sites=["nowhere"])
    with pytest.raises(ConfigurationError):
        AttentionRecorder(gpt(), every_n_steps=0)
    assert patched_places() == originals


@pytest.mark.parametrize("build", [gpt, lambda: mixed(layers=1)], ids=["functional", "of every kind"])
def test_recorder_that_nobody_closes_ends_with_its_last_reference(build):
    """As where an error ends a loop that has no `with`."""
    originals, model = patched_places(), build()
    recorder = AttentionRecorder(model)
    observe(recorder, model)
    assert patched_places() != originals
    del recorder
    gc.collect()
    assert all(place is original for place, original in zip(patched_places(), originals, strict=True))
    assert not [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert not [name for module in model.modules() for name in vars(module) if "attnwatch" in name]


def test_model_of_a_recorder_that_nobody_closes_is_freed():
    model = gpt()
    recorder, reference = AttentionRecorder(model), weakref.ref(model)
    observe(recorder, model)
    del recorder, model
    gc.collect()
    assert reference() is None
