"""First page about a run, as markdown: the verdict, what to do, and what it rests on."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from attnwatch.capture import is_observed
from attnwatch.dashboard.answers import literal
from attnwatch.dashboard.markdown import finding_paragraphs, verdict_paragraphs
from attnwatch.dashboard.scalars import over_heads
from attnwatch.diagnosis import Diagnosis
from attnwatch.diagnosis.risk import default_risk_model
from attnwatch.recorder import AttentionHistory
from attnwatch.statistics import Statistic
from attnwatch.utils.labels import site_labels

_MOST_LINES = 5
# A layer differs from the others if it is so many robust standard deviations, and such a share of the colour scale,
# away from their median.
_FEWEST_LAYERS, _FAR, _SHARE_OF_SCALE = 4, 5.0, 0.1
_STANDARD_DEVIATIONS_PER_MAD = 1.4826


@dataclass(frozen=True)
class RunCard:
    """First page about a run.

    Attributes:
        diagnosis: the verdict.
        history: what was observed; None if it is not at hand.
        checkup: result of each check by name, as `TrainingCheckup.results`; empty without a checkup.
        changes: (complete steps, short text) of each change of the model.
        remarks: sentences in markdown on how to read what is logged.
        report: file of the report about the run; None if there is none.
    """

    diagnosis: Diagnosis
    history: AttentionHistory | None = None
    checkup: Mapping[str, str] = field(default_factory=dict)
    changes: Sequence[tuple[int, str]] = ()
    remarks: Sequence[str] = ()
    report: Path | None = None


def card_markdown(card: RunCard) -> str:
    """Return the first page about a run."""
    return "\n\n".join([*verdict_paragraphs(card.diagnosis), *_facts(card), *card.remarks])


def _facts(card: RunCard) -> Iterator[str]:
    history = card.history
    if history is not None:
        yield f"**Risk:** {_certainty(card.diagnosis, history)}"
    yield from finding_paragraphs(card.diagnosis)
    if card.checkup:
        yield f"**Checkup of the first steps:** {_checkup(card.checkup)}"
    if history is not None and len(history):
        yield f"**Layers that differ from the others:** {'; '.join(odd_layers(history)) or 'none'}"
        yield f"**Observed:** {_coverage(history)}"
    if card.changes:
        yield f"**Changes of the model:** {'; '.join(f'step {step}: {literal(what)}' for step, what in card.changes)}"
    if card.report is not None:
        yield f"**Report:** `{card.report}`"


def _certainty(diagnosis: Diagnosis, history: AttentionHistory) -> str:
    """Return what the risk means, and how much of the run it rests on."""
    model = default_risk_model()
    if math.isnan(diagnosis.risk):
        return (
            f"not known yet. It needs the run from its first steps on, and {model.shares[0]:.0%} of its length if that "
            "is known."
        )
    if history.total_steps is None:
        based = "The length of the run is not known, so that only what no sound run shows at any time counts"
    else:
        share = min((diagnosis.step + history.gap) / history.total_steps, 1.0)
        based = f"It rests on {share:.0%} of the run"
    return (
        f"{diagnosis.risk:.2f} is the estimated share of runs like this one that fail. {based}. A run that stays above "
        f"{model.flag_at:.2f} is reported."
    )


def _checkup(results: Mapping[str, str]) -> str:
    """Return the number of checks by their result, and what was found or skipped, with reasons."""
    words = {"FOUND": "found a fault", "note": "gave a note", "ok": "ok", "not checked": "skipped"}
    by_result: dict[str, list[str]] = {name: [] for name in words}
    for check, result in results.items():
        kind, _, reason = result.partition(": ")
        by_result[kind].append(f"{check} ({reason})" if kind == "not checked" else check)
    return ", ".join(
        f"{len(checks)} {words[kind]}" + ("" if kind == "ok" else f": {_some(checks)}")
        for kind, checks in by_result.items()
        if checks
    )


def odd_layers(history: AttentionHistory) -> list[str]:
    """Return the layers whose attention is unlike that of the others at the last observation, with their numbers."""
    labels, latest = site_labels(history.sites), history.at(slice(len(history) - 1, None))
    found = [
        f"{literal(labels[site])} ({statistic.name.replace('_', ' ')} {value:.2g}, median {median:.2g})"
        for statistic in latest.statistics.values()
        if statistic.per_layer
        for site, value, median in _outliers(over_heads(latest, statistic)[0], statistic)
    ]
    return found if len(found) <= _MOST_LINES else [*found[:_MOST_LINES], f"and {len(found) - _MOST_LINES} more"]


def _outliers(values: np.ndarray, statistic: Statistic) -> list[tuple[int, float, float]]:
    """Return (site, value, median of all) of the sites that are far from the median."""
    known = values[np.isfinite(values)]
    if len(known) < _FEWEST_LAYERS:
        return []
    median = float(np.median(known))
    spread = _STANDARD_DEVIATIONS_PER_MAD * float(np.median(np.abs(known - median)))
    low, high = statistic.chart_range(values)
    far = max(_FAR * spread, _SHARE_OF_SCALE * (high - low))
    return [(int(site), float(values[site]), median) for site in np.flatnonzero(np.abs(values - median) > far)]


def _coverage(history: AttentionHistory) -> str:
    missing = [f"{literal(site)} ({literal(why)})" for site, why in history.coverage.items() if not is_observed(why)]
    number, total = len(history.sites), len(history.sites) + len(missing)
    steps = f"{len(history)} observations, steps {history.steps[0]} to {history.steps[-1]}"
    seen = f"{number} of {total} attention layers; {steps}"
    return f"{seen}. Not observed: {_some(missing)}" if missing else seen


def _some(lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    return ", ".join([*lines[:_MOST_LINES], *more])
