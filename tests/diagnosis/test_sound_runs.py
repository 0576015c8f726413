"""Sound trainings, with seeds, data and rates that nothing was tuned on, are left alone at every look."""

from functools import cache, partial

import pytest
import torch
from sklearn.datasets import load_digits

from attnwatch import AttentionHistory, AttentionRecorder, diagnose
from attnwatch.diagnosis import FindingActions
from benchmarks.verdicts import architectures, tasks

pytestmark = pytest.mark.slow

_digits = cache(load_digits)


def digits(size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Handwritten digits of 8 × 8 pixels, on a field of 28 × 28."""
    data = _digits()
    chosen = torch.randint(len(data.target), (size,), generator=generator)
    pixels = torch.from_numpy(data.images)[chosen, None].float() / 16
    pixels = torch.nn.functional.interpolate(pixels, (28, 28))
    return {"pixel_values": pixels, "labels": torch.from_numpy(data.target)[chosen]}


def source(size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Bytes of Python's standard library."""
    batch = tasks.bytes_batch(size, generator, True)
    return {name: ids[:, :48] for name, ids in batch.items()}


RUNS = {
    "vision, slow": (partial(architectures.vit, 10), digits, 5e-4, 4001),
    "vision, fast": (partial(architectures.vit, 10, layers=2), digits, 2e-3, 4002),
    "vision, deep": (partial(architectures.vit, 10, width=48, heads=3, layers=5), digits, 1e-3, 4003),
    "language, slow": (partial(architectures.gpt2, 128, layers=3), source, 1e-3, 4004),
    "language, fast": (partial(architectures.llama, 128, layers=2), source, 3e-3, 4005),
}
STEPS, LOOKS = 200, 20


def trained(name: str) -> AttentionHistory:
    make, batch, rate, seed = RUNS[name]
    torch.manual_seed(seed)
    model, generator = make(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (STEPS / 20)))
    with AttentionRecorder(model, every_n_steps=2) as recorder:
        for step in range(STEPS):
            with recorder.step(step):
                loss = model(**batch(16, generator)).loss
                recorder.record_loss(loss)
                optimizer.zero_grad()
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        return recorder.history()


@pytest.mark.parametrize("name", RUNS)
def test_sound_run_raises_no_alarm_and_is_never_stopped(name):
    history, stopping = trained(name), FindingActions("stop")
    assert history.loss[-10:].mean() < 0.8 * history.loss[:5].mean()
    looks = [history.until(STEPS * look // LOOKS - 1) for look in range(1, LOOKS + 1)]
    said = [str(diagnose(look, total_steps=STEPS)) for look in looks]
    alarms = [
        words
        for words, look in zip(said, looks, strict=True)
        if diagnose(look, total_steps=STEPS).status.is_alarm or diagnose(look).status.is_alarm
    ]
    assert alarms == []
    actions = [action for look in looks for _, action in stopping.new_findings(diagnose(look, total_steps=STEPS))]
    assert "stop" not in actions
