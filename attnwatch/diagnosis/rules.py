"""Rules that judge one run."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from attnwatch.diagnosis.evidence import Evidence, Symptom
from attnwatch.diagnosis.findings.base import FindingRule
from attnwatch.diagnosis.ranking import CauseSet
from attnwatch.errors import ConfigurationError
from attnwatch.utils.messages import warn


class RuleSet:
    """Registered rules, some of which may be replaced. A failing rule is named in one warning and not used again.

    Args:
        rules: rules that replace the registered ones of the same name, such as `UniformAttention(enter=0.98)` or
            `FrozenAttention(enabled=False)`. They are used unchanged; the other rules adapt to the budget of the run.

    Raises:
        ConfigurationError: `rules` holds anything but registered rules, or one of them twice.

    Attributes:
        causes: registered causes of findings.
    """

    def __init__(self, rules: Iterable[FindingRule] = ()):
        self._given: dict[str, FindingRule] = {}
        self._failed: set[str] = set()
        self.causes = CauseSet()
        for rule in rules if isinstance(rules, Iterable) else [None]:
            if not isinstance(rule, FindingRule):
                expected = "a list of rules, such as [UniformAttention(enter=0.98)]"
                raise ConfigurationError(f"`rules` must be {expected}; got {rules!r}.")
            if rule.name not in FindingRule.registry:
                described = FindingRule.registry.describe(rule)
                raise ConfigurationError(f"`rules`: {described} is not registered; call attnwatch.register first.")
            if rule.name in self._given:
                raise ConfigurationError(f"`rules` has two rules named {rule.name!r}; give one.")
            self._given[rule.name] = rule

    def reset(self) -> None:
        """Use failed rules and causes again, as in a new training."""
        self._failed.clear()
        self.causes.reset()

    def symptoms(self, evidence: Evidence, *, fallback: bool) -> Iterator[tuple[FindingRule, Symptom]]:
        """Yield the rules that find something, with their symptoms, in registry order.

        Args:
            evidence: evidence from the run so far.
            fallback: True for the fallback rules, False for the others.
        """
        for name, registered in list(FindingRule.registry.items()):
            rule = self._given.get(name, registered)
            is_wanted = rule.enabled and rule.is_fallback == fallback and (evidence.is_enough or rule.known_at_once)
            can_see = rule.judges in ("both", "loss" if evidence.has_loss_alone else "attention")
            if not (is_wanted and can_see) or name in self._failed:
                continue
            try:
                rule = self._given.get(name) or rule.of_budget(evidence.risk.total_steps)
                symptom = _checked(rule.look(evidence), evidence)
            except Exception as error:
                self._failed.add(name)
                warn(
                    f"{FindingRule.registry.describe(rule)} failed; the run is judged without it from now on: "
                    f"{type(error).__name__}: {error}",
                    once_for_all=True,
                )
                continue
            if symptom is not None:
                yield rule, symptom


def _checked(symptom: object, evidence: Evidence) -> Symptom | None:
    """Return what a rule found, with plain numbers, or raise an error that says what is wrong with it."""
    if symptom is None:
        return None
    if not isinstance(symptom, Symptom):
        raise TypeError(f"`look` must return evidence.symptom(...) or None, got {symptom!r:.200}")
    (first, last), unknown = evidence.steps[[0, -1]], set(symptom.sites) - set(evidence.sites)
    if unknown or not first <= symptom.step <= last:
        raise ValueError(f"expected observed sites and a step from {first} to {last}, got {symptom!r:.200}")
    if not (0 <= symptom.share <= 1 and 0 <= symptom.severity <= 1):
        raise ValueError(f"expected a share and a severity from 0 to 1, got {symptom.share!r} and {symptom.severity!r}")
    numbers = {name: float(number) for name, number in symptom.numbers.items()}
    return replace(symptom, step=int(symptom.step), severity=float(symptom.severity), numbers=numbers)
