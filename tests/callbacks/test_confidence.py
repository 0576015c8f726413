"""The model is asked beside real trainings of both trainers."""

import dataclasses
import json
import logging

import lightning.pytorch as pl
import pytest
import torch
import transformers as hf
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

import attnwatch.lightning
from attnwatch import AttnwatchWarning, ConfigurationError
from attnwatch.explain import Answers, Calibration, ask, classifier_calibration
from attnwatch.transformers import ConfidenceProbe
from tests.support.language_models import QUESTION, TEMPLATES, word_tokenizer
from tests.support.lightning_training import Llama, train_epochs
from tests.support.models import bert, gpt, llama, seeded, t5_for_generation, token_ids
from tests.support.transformers_training import STEPS, Sequences, tensorboard_in, train, trainer

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")

QUESTIONS = [QUESTION, {"prompt": "the grass is", "choices": ["green", "w3 w4 w5"], "answer": 0}]
OPTIONS = {"tokenizer": word_tokenizer(), "templates": TEMPLATES, "max_new_tokens": 3, "num_bins": 5}
ALL = {"reasons": True, "stated": "percentage", **OPTIONS}


def same(first, second) -> bool:
    """Whether two lists of results are, nan included."""
    return repr(first) == repr(second)


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"gradient_checkpointing": True}], ids=str)
def test_training_is_bit_identical(options, tmp_path):
    options |= {"eval_strategy": "steps", "eval_steps": 7, "gradient_accumulation_steps": 2, "directory": tmp_path}
    plain = train(model=llama(dropout=0.1), **options)
    state = torch.get_rng_state()
    probe = ConfidenceProbe(QUESTIONS, every_n_steps=3, **ALL)
    asked = train(probe, model=llama(dropout=0.1), **options)
    assert plain.losses == asked.losses
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_weights(plain.model, asked.model)
    assert [step for step, _ in probe.results] == [3, 6, 9, 12, 15, 18, STEPS]
    assert len({found.log_likelihoods[0][0] for _, found in probe.results}) == 7  # the model has changed
    assert plain.model.generation_config.to_dict() == asked.model.generation_config.to_dict()


@pytest.mark.parametrize("made", [False, True], ids=["given", "made"])
def test_lightning_training_is_bit_identical(made):
    _, plain = train_epochs(None, Llama(dropout=0.1), val_check_interval=5)
    state = torch.get_rng_state()
    options = ALL | {"batches": [{"input_ids": token_ids(6, 40)}]} if made else ALL
    probe = attnwatch.lightning.ConfidenceProbe(None if made else QUESTIONS, every_n_steps=4, **options)
    _, asked = train_epochs(probe, Llama(dropout=0.1), val_check_interval=5)
    assert plain.losses == asked.losses
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_weights(plain, asked)
    assert [step for step, _ in probe.results] == [4, 8, 12]
    assert all(len(found.claimed_reasons) == len(found.labels) > 0 for _, found in probe.results)


def test_results_are_those_of_the_function(tmp_path):
    probe = ConfidenceProbe(QUESTIONS, every_n_steps=None, reasons=True, **OPTIONS)
    run = train(probe, directory=tmp_path)
    ((step, found),) = probe.results
    expected = ask(run.model, OPTIONS["tokenizer"], QUESTIONS, templates=TEMPLATES, reasons=True, max_new_tokens=3)
    assert (step, found) == (STEPS, expected)
    (entry,) = [entry for entry in run.state.log_history if "confidence/accuracy" in entry]
    calibration, stated = expected.calibration(num_bins=5), expected.stated_calibration(num_bins=5)
    assert entry["confidence/expected_calibration_error"] == calibration.expected_calibration_error
    assert entry["confidence/brier"] == calibration.brier
    assert entry["confidence/stated_brier"] == stated.brier
    assert entry["confidence/questions"] == 2
    assert ("confidence/stated_auroc" in entry) == (stated.auroc_reason == "")
    json.dumps(run.state.log_history, allow_nan=False)


def test_metrics_can_be_monitored():
    probe = attnwatch.lightning.ConfidenceProbe(QUESTIONS, every_n_steps=4, **OPTIONS)
    run, _ = train_epochs(probe)
    found = dict(probe.results)[12].calibration(num_bins=5)
    assert run.callback_metrics["confidence/mean_confidence"] == pytest.approx(found.mean_confidence)


def test_questions_are_made_from_validation_batches(tmp_path):
    """The trainer knows its tokenizer."""

    class Long(Sequences):
        def __init__(self, number: int):
            self._ids = token_ids(number, 40)

    run = trainer(ConfidenceProbe(every_n_steps=10, num_questions=5, stated=None), directory=tmp_path, max_steps=12)
    run.eval_dataset, run.processing_class = Long(8), word_tokenizer()
    run.train()
    probe = next(each for each in run.callback_handler.callbacks if isinstance(each, ConfidenceProbe))
    (_, first), (_, second) = probe.results
    assert first.prompts == second.prompts
    assert 1 <= len(first.prompts) <= 5
    assert first.stated_confidence == []
    text = [word_tokenizer().decode(row) for row in token_ids(8, 40)]
    for prompt, choices, label in zip(first.prompts, first.choices, first.labels, strict=True):
        assert any(f"{prompt} {choices[label]}" in row for row in text)


@pytest.mark.parametrize("at", [4, 8])
def test_resumed_equals_uninterrupted(at, tmp_path):
    options = {"directory": tmp_path, "save_strategy": "steps", "save_steps": 4, "max_steps": 12}
    uninterrupted = ConfidenceProbe(QUESTIONS, every_n_steps=3, **ALL)
    train(uninterrupted, **options)
    resumed = ConfidenceProbe(QUESTIONS, every_n_steps=3, **ALL)
    train(resumed, resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"), **options)
    assert same(resumed.results, uninterrupted.results)
    assert [step for step, _ in resumed.results] == [3, 6, 9, 12]


def test_lightning_resumed_equals_uninterrupted(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=12, save_top_k=-1, filename="{step}")
    options = {"callbacks": [checkpoint], "enable_checkpointing": True, "epochs": 2}
    uninterrupted = attnwatch.lightning.ConfidenceProbe(QUESTIONS, every_n_steps=5, **ALL)
    train_epochs(uninterrupted, **options)
    resumed = attnwatch.lightning.ConfidenceProbe(QUESTIONS, every_n_steps=5, **ALL)
    train_epochs(resumed, ckpt_path=tmp_path / "step=12.ckpt", epochs=2)
    assert [step for step, _ in resumed.results] == [5, 10, 15, 20, 24]
    assert same(resumed.results, uninterrupted.results)


def test_tensorboard_has_numbers_pictures_and_words(tmp_path, monkeypatch):
    options = tensorboard_in(tmp_path / "logs", monkeypatch)
    probe = ConfidenceProbe(QUESTIONS, every_n_steps=10, reasons=True, **OPTIONS)
    train(probe, directory=tmp_path, **options)
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    tags = events.Tags()
    assert {"confidence/accuracy", "confidence/stated_expected_calibration_error"} <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("confidence/brier")] == [10, 20]
    pictures = {tag for tag in tags["images"] if tag.startswith("confidence")}
    assert pictures == {"confidence/reliability", "confidence/stated_reliability"}
    words = events.Tensors("confidence/answers/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "the sky is" in words
    assert "not an explanation): " in words


def test_forwards_are_told_and_kept_to(tmp_path, caplog, monkeypatch):
    model, calls = llama(), []
    probe = ConfidenceProbe(QUESTIONS, every_n_steps=None, reasons=True, batch_size=1, **OPTIONS)
    run = trainer(probe, directory=tmp_path, model=model)
    model.register_forward_hook(lambda module, *_: calls.append(1) if not module.training else None)
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "propagate", False)  # it is true where CI=1 is set, and each message were heard twice
    logger.addHandler(caplog.handler)
    hf.utils.logging.set_verbosity_info()
    try:
        run.train()
    finally:
        hf.utils.logging.set_verbosity_warning()
        logger.removeHandler(caplog.handler)
    (told,) = [record.getMessage() for record in caplog.records if "ConfidenceProbe asks" in record.getMessage()]
    # Two prompts, in the second one choice is read on its own; two words for each; three new tokens for each.
    assert "asks 2 questions each time (0 skipped), in at most 11 forwards of up to 1 rows" in told
    assert len(calls) == probe.results[0][1].num_forwards <= 11


class Classified(Sequences):
    """Sequences of two kinds."""

    def __getitem__(self, index):
        return {"input_ids": self._ids[index], "labels": int(self._ids[index].sum()) % 2}


def classifier(**options):
    config = hf.BertConfig(**bert(dropout=0.1, **options).config.to_diff_dict())
    return seeded(lambda: hf.BertForSequenceClassification(config))


def test_classifier(tmp_path):
    options = {"train_dataset": Classified(), "directory": tmp_path, "save_strategy": "steps", "save_steps": 10}
    runs = []
    for callbacks in ((), (ConfidenceProbe(every_n_steps=6, num_bins=5),)):
        runs.append(trainer(*callbacks, model=classifier(), **options))
        runs[-1].eval_dataset = Classified(20)
        runs[-1].train()
    assert runs[0].losses == runs[1].losses
    assert_same_weights(runs[0].model, runs[1].model)
    (probe,) = callbacks
    assert [step for step, _ in probe.results] == [6, 12, 18, 20]
    batch = next(iter(DataLoader(Classified(20), batch_size=20)))
    found = classifier_calibration(runs[1].model, [batch], num_bins=5)
    for field in ("accuracy", "brier", "expected_calibration_error"):
        assert getattr(probe.results[-1][1], field) == pytest.approx(getattr(found, field), abs=1e-6)
    assert any("confidence/auroc" in entry for entry in runs[1].state.log_history)
    resumed = ConfidenceProbe(every_n_steps=6, num_bins=5)
    run = trainer(resumed, model=classifier(), **options)
    run.eval_dataset = Classified(20)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert same(resumed.results, probe.results)
    assert isinstance(resumed.results[0][1], Calibration)


class Head(pl.LightningModule):
    """A classifier of no package."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = bert(), nn.Linear(32, 3)

    def logits(self, batch):
        return self.head(self.encoder(input_ids=batch["input_ids"]).last_hidden_state[:, 0])

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.logits(batch), batch["label"])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def fit(probe, module, data):
    pl.Trainer(
        max_steps=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[probe],
    ).fit(module, data, data)


def test_classifier_that_a_function_calls():
    data = DataLoader([{"input_ids": ids, "label": int(ids[0]) % 3} for ids in token_ids(12)], batch_size=4)
    probe = attnwatch.lightning.ConfidenceProbe(every_n_steps=2, forward=lambda module, batch: module.logits(batch))
    fit(probe, Head(), data)
    assert [found.num_examples for _, found in probe.results] == [12, 12]


def test_failures_are_told_once_and_training_goes_on():
    """Batches of tensors have no names."""
    probe = attnwatch.lightning.ConfidenceProbe(every_n_steps=3, **OPTIONS)
    with pytest.warns(AttnwatchWarning, match="ConfidenceProbe failed, training continues: .*`batches`") as told:
        _, module = train_epochs(probe)
    assert len([each for each in told if each.category is AttnwatchWarning]) == 1
    assert len(module.losses) == 12
    assert probe.results == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": None}, "`tokenizer` is needed to ask a language model"),
        ({"model": t5_for_generation}, "causal language model, got a T5ForConditionalGenera"),
        ({"model": bert}, "got a BertModel; for a classifier"),
        ({"model": gpt}, "contains no transformers model: pass `forward`"),
        ({"model": classifier}, "`questions` need a language model; BertForSequenceClassification is a classifier"),
        ({"max_length": 2}, "none of 2 can be asked; the first one: it takes"),
        ({"questions": None, "evaluated": False}, "ConfidenceProbe needs batches: give `batches`"),
        (
            {"questions": None, "batches": [{"input_ids": token_ids(2, 4)}]},
            "the text of the batches has fewer than 4 places .* .8 tokens in 2",
        ),
    ],
)
def test_what_cannot_be_asked_stops_before_the_first_step(options, message, tmp_path):
    options = {"questions": QUESTIONS, **OPTIONS} | options
    model, evaluated = options.pop("model", llama)(), options.pop("evaluated", True)
    run = trainer(ConfidenceProbe(options.pop("questions"), **options), directory=tmp_path, model=model)
    if not evaluated:
        run.eval_dataset = None
    with pytest.raises(ConfigurationError, match=message):
        run.train()
    assert run.losses == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"questions": "nowhere.jsonl"}, "nowhere.jsonl can't be read"),
        ({"stated": "often"}, "`stated` must be one of"),
        ({"every_n_steps": 0}, "`every_n_steps` must be an integer"),
        ({"num_questions": 0}, "`num_questions` must be an integer"),
        ({"num_bins": 0}, "`num_bins` must be an integer"),
        ({"max_length": 0}, "`max_length` must be an integer"),
        ({"seed": [1]}, "`seed` must be an integer"),
        ({"templates": "x"}, "`templates` must be `attnwatch.explain.Templates` or None, got a str"),
        ({"templates": {}}, "`templates` must be `attnwatch.explain.Templates` or None, got a dict"),
        ({"tokenizer": "gpt2"}, "pass a tokenizer object, AutoTokenizer.from_pretrained.'gpt2'"),
        ({"batches": {"input_ids": 0}}, "`batches` must be a list of batches"),
    ],
)
def test_wrong_arguments_are_named_at_once(options, message):
    for probe in (ConfidenceProbe, attnwatch.lightning.ConfidenceProbe):
        with pytest.raises(ConfigurationError, match=message):
            probe(**options)


def test_given_questions_need_no_validation_data(tmp_path):
    run = trainer(ConfidenceProbe(QUESTIONS, every_n_steps=10, **OPTIONS), directory=tmp_path)
    run.eval_dataset = None
    run.train()
    (probe,) = [each for each in run.callback_handler.callbacks if isinstance(each, ConfidenceProbe)]
    assert len(probe.results) == 2
    fields = {field.name for field in dataclasses.fields(Answers)}
    assert "claimed_reasons" in fields
    assert not any("explanation" in field for field in fields)
