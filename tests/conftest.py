"""Every test starts from the same seed, and hypothesis draws the same examples in every run."""

import gc
import logging
import os
import random

import hypothesis
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import attnwatch
import tests.support.torchvision  # noqa: F401 - lets timm be imported
from attnwatch.callbacks.run_report import RunReport
from attnwatch.capture.compilation import compiles_anything

# pytest-xdist runs one process a core, and some tests start others.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# `make test-slow` draws three times as many examples as `make test`.
hypothesis.settings.register_profile("quick", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.register_profile("thorough", hypothesis.settings.get_profile("quick"), max_examples=120)
hypothesis.settings.load_profile("quick")


@pytest.fixture(autouse=True)
def _plain_training(monkeypatch):
    """Trainers of transformers 4 leave a run's precision and compilation in the environment, for all later ones."""
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _nothing_is_said_unheard(request):
    """Warnings are errors in tests; attnwatch logs those that it must not raise, so what it logs is an error too."""
    logged = _Kept()
    logger = logging.getLogger("attnwatch")
    logger.addHandler(logged)
    yield
    logger.removeHandler(logged)
    if request.node.get_closest_marker("logs_warnings") is None:
        assert not logged.messages, f"attnwatch warned: {logged.messages}"


class _Kept(logging.Handler):
    """Messages of at least the level of warnings."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture(autouse=True)
def _pages_are_written_where_they_are_tested(request, monkeypatch):
    """A page takes a second, and hundreds of tests train."""
    if request.node.get_closest_marker("writes_pages") is None:
        monkeypatch.setattr(RunReport, "start", lambda self, run: None)


@pytest.fixture(autouse=True)
def _nothing_stays_patched():
    before = F.scaled_dot_product_attention
    yield
    assert F.scaled_dot_product_attention is before, "a recorder is still open"


@pytest.fixture(autouse=True)
def _nothing_is_compiled():
    """What a test compiles, the next one does not meet: less is looked for in a process that compiles."""
    yield
    if compiles_anything():
        torch._dynamo.reset()


@pytest.fixture
def registered():
    """Registers plugins for one test; one that replaces another is unregistered in its place."""
    plugins = {}

    def add(plugin):
        attnwatch.register(plugin)
        plugins[id(plugin.registry), plugin.name] = plugin
        return plugin

    yield add
    for plugin in plugins.values():
        attnwatch.unregister(plugin)


@pytest.fixture(autouse=True)
def _seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_collection_finish():
    """Keep the collector from what was imported: Trainers call it, and it took half of the time of a short training."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
