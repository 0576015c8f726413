"""Signals of attention and findings of the rules in each run at each look, and risk models tuned on them."""

import copy
from collections.abc import Mapping, Sequence

import numpy as np

from attnwatch import diagnose
from attnwatch.diagnosis import Diagnosis
from attnwatch.diagnosis.risk import RiskModel
from attnwatch.diagnosis.signals import SIGNALS, evidence_of, signals_of
from benchmarks.common import progress
from benchmarks.verdicts.checked import CheckedRun
from benchmarks.verdicts.runs import Run
from benchmarks.verdicts.scores import LOOKS, Judge, Numbers
from benchmarks.verdicts.tune import SHARES, tune

_SOURCES = np.array([signal.source for signal in SIGNALS])


class Signals:
    """Signals of many runs, computed once.

    Args:
        parts: parts of each run that were over at each of the shares, by the name of the run.
        shares: of the budget, `tune.SHARES` among them.
    """

    def __init__(self, parts: Mapping[str, Sequence[Run]], shares: Sequence[float]):
        self._shares = list(shares)
        self._of: dict[str, np.ndarray] = {}
        self._evidence: dict[str, np.ndarray] = {}
        for name, seen in progress(parts.items(), "signals", keep=False):
            self._of[name] = np.array([signals_of(part.history) for part in seen])
            self._evidence[name] = np.array([evidence_of(part.history) for part in seen])

    def of(self, source: str) -> "Signals":
        """Return those of the signals that come from one source."""
        others, left_out = copy.copy(self), source != _SOURCES
        others._of, others._evidence = (
            {name: np.where(left_out, np.nan, signals) for name, signals in known.items()}
            for known in (self._of, self._evidence)
        )
        return others

    def tune(self, names: Sequence[str], failed: Mapping[str, bool]) -> RiskModel:
        places = {share: self._shares.index(share) for share in SHARES}
        signals = {share: [self._of[name][place] for name in names] for share, place in places.items()}
        return tune(signals, [failed[name] for name in names])

    def risks(self, name: str, model: RiskModel) -> np.ndarray:
        """Return the risk of a run at each share."""
        rows = zip(self._evidence[name], self._shares, strict=True)
        return np.array([model.risks(model.distances(row[None], share))[0] for row, share in rows])

    def judge(self, failed: Mapping[str, bool], rules: "Rules | None" = None) -> Judge:
        """Return the judge that uses a risk model alone, or the rules' findings too."""

        def tuned(others: Sequence[str]) -> Numbers:
            model = self.tune(others, failed)
            if rules is None:
                return lambda name: self.risks(name, model)
            return lambda name: rules.risks(name, self.risks(name, model))

        return tuned


def diagnoses(seen: Sequence[Run], model: RiskModel, checked: CheckedRun | None = None) -> list[Diagnosis]:
    """Return the diagnosis of one run at each look.

    Args:
        seen: part of the run at each of `LOOKS`.
        model: risk model.
        checked: result of a checkup, whose findings are known once their steps are over; None if there was none.
    """
    diagnosed = []
    for part, share in zip(seen, LOOKS, strict=True):
        last = share * part.budget
        ruled_out = checked.ruled_out if checked is not None and checked.num_steps <= last else ()
        findings = [] if checked is None else checked.until(last)
        diagnosed.append(
            diagnose(part.history, total_steps=part.budget, risk_model=model, checked=findings, ruled_out=ruled_out)
        )
    return diagnosed


class Rules:
    """Findings of the rules in many runs at each of `LOOKS`, without the risk model."""

    def __init__(self, parts: Mapping[str, Sequence[Run]]):
        shown = progress(parts.items(), "rules", keep=False)
        found = {name: diagnoses(seen, RiskModel.zero()) for name, seen in shown}
        self._risks = {name: np.array([each.risk for each in seen]) for name, seen in found.items()}

    def risks(self, name: str, risks: np.ndarray) -> np.ndarray:
        """Return the risks that `diagnose` reports: at least those of the rules."""
        return np.fmax(self._risks[name], risks)
