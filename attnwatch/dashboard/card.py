"""Run card in markdown: the verdict, the advice, and the evidence for them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from attnwatch.capture import is_observed
from attnwatch.dashboard.answers import literal
from attnwatch.dashboard.markdown import finding_paragraphs, verdict_paragraphs
from attnwatch.dashboard.odd_layers import odd_layers
from attnwatch.dashboard.scalars import over_heads
from attnwatch.diagnosis import Diagnosis
from attnwatch.diagnosis.risk import default_risk_model
from attnwatch.diagnosis.thresholds import Thresholds
from attnwatch.recorder import AttentionHistory
from attnwatch.utils.labels import site_labels
from attnwatch.utils.messages import counted

_MOST_LINES = 5


@dataclass(frozen=True)
class RunCard:
    """First page about a run.

    Attributes:
        diagnosis: the verdict.
        history: observations; None if they are not available.
        checkup: result of each check by name, as `TrainingCheckup.results`; empty without a checkup.
        changes: (complete steps, short text) of each change of the model.
        remarks: sentences in markdown that explain how to read the logs.
        report: path of the report about the run; None if there is none.
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
        yield f"**Layers that differ from the others:** {'; '.join(_odd_layers(history)) or 'none'}"
        yield f"**Observed:** {_coverage(history)}"
    if card.changes:
        yield f"**Changes of the model:** {'; '.join(f'step {step}: {literal(what)}' for step, what in card.changes)}"
    if card.report is not None:
        yield f"**Report:** `{card.report}`"


def _certainty(diagnosis: Diagnosis, history: AttentionHistory) -> str:
    """Return an explanation of the risk, and the share of the run that it rests on."""
    model = default_risk_model()
    if math.isnan(diagnosis.risk):
        wanted = Thresholds().of_budget(history.total_steps)
        return (
            f"not known yet. It needs {wanted.min_observations} observations over {wanted.min_steps:.0f} steps, from "
            f"the start of the run, and {model.shares[0]:.0%} of its length if that is known."
        )
    based = "The length of the run is not known, so the risk considers only values that no sound run ever has"
    if (share := history.share_over(diagnosis.step)) is not None:
        based = f"It rests on {share:.0%} of the run"
    return (
        f"{diagnosis.risk:.2f} is the estimated share of runs like this one that fail. {based}. A run that stays above "
        f"{model.flag_at:.2f} is reported."
    )


def _checkup(results: Mapping[str, str]) -> str:
    """Return the number of checks by result, and the checks with a finding, a note or a reason to be skipped."""
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


def _odd_layers(history: AttentionHistory) -> list[str]:
    """Return the layers whose attention differs from the others' at the last observation, with their values."""
    labels, latest = site_labels(history.sites), history.at(slice(len(history) - 1, None))
    found = [
        f"{literal(labels[odd.site])} ({statistic.name.replace('_', ' ')} {odd.value:.2g}, median {odd.median:.2g})"
        for statistic in latest.statistics.values()
        if statistic.per_layer
        for odd in odd_layers(over_heads(latest, statistic)[0], statistic.chart_range)
    ]
    return found if len(found) <= _MOST_LINES else [*found[:_MOST_LINES], f"and {len(found) - _MOST_LINES} more"]


def _coverage(history: AttentionHistory) -> str:
    missing = [f"{literal(site)} ({literal(why)})" for site, why in history.coverage.items() if not is_observed(why)]
    number, total = len(history.sites), len(history.sites) + len(missing)
    steps = f"{counted(len(history), 'observation')}, steps {history.steps[0]} to {history.steps[-1]}"
    seen = f"{number} of {total} attention layers; {steps}"
    return f"{seen}. Not observed: {_some(missing)}" if missing else seen


def _some(lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    return ", ".join([*lines[:_MOST_LINES], *more])
