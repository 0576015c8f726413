"""What attention says: signals and rules of each run at each look, computed once, and models tuned on them."""

import copy
from collections.abc import Mapping, Sequence

import numpy as np

from attnwatch import diagnose
from attnwatch.diagnosis import Diagnosis
from attnwatch.diagnosis.risk import RiskModel
from attnwatch.diagnosis.signals import SIGNALS, signals_of
from benchmarks.verdicts.runs import Run
from benchmarks.verdicts.scores import Judge, Numbers
from benchmarks.verdicts.tune import SHARES, tune

OF_LOSS = np.array([signal.of_loss for signal in SIGNALS])


class Signals:
    """Of many runs.

    Args:
        parts: of each run, by name: what was seen of it at each of the shares.
        shares: of the budget, `tune.SHARES` among them.
    """

    def __init__(self, parts: Mapping[str, Sequence[Run]], shares: Sequence[float]):
        self._shares = list(shares)
        self._of = {name: np.array([signals_of(part.history) for part in seen]) for name, seen in parts.items()}

    def without(self, left_out: np.ndarray) -> "Signals":
        """Those where `left_out`, bool [signals], are not known."""
        others = copy.copy(self)
        others._of = {name: np.where(left_out, np.nan, signals) for name, signals in self._of.items()}
        return others

    def tune(self, names: Sequence[str], failed: Mapping[str, bool]) -> RiskModel:
        places = {share: self._shares.index(share) for share in SHARES}
        signals = {share: [self._of[name][place] for name in names] for share, place in places.items()}
        return tune(signals, [failed[name] for name in names])

    def risks(self, name: str, model: RiskModel) -> np.ndarray:
        """At each share."""
        rows = zip(self._of[name], self._shares, strict=True)
        return np.array([model.risks(model.distances(row[None], share))[0] for row, share in rows])

    def judge(self, failed: Mapping[str, bool], rules: "Rules | None" = None) -> Judge:
        """By the model alone, or with the rules' findings."""

        def tuned(others: Sequence[str]) -> Numbers:
            model = self.tune(others, failed)
            if rules is None:
                return lambda name: self.risks(name, model)
            return lambda name: rules.risks(name, self.risks(name, model))

        return tuned


def diagnoses(seen: Sequence[Run], model: RiskModel) -> list[Diagnosis]:
    """Of one run at each look."""
    return [diagnose(part.history, total_steps=part.budget, risk_model=model) for part in seen]


class Rules:
    """What the rules find in many runs at each of `LOOKS`, without the risk model."""

    def __init__(self, parts: Mapping[str, Sequence[Run]]):
        found = {name: diagnoses(seen, RiskModel.zero()) for name, seen in parts.items()}
        self._risks = {name: np.array([each.risk for each in seen]) for name, seen in found.items()}

    def risks(self, name: str, risks: np.ndarray) -> np.ndarray:
        """As `diagnose` tells them."""
        return np.fmax(self._risks[name], risks)
