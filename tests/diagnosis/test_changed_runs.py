"""A sound training whose circumstances change is not flagged."""

import pytest
import torch

from attnwatch import AttentionRecorder, RunStatus, diagnose
from benchmarks.verdicts import tasks

pytestmark = pytest.mark.slow

STEPS, CHANGE_AT = 300, 150
COPY = tasks.tasks(None)["copy"]


def prepared(seed: int = 0):
    torch.manual_seed(seed)
    model = COPY.architectures["opt"]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return model, optimizer, AttentionRecorder(model, every_n_steps=3)


def resumed(model, optimizer, recorder):
    """Everything is new, and gets the state of the old."""
    states = model.state_dict(), optimizer.state_dict(), recorder.state_dict()
    recorder.close()
    others = prepared(seed=1)
    for other, state in zip(others, states, strict=True):
        other.load_state_dict(state)
    return others


def with_rate(factor: float):
    def change(model, optimizer, recorder):
        for group in optimizer.param_groups:
            group["lr"] *= factor
        return model, optimizer, recorder

    return change


CHANGES = {
    "nothing": lambda *run: run,
    "resumed": resumed,
    "lower rate": with_rate(0.1),
    "higher rate": with_rate(2.0),
    "longer sequences": lambda *run: run,
}


@pytest.mark.parametrize("name", CHANGES)
def test_sound_run_is_not_flagged(name, monkeypatch):
    run = prepared()
    generator = torch.Generator().manual_seed(0)
    statuses = {}
    for step in range(STEPS):
        if step == CHANGE_AT:
            run = CHANGES[name](*run)
            if name == "longer sequences":
                monkeypatch.setattr(tasks, "_COPIED", 30)
        model, optimizer, recorder = run
        with recorder.step(step):
            loss = model(**tasks.copy_batch(16, generator, True)).loss
            recorder.record_loss(loss)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        if step >= STEPS // 10 and step % 15 == 0:
            statuses[step] = diagnose(recorder.history(), total_steps=STEPS).status
    recorder.close()
    assert loss < 2.5  # from 4.2
    may_be_watched = {RunStatus.AT_RISK} if name == "longer sequences" else set()  # the loss jumps, and comes back
    assert set(statuses.values()) <= {RunStatus.HEALTHY, RunStatus.UNDETERMINED} | may_be_watched, statuses
    assert RunStatus.HEALTHY in statuses.values()
