"""Rules that judge one run."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from attnwatch.diagnosis.evidence import Evidence, Symptom
from attnwatch.diagnosis.findings.base import FindingRule
from attnwatch.diagnosis.ranking import CauseSet
from attnwatch.errors import ConfigurationError
from attnwatch.utils.messages import warn


class RuleSet:
    """Registered rules, some of them replaced. A rule that fails is named in one warning and not used again.

    Args:
        rules: rules that replace the registered ones of the same name, such as `UniformAttention(enter=0.98)` or
            `FrozenAttention(enabled=False)`. They are used as they are; the others follow the budget of the run.

    Raises:
        ConfigurationError: `rules` holds anything else than rules that are registered, each once.

    Attributes:
        causes: registered causes of what the rules find.
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
                raise ConfigurationError(f"`rules` has two rules of the name {rule.name!r}; give one.")
            self._given[rule.name] = rule

    def reset(self) -> None:
        """Use the rules and causes that failed again, as in a new training."""
        self._failed.clear()
        self.causes.reset()

    def symptoms(self, evidence: Evidence, *, fallback: bool) -> Iterator[tuple[FindingRule, Symptom]]:
        """Yield what the rules find, in the order of the registry.

        Args:
            evidence: of the run so far.
            fallback: use the rules that are fallbacks, else the others.
        """
        for name, registered in list(FindingRule.registry.items()):
            rule = self._given.get(name, registered)
            is_wanted = rule.enabled and rule.is_fallback == fallback and (evidence.is_enough or rule.known_at_once)
            can_see = rule.of_loss_alone == evidence.has_loss_alone
            if not (is_wanted and can_see) or name in self._failed:
                continue
            try:
                rule = self._given.get(name) or rule.of_budget(evidence.risk.total_steps)
                symptom = _checked(rule.look(evidence), evidence)
            except Exception as error:
                self._failed.add(name)
                warn(
                    f"{FindingRule.registry.describe(rule)} failed, the run is judged without it from now on: "
                    f"{type(error).__name__}: {error}",
                    once_for_all=True,
                )
                continue
            if symptom is not None:
                yield rule, symptom


def _checked(symptom: object, evidence: Evidence) -> Symptom | None:
    """Raise an error that says what is wrong with what a rule returned."""
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
