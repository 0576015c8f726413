"""Judgement of a run, finished or not, by what was saved of it: `attnwatch judge`."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from attnwatch.capture import is_observed
from attnwatch.dashboard.logged import read_logged
from attnwatch.dashboard.scalars import over_heads
from attnwatch.diagnosis import Diagnosis, diagnose
from attnwatch.errors import ConfigurationError
from attnwatch.recorder import AttentionHistory
from attnwatch.utils.labels import site_labels
from attnwatch.utils.messages import printable


def read_run(path: Path, *, loss_tag: str | None = None) -> AttentionHistory:
    """Read a saved history (.npz), or a directory that TensorBoard reads.

    Raises:
        ConfigurationError: it is neither, or has no attention in it.
    """
    try:
        if (path / "config.json").is_file():
            raise ConfigurationError(
                f"`run`: {str(path)!r} holds a model, not a run; to look into it: attnwatch inspect MODEL_DIR --text "
                "FILE."
            )
        if path.is_dir():
            return read_logged(path, loss_tag=loss_tag)
        if loss_tag is not None:
            raise ConfigurationError(f"`loss_tag` is of a log directory; {str(path)!r} has the loss that was recorded.")
        if path.is_file():
            return AttentionHistory.load(path)
        raise ConfigurationError(f"`run`: there is no {str(path)!r}; give a saved history (.npz) or a log directory.")
    except OSError as error:
        raise ConfigurationError(f"`run`: {str(path)!r} can't be read: {error}.") from error


def report(history: AttentionHistory, *, total_steps: int | None = None) -> tuple[str, Diagnosis]:
    """Return a text with the verdict and the first and latest numbers of each layer, and the verdict.

    Args:
        total_steps: see `diagnose`.

    Raises:
        ConfigurationError: the run has more steps already.
    """
    history = _with_printable_names(history)
    is_longer = len(history) and history.total_steps is not None and history.total_steps <= history.steps[-1]
    if is_longer:
        history = replace(history, total_steps=None)
    diagnosis = diagnose(history, total_steps=total_steps)
    if total_steps is not None and len(history) and total_steps <= history.steps[-1]:
        raise ConfigurationError(
            f"`total_steps`: the run has {history.steps[-1] + 1} steps already, got {total_steps}; "
            "give as many as it will have, or leave it out."
        )
    length = "\nit has more steps than it was to have: judged as a run of unknown length" if is_longer else ""
    parts = [f"{history!r}\n{_loss(history)}{length}", *_not_observed(history), str(diagnosis), _table(history)]
    return "\n\n".join(filter(None, parts)), diagnosis


def _with_printable_names(history: AttentionHistory) -> AttentionHistory:
    coverage = {printable(site, keep=""): printable(reason, keep="") for site, reason in history.coverage.items()}
    return replace(history, sites=tuple(printable(site, keep="") for site in history.sites), coverage=coverage)


def _loss(history: AttentionHistory) -> str:
    """Return how much of the loss is known: what is judged depends on it."""
    known = np.isfinite(history.loss)
    if not known.any():
        return "no loss is known at these steps: attention alone is judged (record_loss, or a logged loss, adds it)"
    first, last = history.loss[known][[0, -1]]
    return f"loss at {known.sum()} of {len(history)} observations: {_number(first)} → {_number(last)}"


def _not_observed(history: AttentionHistory) -> list[str]:
    missing = {site: reason for site, reason in history.coverage.items() if not is_observed(reason)}
    return ["\n".join(f"not observed: {site}: {reason}" for site, reason in missing.items())] if missing else []


def _table(history: AttentionHistory) -> str:
    """Return the first and latest number of the statistics that are shown per layer."""
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
