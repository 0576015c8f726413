"""Noise of curves: how far they move from step to step while the model does not change.

A model is frozen, and observed on new batches of the same data, or on one batch again and again. What is measured is
the standard deviation of the curve of the whole model (mean over heads) from one observation to the next, for several
ways to choose the 32 query rows that are looked at. All ways cost the same but `all rows`, which shows what no choice
of rows can avoid: the noise of the batches.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnwatch.attention import AttentionInputs, AttentionRows, stratified_rows
from attnwatch.capture import Capture, ForwardPass
from attnwatch.recorder import AttentionRecorder
from benchmarks.common import progress, show
from benchmarks.models import Sizes
from benchmarks.texts import source_code

STATISTICS = ("entropy", "normalized_entropy", "max_entropy")
ROWS, OBSERVATIONS, QUICK_OBSERVATIONS, SEEDS = 32, 40, 8, 50
_TRAIN_STEPS, _LEARNING_RATE, _WARM_UP = 150, 1.5e-3, 20
_BLOCK = 64  # rows whose logits are held at once
_CASES = {"256 tokens": (256, 8), "1,024 tokens": (1024, 2)}


@dataclass(frozen=True)
class PerRow:
    """Entropy and largest entropy of every query row of a batch, each [sites, heads, queries]; nan if not counted."""

    entropy: Tensor
    max_entropy: Tensor

    def of(self, statistic: str) -> Tensor:
        """Return a statistic of every row, [sites, heads, queries]."""
        known = {"entropy": self.entropy, "max_entropy": self.max_entropy}
        return self.entropy / self.max_entropy if statistic == "normalized_entropy" else known[statistic]


Way = Callable[[PerRow, str, int], float]
"""Returns the number of a curve, given the rows, the name of the statistic, and the number of the observation."""


def measure(quick: bool = False) -> dict[str, Any]:
    """Return the standard deviations by sequence length, model, data, statistic and way to choose rows.

    Args:
        quick: short sequences, few observations and hardly any training.
    """
    cases = dict(islice(_CASES.items(), 1 if quick else None))
    found = {}
    for name, (tokens, batch_size) in cases.items():
        for state, steps in {"new": 0, "trained": _TRAIN_STEPS // (10 if quick else 1)}.items():
            sizes = Sizes(128, 4, 4, 2, vocab_size=256, batch_size=batch_size, num_tokens=tokens)
            model = _trained(sizes, steps)
            number = QUICK_OBSERVATIONS if quick else OBSERVATIONS
            found[f"{name}, {state} model"] = _measure(model, sizes, number)
    _print(found)
    return {"rows": ROWS, "observations": QUICK_OBSERVATIONS if quick else OBSERVATIONS, "cases": found}


def _measure(model: nn.Module, sizes: Sizes, number: int) -> dict[str, Any]:
    """Return, for new batches and for one batch, the standard deviations by statistic and way, and those recorded."""
    batches = list(islice(_batches(sizes, seed=1), number))
    seen = [_per_row(model, batch) for batch in progress(batches, f"{sizes.num_tokens} tokens", keep=False)]
    return {
        "new batches": _deviations(seen) | {"recorded": _recorded(model, batches)},
        "one batch": _deviations(seen[:1] * number) | {"recorded": _recorded(model, batches[:1] * number)},
        "constant error of the same rows": {statistic: _constant_error(seen[0], statistic) for statistic in STATISTICS},
    }


def _constant_error(rows: PerRow, statistic: str) -> float:
    """Return the root mean square, over seeds, of the difference between the mean over 32 rows and that over all."""
    values = rows.of(statistic)
    differences = [_mean(values[..., _drawn(rows, seed)]) - _mean(values) for seed in range(SEEDS)]
    return float(np.sqrt(np.mean(np.square(differences))))


def _deviations(seen: list[PerRow]) -> dict[str, dict[str, float]]:
    return {
        name: {
            statistic: _from_step_to_step([way(rows, statistic, i) for i, rows in enumerate(seen)])
            for statistic in STATISTICS
        }
        for name, way in WAYS.items()
    }


def _recorded(model: nn.Module, batches: list[Tensor]) -> dict[str, float]:
    """Return the standard deviations of what an `AttentionRecorder` records, by statistic."""
    with AttentionRecorder(model, every_n_steps=1, num_query_rows=ROWS) as recorder, torch.no_grad():
        for step, batch in enumerate(batches):
            with recorder.step(step):
                model(input_ids=batch)
        history = recorder.history()
    curves = {name: np.nanmean(history[name].astype(np.float64), axis=(1, 2)) for name in STATISTICS}
    return {name: _from_step_to_step(list(curve)) for name, curve in curves.items()}


def _from_step_to_step(curve: list[float]) -> float:
    """Return the standard deviation of an observation, from the differences of successive ones."""
    return float(np.sqrt(np.mean(np.diff(curve) ** 2) / 2))


def _other_rows(rows: PerRow, statistic: str, observation: int) -> float:
    return _mean(rows.of(statistic)[..., _drawn(rows, observation)])


def _same_rows(rows: PerRow, statistic: str, observation: int) -> float:
    return _mean(rows.of(statistic)[..., _drawn(rows, 0)])


def _other_rows_with_control(rows: PerRow, statistic: str, observation: int) -> float:
    """Regress on the largest entropy, whose mean over all rows is known, in each head."""
    chosen = _drawn(rows, observation)
    value, control = rows.of(statistic)[..., chosen], rows.max_entropy[..., chosen]
    is_known = value.isfinite()
    deviation, of_control = ((each - each.nanmean(-1, keepdim=True)).where(is_known, 0.0) for each in (value, control))
    slope = (deviation * of_control).sum(-1) / of_control.square().sum(-1)
    corrected = value.nanmean(-1) + slope * (rows.max_entropy.nanmean(-1) - control.nanmean(-1))
    return float(corrected.mean())


def _all_rows(rows: PerRow, statistic: str, observation: int) -> float:
    return _mean(rows.of(statistic))


WAYS: dict[str, Way] = {
    "other rows at each step": _other_rows,
    "other rows, control variate": _other_rows_with_control,
    "the same rows": _same_rows,
    "all rows": _all_rows,
}


def _drawn(rows: PerRow, seed: int) -> Tensor:
    return stratified_rows(rows.entropy.shape[-1], ROWS, torch.Generator().manual_seed(seed))


def _mean(values: Tensor) -> float:
    return float(values.nanmean(-1).mean())


def _per_row(model: nn.Module, batch: Tensor) -> PerRow:
    """Return the entropies of all rows, means over the sequences, in float64."""
    sites: list[Tensor] = []

    def observe(site: str, inputs: AttentionInputs, of: ForwardPass) -> None:
        blocks = [AttentionRows(inputs, rows) for rows in torch.arange(inputs.num_queries).split(_BLOCK)]
        both = [torch.stack([block.entropy, block.max_entropy]).where(block.valid, torch.nan) for block in blocks]
        sites.append(torch.cat(both, -1).double().nanmean(1))

    capture = Capture(model, observe)
    capture.attach()
    try:
        capture.armed = True
        with torch.no_grad():
            model(input_ids=batch)
    finally:
        capture.armed = False
        capture.detach()
    return PerRow(*torch.stack(sites, 1))


def _batches(sizes: Sizes, seed: int) -> Iterator[Tensor]:
    """Yield random windows of the source code of the standard library, int64 [sequences, bytes]."""
    text = torch.from_numpy(np.frombuffer(source_code()[0], dtype=np.uint8).copy()).long()
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - sizes.num_tokens, (sizes.batch_size, 1), generator=generator)
        yield text[starts + torch.arange(sizes.num_tokens)]


def _trained(sizes: Sizes, steps: int) -> nn.Module:
    """Return a model after some steps of training, in eval mode."""
    model = sizes.model().cpu()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / _WARM_UP, total_iters=_WARM_UP)
    for batch in progress(islice(_batches(sizes, seed=0), steps), "training", total=steps, keep=False):
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        warm_up.step()
    return model.eval()


def _print(found: dict[str, Any]) -> None:
    show("Standard deviation from step to step of a frozen model's curve; in brackets, how many times less than with")
    show("other rows at each step:")
    for case, by_data in found.items():
        errors = by_data["constant error of the same rows"]
        for data in ("new batches", "one batch"):
            ways = by_data[data]
            show(f"\n{case}, {data}")
            for way, deviations in ways.items():
                cells = (f"{name} {_cell(ways, name, deviation)}" for name, deviation in deviations.items())
                show(f"  {way:<28}{'   '.join(cells)}")
        show(f"{case}, constant error of the same rows: " + ", ".join(f"{n} {e:.2e}" for n, e in errors.items()))


def _cell(ways: dict[str, dict[str, float]], statistic: str, deviation: float) -> str:
    before = ways["other rows at each step"][statistic]
    times = f"{before / deviation:.2f}" if deviation > 1e-9 else "no noise left"
    return f"{deviation:.2e} ({times})"
