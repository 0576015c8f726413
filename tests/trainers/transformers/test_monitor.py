"""The monitor in real trainings of the transformers Trainer."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import nn

from attnwatch import AttnwatchWarning, ConfigurationError
from attnwatch.transformers import AttentionMonitor
from tests.support.models import VOCABULARY, gpt, seeded, t5
from tests.support.transformers_training import STEPS, train, trainer

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")


def test_finished_run_goes_on_from_its_last_checkpoint(tmp_path):
    options = {"directory": tmp_path, "save_strategy": "steps", "save_steps": 8}
    uninterrupted = AttentionMonitor(every_n_steps=3, flush_every=2, num_query_rows=5)
    train(uninterrupted, **options)
    again = AttentionMonitor(every_n_steps=3, flush_every=2, num_query_rows=5)
    train(again, resume_from_checkpoint=True, max_steps=STEPS + 4, **options)
    assert again.history.steps.tolist() == [*uninterrupted.history.steps, 21]


def test_numbers_are_in_the_log_history(tmp_path):
    monitor = AttentionMonitor(every_n_steps=2, flush_every=2)
    run = train(monitor, directory=tmp_path)
    entries = [entry for entry in run.state.log_history if "attention/normalized_entropy" in entry]
    history = monitor.history
    for entry in entries:
        index = history.steps.tolist().index(entry["step"])
        assert entry["attention/normalized_entropy"] == pytest.approx(history["normalized_entropy"][index].mean(), 1e-5)
        assert "attention/risk" not in entry  # nothing can be said yet
    assert len(entries) >= 4
    json.dumps(run.state.log_history, allow_nan=False)  # as checkpoints keep it


def test_other_reports_get_scalars(tmp_path):
    seen = {}

    class Report(hf.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.setdefault(state.global_step, {}).update(logs)

    Report.__module__ = "transformers.integrations.ours"
    run = trainer(Report(), AttentionMonitor(every_n_steps=4), directory=tmp_path)
    run.train()
    assert {0, 4, 8, 12, 16} <= {step for step, logs in seen.items() if "attention_details/entropy" in logs}
    assert run.state.global_step == STEPS  # the state is not the one that reports were shown


def test_trainer_is_as_before_after_training(tmp_path):
    first, second = AttentionMonitor(), AttentionMonitor()
    run = train(first, directory=tmp_path)
    assert "training_step" not in vars(run)
    run.remove_callback(first)
    run.add_callback(second)
    run.train()
    assert len(second.history) == 2


def test_seq2seq_trainer(tmp_path):
    monitor = AttentionMonitor(every_n_steps=4)
    run = train(
        monitor,
        directory=tmp_path,
        model=hf.T5ForConditionalGeneration(hf.T5Config(**t5().config.to_diff_dict() | {"decoder_start_token_id": 0})),
        trainer_class=hf.Seq2SeqTrainer,
        arguments_class=hf.Seq2SeqTrainingArguments,
        eval_strategy="epoch",
    )
    assert set(monitor.coverage().values()) == {"observed"}
    assert any("EncDecAttention" in site for site in monitor.history.sites)
    assert np.isfinite(monitor.history.loss).all()
    assert run.state.global_step == STEPS


@pytest.mark.slow
def test_compiled_model(tmp_path):
    monitor = AttentionMonitor(every_n_steps=2)
    train(monitor, directory=tmp_path, torch_compile=True, torch_compile_backend="aot_eager", max_steps=6)
    assert np.isfinite(monitor.history["normalized_entropy"]).all()
    assert len(monitor.history) == 3


class Multihead(nn.Module):
    """Language model of `nn.MultiheadAttention`, whose function PyTorch keeps opaque in a compiled model."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, 32), nn.Linear(32, VOCABULARY)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, input_ids, labels):
        states = self.embedding(input_ids)
        logits = self.head(states + self.attention(states, states, states, need_weights=False)[0])
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


@pytest.mark.slow
@pytest.mark.logs_warnings
@pytest.mark.parametrize("checkup", [True, False])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_multihead_attention_trains_as_without_the_monitor(tmp_path, backend, checkup):
    options = {"directory": tmp_path, "torch_compile": True, "torch_compile_backend": backend, "max_steps": 6}
    monitor = AttentionMonitor(every_n_steps=2, checkup=checkup)
    with pytest.warns(AttnwatchWarning, match="1 of 1 attention sites are not observed"):
        watched = train(monitor, model=seeded(Multihead), **options)
    torch._dynamo.reset()
    assert watched.losses == train(model=seeded(Multihead), **options).losses
    (reason,) = monitor.coverage().values()
    assert reason.startswith("torch.nn.MultiheadAttention inside torch.compile is not observed")


class Own(nn.Module):
    """Of no package."""

    def __init__(self):
        super().__init__()
        self.model = gpt()

    def forward(self, input_ids, labels):
        loss = self.model(input_ids).float().square().mean()
        return {"loss": loss}


def test_model_of_no_package(tmp_path):
    monitor = AttentionMonitor(every_n_steps=5, checkup=False)  # it is not initialised well
    train(monitor, directory=tmp_path, model=Own())
    assert set(monitor.coverage().values()) == {"observed"}


def test_loss_that_the_model_does_not_compute(tmp_path):
    monitor = AttentionMonitor(every_n_steps=1)
    run = train(monitor, directory=tmp_path, label_smoothing_factor=0.1)
    np.testing.assert_allclose(monitor.history.loss, run.losses, rtol=1e-6)


def test_user_errors_stop_before_the_first_step(tmp_path):
    with pytest.raises(ConfigurationError, match="two AttentionMonitor"):
        train(AttentionMonitor(), AttentionMonitor(), directory=tmp_path)
    with pytest.raises(ConfigurationError, match="among the `callbacks` of a transformers Trainer"):
        AttentionMonitor().on_train_begin(None, None, None)
