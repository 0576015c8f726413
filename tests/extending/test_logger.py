"""A logger from outside of the package: numbers, images and text go there, under each trainer."""

import lightning.pytorch as pl
import numpy as np
import pytest
import transformers as hf
from torch.utils.tensorboard import SummaryWriter

import attnwatch
import attnwatch.lightning
import attnwatch.transformers
from attnwatch import AttnwatchWarning, ConfigurationError
from attnwatch.loggers import logger_for
from tests.support.lightning_training import Llama, batches
from tests.support.transformers_training import train

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")


class NotebookLogger(attnwatch.Logger):
    name = "notebook"
    class_names = ("Notebook",)

    def log_scalars(self, numbers, step):
        self.target.pages += [("scalar", tag, step, number) for tag, number in numbers.items()]

    def log_images(self, draw, step):
        self.target.pages += [("image", tag, step, image) for tag, image in draw().items()]

    def log_text(self, tag, markdown, step):
        self.target.pages.append(("text", tag, step, markdown))


class Notebook(pl.loggers.Logger):
    """A logger of Lightning."""

    name, version = "notebook", 0

    def __init__(self):
        self.pages = []

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        pass


class Reporting(hf.TrainerCallback):
    """What transformers reports to, of a class that derives from one that the logger names."""

    def __init__(self):
        self.pages = []


class ReportingNotebook(type("Notebook", (Reporting,), {})):
    pass


def run_lightning(logger, directory, **options) -> attnwatch.lightning.AttentionMonitor:
    monitor = attnwatch.lightning.AttentionMonitor(every_n_steps=2, **options)
    silent = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(callbacks=[monitor], logger=logger, max_steps=8, accelerator="cpu", **silent)
    trainer.fit(Llama(), batches(8))
    return monitor


def run_transformers(logger, directory, **options) -> attnwatch.transformers.AttentionMonitor:
    monitor = attnwatch.transformers.AttentionMonitor(every_n_steps=2, **options)
    train(monitor, logger, directory=directory, max_steps=8)
    return monitor


RUNS = {"lightning": (run_lightning, Notebook), "transformers": (run_transformers, ReportingNotebook)}


@pytest.mark.parametrize(("run", "target"), RUNS.values(), ids=RUNS)
def test_logger_is_given_everything_under_each_trainer(run, target, registered, tmp_path):
    registered(NotebookLogger)
    notebook = target()
    monitor = run(notebook, tmp_path)
    scalars = [(step, number) for kind, tag, step, number in notebook.pages if tag == "attention/normalized_entropy"]
    assert [step for step, _ in scalars] == monitor.history.steps.tolist() == [0, 2, 4, 6]
    np.testing.assert_allclose([number for _, number in scalars], monitor.history["normalized_entropy"].mean((1, 2)))
    images = {tag: image for kind, tag, step, image in notebook.pages if kind == "image" and step == 6}
    assert images["attention_heads/max_logit"].shape[2] == 3
    texts = [(tag, step, text) for kind, tag, step, text in notebook.pages if kind == "text"]
    assert [(tag, step) for tag, step, _ in texts] == [("attention/diagnosis", 6)]
    assert "risk" in texts[0][2]


@pytest.mark.parametrize(("run", "target"), RUNS.values(), ids=RUNS)
def test_what_fails_is_one_warning_and_everything_else_goes_on(run, target, registered, tmp_path):
    class Failing(NotebookLogger):
        def log_images(self, draw, step):
            raise OSError("the pen is empty")

    registered(Failing)
    notebook = target()
    with pytest.warns(AttnwatchWarning) as caught:
        run(notebook, tmp_path, figures_every_n_steps=2, flush_every=1)
    (message,) = [str(each.message) for each in caught if issubclass(each.category, AttnwatchWarning)]
    assert message == (
        f"attnwatch: writing pictures to {target.__name__} failed and is not tried again, training continues: "
        "OSError: the pen is empty"
    )
    assert {kind for kind, *_ in notebook.pages} == {"scalar", "text"}


def test_without_its_plugin_a_logger_of_lightning_gets_scalars(tmp_path):
    class Counting(Notebook):
        def log_metrics(self, metrics, step=None):
            self.pages += metrics

    notebook = Counting()
    run_lightning(notebook, tmp_path)
    assert "layers_max_logit/layer_1" in notebook.pages


def test_most_derived_class_decides_then_the_latest_plugin(registered, tmp_path):
    class MyWriter(SummaryWriter):
        pass

    writer = MyWriter(tmp_path)
    assert logger_for(writer).name == "tensorboard"
    for name in ("first", "second"):
        registered(type(name, (attnwatch.Logger,), {"name": name, "class_names": ("SummaryWriter",)}))
    assert logger_for(writer).name == "second"
    registered(type("Mine", (attnwatch.Logger,), {"name": "mine", "class_names": ("MyWriter",)}))
    registered(type("Third", (attnwatch.Logger,), {"name": "third", "class_names": ("SummaryWriter",)}))
    assert logger_for(writer).name == "mine"
    assert logger_for(object()) is None
    writer.close()


@pytest.mark.parametrize("names", ["Notebook", ("not a name",), None], ids=str)
def test_wrong_declaration_is_refused_by_name(names):
    with pytest.raises(ConfigurationError, match=r"the logger 'wrong' \(.*Wrong\) must be a class whose `class_names`"):
        attnwatch.register(type("Wrong", (attnwatch.Logger,), {"name": "wrong", "class_names": names}))
    with pytest.raises(ConfigurationError, match=r"must be a class whose `class_names`"):
        attnwatch.register(NotebookLogger(None))


def test_name_of_another_logger_is_refused():
    with pytest.raises(ConfigurationError, match="has the name of the logger 'wandb'"):
        attnwatch.register(type("Mine", (attnwatch.Logger,), {"name": "wandb", "class_names": ("Mine",)}))


def test_logger_that_writes_nothing_says_what_to_override(registered):
    with pytest.raises(NotImplementedError, match="Half must override `log_scalars` to write to a list"):
        type("Half", (attnwatch.Logger,), {"name": "half"})([]).log_scalars({"loss": 1.0}, 0)
