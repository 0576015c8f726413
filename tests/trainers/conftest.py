"""Trainings by each trainer."""

from pathlib import Path

import pytest

from tests.support.trainings import TRAININGS, Training


@pytest.fixture(params=TRAININGS)
def training(request: pytest.FixtureRequest, tmp_path: Path) -> Training:
    """Trainings in a folder of their own. A test can be parametrized with the name of the trainer (`indirect`)."""
    return TRAININGS[request.param](tmp_path)
