"""Every test starts from the same seed, and hypothesis draws the same examples in every run."""

import os
import random

import hypothesis
import numpy as np
import pytest
import torch

# pytest-xdist runs one process a core, and some tests start others.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

hypothesis.settings.register_profile("deterministic", deadline=None, derandomize=True, max_examples=120)
hypothesis.settings.load_profile("deterministic")


@pytest.fixture(autouse=True)
def _plain_training(monkeypatch):
    """Trainers of transformers 4 leave a run's precision and compilation in the environment, for all later ones."""
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
