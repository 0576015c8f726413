"""Actions on findings, shared by everything that takes `on_finding`."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from attnwatch.diagnosis.kinds import FindingKind
from attnwatch.diagnosis.verdict import Diagnosis, Finding
from attnwatch.errors import ConfigurationError
from attnwatch.utils.states import check_format, with_format

ActionName = Literal["warn", "stop", "ignore"]
Action = ActionName | Callable[..., object]
_STATE_FORMAT = 1


class FindingActions:
    """Tell which findings are new, and what the user wants done about each.

    Notes warn nobody and stop nothing. A function is called with notes only if it was given for their kind.

    Args:
        on_finding: `"warn"`, `"stop"`, `"ignore"`, a function, or a mapping from kinds of findings to one of these;
            kinds that are not in a mapping warn.

    Attributes:
        current: kinds of the findings that hold now; a kind is new again once it has been gone.
        current_notes: kinds of the notes that hold now. A note that becomes a finding is a new finding.

    Raises:
        ConfigurationError: an unknown kind or action.

    Example:
        >>> FindingActions({"non_finite": "stop"}).may_stop
        True
    """

    def __init__(self, on_finding: Action | Mapping[str, Action]):
        self._default: Action = "warn"
        self._actions: dict[str, Action] = {}
        if isinstance(on_finding, Mapping):
            for kind, action in on_finding.items():
                _require_kind(kind)
                self._actions[kind] = _checked(f"`on_finding` for {kind!r}", action)
        else:
            self._default = _checked("`on_finding`", on_finding)
        self.current: set[str] = set()
        self.current_notes: set[str] = set()

    @property
    def may_stop(self) -> bool:
        """True if some kind of finding stops the training."""
        return "stop" in (self._default, *self._actions.values())

    @property
    def may_act(self) -> bool:
        """True if some kind of finding does more than warn."""
        return any(action not in ("warn", "ignore") for action in (self._default, *self._actions.values()))

    def new_findings(self, diagnosis: Diagnosis) -> list[tuple[Finding, Action]]:
        """Return the findings and notes whose kind did not hold as such at the last call, each with its action."""
        findings = {each.kind.value for each in diagnosis.findings if not each.is_note}
        notes = {each.kind.value for each in diagnosis.findings if each.is_note}
        held = {False: self.current, True: self.current_notes}
        new = [each for each in diagnosis.findings if each.kind.value not in held[each.is_note]]
        self.current, self.current_notes = findings | _kept(self.current), notes | _kept(self.current_notes)
        return [(each, self._action(each)) for each in new]

    def _action(self, finding: Finding) -> Action:
        if not finding.is_note:
            return self._actions.get(finding.kind.value, self._default)
        action = self._actions.get(finding.kind.value)
        return action if callable(action) else "ignore"

    def reset(self) -> None:
        """Forget which findings and notes hold."""
        self.current, self.current_notes = set(), set()

    def state_dict(self) -> dict[str, Any]:
        """Return the kinds that hold now, as strings."""
        return with_format(_STATE_FORMAT, {"current": sorted(self.current), "notes": sorted(self.current_notes)})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from where `state_dict` was taken. Kinds whose rules are no longer registered are kept.

        Raises:
            ConfigurationError: `state` is of another version.
        """
        check_format(state, _STATE_FORMAT, "FindingActions")
        self.current, self.current_notes = set(state["current"]), set(state["notes"])


def _checked(name: str, action: Action) -> Action:
    if not callable(action) and action not in get_args(ActionName):
        raise ConfigurationError(
            f"{name} must be one of {', '.join(map(repr, get_args(ActionName)))}, a function, or a mapping from kinds "
            f"of findings to one of these; got {action!r}."
        )
    return action


def _require_kind(kind: str) -> None:
    try:
        FindingKind(kind)
    except ValueError as error:
        raise ConfigurationError(f"`on_finding`: {error}") from None


def _kept(kinds: set[str]) -> set[str]:
    """Return the kinds of a checkpoint whose rules are not registered here."""
    return {kind for kind in kinds if kind not in FindingKind}
