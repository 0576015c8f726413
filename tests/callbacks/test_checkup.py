"""The checkup of a training between the hooks of its trainer."""

import dataclasses
from types import SimpleNamespace

import torch

from attnwatch.callbacks.checkup import RunCheckup
from tests.support.models import gpt, token_ids


def frozen_run():
    """Return a run of a model whose queries and keys are frozen."""
    model = gpt()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("attn" not in name)
    return SimpleNamespace(
        model=model,
        models_with_optimizers=lambda: [(model, [torch.optim.SGD(model.parameters())])],
        steps_per_epoch=None,
        total_steps=None,
        global_step=0,
    )


def is_news(run, earlier=()):
    checkup = RunCheckup(is_enabled=True)
    checkup.load_state_dict([finding.as_json() for finding in earlier])
    checkup.begin_batch(run)
    run.model(token_ids()).sum().backward()
    news, findings = checkup.end_backward(), checkup.findings
    checkup.close()
    return news, findings


def test_fault_that_was_a_note_before_is_news():
    news, findings = is_news(frozen_run())
    assert news
    assert not findings[0].is_note
    assert not is_news(frozen_run(), findings)[0]
    assert is_news(frozen_run(), [dataclasses.replace(finding, is_note=True) for finding in findings])[0]
