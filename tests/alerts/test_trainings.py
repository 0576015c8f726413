"""Alerts of trainings under each trainer: once a finding, without waiting, whatever the server does."""

import dataclasses
import io
import socket
import warnings

import lightning.pytorch as pl
import pytest
import torch

import attnwatch.lightning
import attnwatch.transformers
from attnwatch import AttnwatchWarning
from attnwatch.alerts import alerts
from attnwatch.diagnosis.findings.non_finite import NonFinite
from tests.support.alert_server import SECRET, alert_server
from tests.support.lightning_loggers import poison
from tests.support.lightning_training import Llama, batches
from tests.support.poison import Poison
from tests.support.transformers_training import train

pytestmark = pytest.mark.filterwarnings("ignore")
KINDS = {"non_finite"}


class NonFiniteAsNote(NonFinite):
    """Says of itself that it does not bear on the status of the run."""

    def look(self, evidence):
        symptom = super().look(evidence)
        return symptom and dataclasses.replace(symptom, is_note=True)


def run_lightning(directory, **options):
    monitor = attnwatch.lightning.AttentionMonitor(every_n_steps=2, flush_every=1, checkup=False, **options)
    silent = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
    trainer = pl.Trainer(max_steps=14, accelerator="cpu", callbacks=[monitor], **silent)
    trainer.fit(Llama(poison), batches(14))
    return monitor


def run_transformers(directory, **options):
    monitor = attnwatch.transformers.AttentionMonitor(every_n_steps=2, flush_every=1, checkup=False, **options)
    train(Poison(), monitor, directory=directory, max_steps=14)
    return monitor


RUNS = {"lightning": run_lightning, "transformers": run_transformers}
each_trainer = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)


@pytest.fixture
def server():
    with alert_server() as started:
        yield started


def warned(run, directory, **options) -> tuple[attnwatch.callbacks.AttentionMonitor, list[str]]:
    """The monitor of a training, and what it warned of beside findings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor = run(directory, **options)
    messages = [str(each.message) for each in caught if issubclass(each.category, AttnwatchWarning)]
    return monitor, [message for message in messages if "since step" not in message]


@each_trainer
def test_each_finding_alerts_once(run, server, tmp_path):
    monitor, messages = warned(run, tmp_path, alert=server.url)
    assert messages == []
    assert server.titles == ["attnwatch: non_finite at step 6"]
    assert server.posts[0]["type"] == "failure"
    assert "of the query rows have logits that are nan or infinite" in server.posts[0]["message"]
    assert monitor.history.steps[-1] == 12
    content = io.BytesIO()
    torch.save(monitor.state_dict(), content)
    assert SECRET.encode() not in content.getvalue()


@each_trainer
def test_several_services_hear_of_it(run, server, tmp_path):
    warned(run, tmp_path, alert=[server.url, server.url + "/second"])
    assert server.titles == 2 * ["attnwatch: non_finite at step 6"]


@each_trainer
def test_what_is_ignored_alerts_nobody(run, server, tmp_path):
    monitor, _ = warned(run, tmp_path, alert=server.url, on_finding={"non_finite": "ignore"})
    assert {finding.kind.value for finding in monitor.diagnosis.findings} >= KINDS
    assert server.posts == []


@each_trainer
def test_notes_alert_nobody(run, server, tmp_path):
    def nothing(*arguments):
        """Hears of notes, as it is given for their kind."""

    monitor, _ = warned(run, tmp_path, alert=server.url, rules=[NonFiniteAsNote()], on_finding={"non_finite": nothing})
    assert [finding.is_note for finding in monitor.diagnosis.findings] == [True]
    assert server.posts == []


@each_trainer
@pytest.mark.parametrize("failure", ["500", "nobody"])
def test_failure_is_one_warning_without_the_url(run, failure, server, tmp_path):
    url = server.url
    if failure == "500":
        server.status = 500
    else:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            url = f"json://user:{SECRET}@localhost:{free.getsockname()[1]}"
    monitor, messages = warned(run, tmp_path, alert=url)
    (message,) = messages
    assert "an alert was not delivered; training continues (json: the service could not be reached, or re" in message
    assert SECRET not in message
    assert "localhost" not in message
    assert monitor.history.steps[-1] == 12


@each_trainer
def test_training_does_not_wait_for_a_server_that_hangs(run, server, tmp_path, monkeypatch):
    """The server answers when the training is over: before, nobody may have waited until Apprise gave up."""
    monkeypatch.setattr(alerts, "PATIENCE_SECONDS", 0.01)
    server.may_answer.clear()
    monitor, messages = warned(run, tmp_path, alert=server.url)
    assert not server.has_answered.is_set()
    server.may_answer.set()
    assert server.has_answered.wait(60)
    (message,) = messages
    assert "the last alert: it was not sent within 0.01 s" in message
    assert monitor.history.steps[-1] == 12
