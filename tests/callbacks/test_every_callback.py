"""What all callbacks have in common, for both trainers: documentation, refusals, and what they tell."""

import enum
import inspect
import logging
import pydoc
import re
import warnings

import lightning.pytorch as pl
import pytest
import torch
import transformers as hf

import attnwatch
import attnwatch.explain
import attnwatch.lightning
import attnwatch.transformers
from attnwatch import ConfigurationError
from attnwatch.utils.messages import inform
from tests.support.lightning_training import Llama, batches
from tests.support.models import LAYERS, llama, token_ids
from tests.support.transformers_training import Sequences, trainer

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")

NAMES = attnwatch.lightning.__all__
PACKAGES = [attnwatch.lightning, attnwatch.transformers]
PUBLIC = [(package, name) for package in (attnwatch, attnwatch.explain, *PACKAGES) for name in package.__all__]
CALLBACKS = [(package, name) for package in PACKAGES for name in NAMES]
BATCHES = [{"input_ids": token_ids(8), "labels": token_ids(8)}]
QUESTIONS = [attnwatch.explain.Question("w1 w2", ("w3", "w4"), 0)]


def ids(value) -> str:
    return getattr(value, "__name__", value)


def made(package, name: str):
    """A callback that trains on 12 steps."""
    options = {
        "OcclusionAudit": {"batches": BATCHES},
        "LayerProbe": {"batches": BATCHES},
        "ConfidenceProbe": {"questions": QUESTIONS},
        "TokenDropping": {"min_tokens": 2, "first_layer": 0, "last_layer": LAYERS - 1},
    }
    return getattr(package, name)(**options.get(name, {}))


# Documentation


def described(documentation: str) -> set[str]:
    """The names in its sections of arguments and attributes."""
    sections = re.findall(r"^(?:Args|Attributes):\n((?:    .*\n|\n)+)", documentation + "\n", re.M)
    lines = [line for section in sections for line in re.findall(r"^    (\w[\w, \n]*?):", section, re.M)]
    return {name for line in lines for name in re.split(r",\s+", line)}


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=ids)
def test_public_names_are_documented_with_all_arguments(package, name):
    thing = getattr(package, name)
    own = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    assert own, "has no documentation of its own"
    assert inspect.getdoc(thing) == inspect.cleandoc(own)
    assert not own.startswith(f"{name}("), "is what dataclasses write"
    if inspect.isclass(thing) and issubclass(thing, (enum.Enum, Exception)):
        return
    assert set(inspect.signature(thing).parameters) - described(inspect.getdoc(thing)) == set()


@pytest.mark.parametrize(("package", "name"), CALLBACKS, ids=ids)
def test_help_of_a_callback_begins_with_its_own_documentation(package, name):
    kind = getattr(package, name)
    title, signature, shown = re.sub(r"(?m)^ \| *", "", pydoc.render_doc(kind, renderer=pydoc.plaintext)).split(
        "\n", 5
    )[2:5]
    assert title.startswith(f"class {name}({package.__name__.replace('attnwatch', 'attnwatch.trainers')}.callback.")
    assert "every_n_steps" in signature or "target" in signature or "keep_ratio" in signature
    assert shown == "" or shown == kind.__doc__.split("\n")[0]
    summary = kind.__doc__.split("\n")[0]
    assert summary.endswith(".")
    assert summary.split()[0] in {"Ask", "Compare", "Compute", "Record", "Remove", "Train"}


@pytest.mark.parametrize(("package", "name"), CALLBACKS, ids=ids)
def test_example_of_a_callback_is_right_for_its_trainer(package, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "questions.jsonl").write_text('{"prompt": "w1 w2", "choices": ["w3", "w4"], "answer": 0}\n')
    code = re.search(r"```python\n(.*?)```", getattr(package, name).__doc__, re.S)[1]
    arguments = hf.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    given = {"tokenizer": None, "model": llama(), "args": arguments, "train_dataset": Sequences()}
    exec(code, given)
    made_trainer = given["trainer"]
    handler = made_trainer if package is attnwatch.lightning else made_trainer.callback_handler
    (callback,) = [each for each in handler.callbacks if type(each).__module__ == package.__name__]
    assert type(callback) is getattr(package, name)


# The wrong trainer, and two of a kind


def lightning_trainer(*callbacks, **options) -> pl.Trainer:
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(callbacks=list(callbacks), accelerator="cpu", **{"max_steps": 2} | silent | options)


@pytest.mark.parametrize("name", NAMES)
def test_callback_for_transformers_that_lightning_is_given(name):
    module = Llama()
    message = (
        f"attnwatch.transformers.{name} was given to Lightning's Trainer, which calls other hooks. For this trainer: "
        f"from attnwatch.lightning import {name}$"
    )
    with pytest.raises(ConfigurationError, match=message):
        lightning_trainer(made(attnwatch.transformers, name)).fit(module, batches(2))
    with pytest.raises(ConfigurationError, match=message):
        lightning_trainer(made(attnwatch.transformers, name)).validate(module, batches(2), verbose=False)
    assert module.losses == []


@pytest.mark.parametrize("name", NAMES)
def test_callback_for_lightning_that_transformers_is_given(name, tmp_path):
    message = (
        f"attnwatch.lightning.{name} was given to the transformers Trainer, which calls other hooks. For this trainer: "
        f"from attnwatch.transformers import {name}$"
    )
    with pytest.raises(ConfigurationError, match=message):
        trainer(made(attnwatch.lightning, name), directory=tmp_path)
    for use in ("train", "evaluate"):
        later = trainer(directory=tmp_path)
        later.add_callback(made(attnwatch.lightning, name))
        with pytest.raises(ConfigurationError, match=message):
            getattr(later, use)()
        assert later.losses == []


def test_own_subclass_is_named_by_the_class_that_it_is_of(tmp_path):
    class Mine(attnwatch.lightning.AttentionMonitor):
        pass

    with pytest.raises(ConfigurationError, match=r"attnwatch\.lightning\.AttentionMonitor was given"):
        trainer(Mine(), directory=tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_two_of_a_kind_are_refused_by_name(name, tmp_path):
    message = f"`callbacks` has two {name}, but a trainer takes only one: remove the other"
    two = [made(attnwatch.lightning, name) for _ in range(2)]
    for start in ("fit", "validate"):
        with pytest.raises(ConfigurationError, match=message):
            getattr(lightning_trainer(*two), start)(Llama(), batches(2))
    with pytest.raises(ConfigurationError, match=message):
        trainer(*(made(attnwatch.transformers, name) for _ in range(2)), directory=tmp_path).train()


# What they tell


def news(captured: str) -> list[str]:
    return [line for line in captured.splitlines() if line.startswith("attnwatch: ")]


def pruning(package):
    return package.HeadPruning(0.5, guard=None, start=4, end=10, num_cuts=2)


EXPECTED = ["attnwatch: 2 heads removed after step 4", "attnwatch: 2 heads removed after step 10"]


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_cuts_are_told_under_the_transformers_trainer(disable_tqdm, tmp_path, capsys):
    trainer(pruning(attnwatch.transformers), directory=tmp_path, disable_tqdm=disable_tqdm).train()
    told = news(capsys.readouterr().out)
    assert set(EXPECTED) <= set(told)
    assert sum(line.startswith("attnwatch: 4 of 8 heads removed; the target was 50%") for line in told) == 1
    assert len(told) == len(set(told))


@pytest.mark.parametrize("level", [logging.INFO, logging.ERROR])
def test_cuts_are_told_under_lightning_whatever_its_logger_shows(level, capsys, caplog):
    caplog.set_level(level, "lightning.pytorch")
    lightning_trainer(pruning(attnwatch.lightning), max_steps=20).fit(Llama(), batches(20))
    printed, logged = news(capsys.readouterr().out), [each.getMessage() for each in caplog.records]
    told = logged if level == logging.INFO else printed
    assert set(EXPECTED) <= set(told)
    assert not set(EXPECTED) & set(printed if level == logging.INFO else logged)


def test_news_are_for_the_logger_that_shows_them(capsys, caplog):
    other = logging.getLogger("attnwatch.tests.other")
    other.addHandler(logging.NullHandler())
    inform("nobody is configured", by=other)
    with caplog.at_level(logging.INFO, "attnwatch"):
        inform("ours is", by=logging.getLogger("somebody.else"))
    with caplog.at_level(logging.INFO, "somebody.else"):
        inform("the other is", by=logging.getLogger("somebody.else"))
    with caplog.at_level(logging.WARNING, "attnwatch"):
        inform("nobody wants to know")
    assert news(capsys.readouterr().out) == ["attnwatch: nobody is configured"]
    assert [(each.name, each.getMessage()) for each in caplog.records] == [
        ("attnwatch", "attnwatch: ours is"),
        ("somebody.else", "attnwatch: the other is"),
    ]


@pytest.mark.logs_warnings
@pytest.mark.parametrize("action", ["error", "ignore", "once"])
def test_finding_is_heard_whatever_is_filtered(action, tmp_path, caplog, recwarn):
    """Under "once", the second run finds what the first one has found."""
    heard = []
    for _ in range(2):
        model = llama()
        model.model.layers[0].self_attn.q_proj.weight.data[0, 0] = torch.nan
        monitor = attnwatch.transformers.AttentionMonitor(every_n_steps=1)
        with warnings.catch_warnings():
            warnings.simplefilter(action, attnwatch.AttnwatchWarning)
            trainer(monitor, directory=tmp_path, model=model, max_steps=3, logging_nan_inf_filter=False).train()
        heard.append([*(each.getMessage() for each in caplog.records), *(str(each.message) for each in recwarn)])
        caplog.clear()
        recwarn.clear()
    assert [sum("non_finite since step 0" in message for message in run) for run in heard] == [1, 1]
