"""Scripts of the benchmark of the checkup that begin with a model that has learned something."""

from dataclasses import replace

import pytest
import torch

from benchmarks.checkup.architectures import ARCHITECTURES, EVERY_ARCHITECTURE, pretrained
from benchmarks.checkup.scripts import built

SCRIPT = ARCHITECTURES["own causal"]


def fails(model, batch):
    raise MemoryError("no memory is left")


def test_failed_training_gives_no_untrained_model(monkeypatch):
    monkeypatch.setitem(EVERY_ARCHITECTURE, "broken", replace(SCRIPT, loss=fails))
    with pytest.raises(RuntimeError, match="the short training of 'broken' failed: MemoryError: no memory is left"):
        built(pretrained("broken"), seed=0)


def test_model_has_learned_and_random_numbers_go_on(monkeypatch):
    monkeypatch.setitem(EVERY_ARCHITECTURE, "own", SCRIPT)
    (model, _), number = built(pretrained("own"), seed=0), torch.rand(())
    (plain, _), expected = built(SCRIPT, seed=0), torch.rand(())
    assert number == expected
    assert (model.norm.weight != 1).any()
    assert (plain.norm.weight == 1).all()
