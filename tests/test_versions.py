"""What is declared was tested, and who has other versions is told so once."""

import warnings
from importlib import metadata

import lightning.pytorch as pl
import pytest
from matrix import ROWS
from models import gpt, llama
from packaging.requirements import Requirement
from packaging.version import Version
from test_lightning_monitor import Llama, batches
from trainers import train

import attnwatch.lightning
import attnwatch.transformers
from attnwatch import AttentionRecorder, AttnwatchWarning
from attnwatch.versions import warn_if_untested

LIBRARIES = ["transformers", "lightning", "pytorch-lightning"]


def declared(library: str) -> Requirement:
    return next(each for each in map(Requirement, metadata.requires("attnwatch")) if each.name == library)


@pytest.fixture
def installed_elsewhere(tmp_path, monkeypatch):
    """Metadata of an attnwatch that was tested with very old versions."""
    folder = tmp_path / "attnwatch-0.1.0.dist-info"
    folder.mkdir()
    requires = [f"Requires-Dist: {library}<1,>=0.5; extra == 'dev'" for library in LIBRARIES]
    lines = ["Metadata-Version: 2.4", "Name: attnwatch", "Version: 0.1.0", *requires]
    (folder / "METADATA").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    warn_if_untested.cache_clear()
    yield
    warn_if_untested.cache_clear()


def watch(model) -> None:
    with AttentionRecorder(model):
        pass


def train_by_lightning(*callbacks: pl.Callback) -> None:
    trainer = pl.Trainer(
        max_steps=20, callbacks=list(callbacks), accelerator="cpu", logger=False, enable_checkpointing=False
    )
    trainer.fit(Llama(), batches(20))


@pytest.mark.parametrize("library", LIBRARIES)
def test_range_is_from_the_oldest_to_the_newest_that_was_tested(library: str):
    pins = [pin.split("==") for pins in ROWS.values() for pin in pins]
    tested = [Version(version) for name, version in pins if name == library]
    bounds = {each.operator: Version(each.version) for each in declared(library).specifier}
    assert bounds == {">=": min(tested), "<": Version(f"{max(tested).major}.{max(tested).minor + 1}")}


@pytest.mark.parametrize("library", LIBRARIES)
def test_tested_versions_are_used_without_a_word(library: str):
    warn_if_untested.cache_clear()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        warn_if_untested(library)
    assert not warned


def test_model_of_an_untested_version_is_told_once(installed_elsewhere):
    watch(gpt())  # no model of transformers
    installed = metadata.version("transformers")
    message = rf"transformers {installed} is not among .* \(transformers<1,>=0.5\).*pip install .* coverage\(\)"
    with pytest.warns(AttnwatchWarning, match=message):
        watch(llama())
    watch(llama())  # a second warning would be an error


@pytest.mark.filterwarnings("ignore")
def test_callbacks_tell_of_untested_versions_once(installed_elsewhere, tmp_path):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(2):
            train_by_lightning(attnwatch.lightning.AttentionMonitor(), attnwatch.lightning.HeadPruning())
            train(attnwatch.transformers.HeadPruning(), directory=tmp_path)
    told = [str(each.message) for each in warned if "not among the versions" in str(each.message)]
    assert sorted(message.split()[0] for message in told) == ["lightning", "transformers"]
