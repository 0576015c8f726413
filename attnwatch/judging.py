"""Judging of a saved run, finished or not: `attnwatch judge`."""

from dataclasses import replace

import numpy as np

from attnwatch.capture import is_observed
from attnwatch.dashboard.scalars import over_heads
from attnwatch.diagnosis import Diagnosis, RunStatus, diagnose
from attnwatch.errors import ConfigurationError
from attnwatch.recorder import AttentionHistory
from attnwatch.runs import RunRecord
from attnwatch.runs.record import loss_at_ends, of_possible_length
from attnwatch.utils.labels import site_labels
from attnwatch.utils.messages import printable

SOUND, FAILING, CANNOT_SAY = 0, 1, 2
"""Exit codes of `attnwatch judge`."""


def exit_code(diagnosis: Diagnosis) -> int:
    """Return the exit code of a verdict: 0 for a sound run or one at risk, 1 for a failing one, 2 if undetermined.

    Example:
        >>> exit_code(Diagnosis(RunStatus.AT_RISK, (), step=390, risk=0.75))
        0
    """
    if diagnosis.status is RunStatus.UNDETERMINED:
        return CANNOT_SAY
    return FAILING if diagnosis.status.is_alarm else SOUND


def judge(run: RunRecord, *, total_steps: int | None = None) -> tuple[str, Diagnosis]:
    """Return a text with the verdict and the first and latest values of each layer, and the verdict itself.

    The verdict is the one that the monitor left in the run, or else a new one from the history.

    Args:
        run: record of the run.
        total_steps: see `diagnose`; with it, the history is judged anew.

    Raises:
        ConfigurationError: the run already has more steps than `total_steps`.
    """
    run = of_possible_length(run)
    history = _with_printable_names(run.history)
    diagnosis = run.judged if total_steps is None else None
    if diagnosis is None:
        diagnosis = diagnose(history, total_steps=total_steps, checked=run.checked, ruled_out=run.ruled_out)
    if total_steps is not None and len(history) and total_steps <= history.steps[-1]:
        raise ConfigurationError(
            f"`total_steps`: the run already has {history.steps[-1] + 1} steps, got {total_steps}; "
            "give the number of steps that it will have, or leave it out."
        )
    source = f" ({run.source})" if run.source else ""
    head = f"{printable(run.name, keep='')}{source}: {history!r}\n{_loss(history)}"
    parts = [head, *_not_observed(history), *run.remarks, str(diagnosis), _table(history)]
    return "\n\n".join(filter(None, parts)), diagnosis


def _with_printable_names(history: AttentionHistory) -> AttentionHistory:
    coverage = {printable(site, keep=""): printable(reason, keep="") for site, reason in history.coverage.items()}
    return replace(history, sites=tuple(printable(site, keep="") for site in history.sites), coverage=coverage)


def _loss(history: AttentionHistory) -> str:
    """Describe how much of the loss is known, as the judgement depends on it."""
    ends = loss_at_ends(history)
    if ends is None and not (history.sites and np.isnan(history.loss).all()):
        return f"loss at {len(history)} of {len(history)} observations: none is finite"
    if ends is None:
        return "no loss is known at these steps: only attention is judged (call record_loss or log the loss to add it)"
    number = np.isfinite(history.loss).sum()
    return f"loss at {number} of {len(history)} observations: {_number(ends[0])} → {_number(ends[1])}"


def _not_observed(history: AttentionHistory) -> list[str]:
    missing = {site: reason for site, reason in history.coverage.items() if not is_observed(reason)}
    return ["\n".join(f"not observed: {site}: {reason}" for site, reason in missing.items())] if missing else []


def _table(history: AttentionHistory) -> str:
    """Return the first and latest values of the statistics that are shown per layer."""
    if not len(history) or not history.sites:
        return ""
    shown = [statistic for statistic in history.statistics.values() if statistic.per_layer]
    labels = site_labels(history.sites)
    width = max(len("layer"), *map(len, labels))
    lines = [f"{'layer':<{width}}  " + "  ".join(f"{statistic.name:>22}" for statistic in shown)]
    curves = [over_heads(history, statistic) for statistic in shown]
    for site, label in enumerate(labels):
        cells = [f"{_number(curve[0, site])} → {_number(curve[-1, site])}" for curve in curves]
        lines.append(f"{label:<{width}}  " + "  ".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3g}"
