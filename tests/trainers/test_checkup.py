"""The checkup of a monitor in real trainings by each trainer."""

import math

import pytest
import torch
import transformers as hf

import attnwatch
from attnwatch import AttnwatchWarning, RunStatus
from attnwatch.trainers.lightning.run import LightningRun
from attnwatch.trainers.transformers.run import TransformersRun
from tests.support.equality import assert_same_weights
from tests.support.models import VOCABULARY, WIDTH, llama

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")


def with_frozen_queries():
    model = llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" not in name)
    return model


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "clip": 1.0}, {"bf16": True}], ids=str)
def test_training_is_bit_identical_and_nothing_is_found(training, options):
    plain = training.train(model=llama(dropout=0.1), **options)
    state = torch.get_rng_state()
    monitor = training.callbacks.AttentionMonitor()
    watched = training.train(monitor, model=llama(dropout=0.1), **options)
    assert plain.losses == watched.losses
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_weights(plain.model, watched.model)
    assert not [finding for finding in monitor.diagnosis.findings if not finding.is_note]
    assert not watched.model._forward_hooks
    assert not getattr(watched.optimizer, "optimizer", watched.optimizer)._optimizer_step_post_hooks


def test_fault_is_told_before_the_first_step_and_decides_the_status(training):
    told = []

    def tell(finding, trainer, model):
        told.append((finding.kind.value, finding.step))

    monitor = training.callbacks.AttentionMonitor(on_finding=tell)
    training.train(monitor, model=with_frozen_queries())
    assert told[0] == ("frozen_parameters", 0)
    diagnosis = monitor.diagnosis
    assert diagnosis.status is RunStatus.NOT_CONVERGING
    finding = next(each for each in diagnosis.findings if each.kind is attnwatch.FindingKind.FROZEN_PARAMETERS)
    assert diagnosis.risk >= finding.severity
    assert all("q_proj" in site for site in finding.sites)


def bloom():
    """Model that writes its attention by hand."""
    return hf.BloomForCausalLM(hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, n_layer=2, n_head=4)).train()


@pytest.mark.filterwarnings("default::attnwatch.AttnwatchWarning")
def test_model_whose_attention_is_not_read_trains_with_a_checkup(training):
    with pytest.raises(attnwatch.NoAttentionError):
        attnwatch.AttentionRecorder(bloom())
    model, monitor = bloom(), training.callbacks.AttentionMonitor()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("h.1." not in name)
    with pytest.warns(AttnwatchWarning) as warned:
        run = training.train(monitor, model=model)
    assert any("attention sites are not observed" in str(each.message) for each in warned)
    assert len(run.losses) > 0
    assert set(monitor.coverage().values()) != {"observed"}
    assert "frozen_parameters" in {each.kind.value for each in monitor.checkup.findings}
    assert len(monitor.checkup.answered) > 12


def test_rate_that_overwrites_the_weights_is_told_after_the_first_step(training):
    """Lightning computes the first gradients in the optimizer's step, in a closure."""
    monitor = training.callbacks.AttentionMonitor(on_finding=lambda finding, trainer, model: None)
    training.train(monitor, learning_rate=3.0, steps=4)
    (finding,) = [each for each in monitor.checkup.findings if each.kind.value == "rate_too_high"]
    assert finding.step == 1
    assert finding.evidence["median_growth"] > 4


def test_fault_stops_the_training(training):
    monitor = training.callbacks.AttentionMonitor(on_finding="stop")
    with pytest.warns(AttnwatchWarning, match="frozen_parameters since step 0"):
        run = training.train(monitor, model=with_frozen_queries())
    assert run.num_steps == 1


def test_without_the_checkup_nothing_is_checked(training):
    monitor = training.callbacks.AttentionMonitor(checkup=False)
    training.train(monitor, model=with_frozen_queries())
    assert monitor.checkup is None
    assert "frozen_parameters" not in {finding.kind.value for finding in monitor.diagnosis.findings}


def test_second_training_is_checked_anew(training):
    told = []
    monitor = training.callbacks.AttentionMonitor(on_finding=lambda finding, *_: told.append(finding))
    training.train(monitor, model=with_frozen_queries(), steps=3)
    training.train(monitor, model=llama(), steps=3)
    assert not monitor.diagnosis.findings
    assert len(told) == 1


def detached():
    model = llama()
    model.model.layers[0].register_forward_hook(_detach)
    return model


def _detach(module, args, output):
    return (output[0].detach(), *output[1:]) if isinstance(output, tuple) else output.detach()


def test_findings_are_kept_over_a_resume_and_go_once_the_fault_is_mended(training):
    told = []
    options = {"on_finding": lambda finding, *_: told.append(finding.kind.value), "every_n_steps": 1}
    stopped, resumed, mended = (training.callbacks.AttentionMonitor(**options) for _ in range(3))
    training.train(stopped, model=detached(), steps=4, save_every=4)
    training.train(resumed, model=detached(), steps=8, save_every=4, checkpoint=4)
    training.train(mended, model=llama(), steps=12, checkpoint=8)
    kept, gone = ([finding.kind.value for finding in each.diagnosis.findings] for each in (resumed, mended))
    assert "broken_gradient_path" in kept
    assert "broken_gradient_path" not in gone
    assert told.count("broken_gradient_path") == 1


def as_run(run):
    return LightningRun(run.trainer, run.model) if hasattr(run.trainer, "fit") else TransformersRun(run.trainer)


@pytest.mark.parametrize(("accumulate", "share"), [(2, 0.5), (3, 1 / 3)])
def test_length_of_an_epoch_is_known(training, accumulate, share):
    whole = as_run(training.train(steps=1)).steps_per_epoch
    steps = as_run(training.train(steps=1, accumulate=accumulate)).steps_per_epoch
    assert whole > 9
    assert steps == math.ceil(whole * share)
