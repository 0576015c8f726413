"""What to do about findings: shared by everything that takes `on_finding`."""

from collections.abc import Callable, Mapping
from typing import Any

from attnwatch.diagnosis.verdict import Diagnosis, Finding, FindingKind
from attnwatch.errors import ConfigurationError
from attnwatch.utils.states import check_format, with_format

ACTIONS = ("warn", "stop", "ignore")
Action = str | Callable
_STATE_FORMAT = 1


class FindingActions:
    """Says which findings are new, and what the user wants done about each.

    Notes warn nobody and stop nothing. A function hears of them only where it was given for their kind.

    Args:
        on_finding: one of `ACTIONS`, a function, or a mapping from kinds to one of these; kinds that are not in a
            mapping warn.

    Attributes:
        current: kinds of the findings that hold now; a kind is new again once it has been gone.
        current_notes: kinds of the notes that hold now. A note that becomes a finding is a new finding.

    Raises:
        ConfigurationError: an unknown kind or action.
    """

    def __init__(self, on_finding: Action | Mapping[str, Action]):
        self._notes: dict[FindingKind, Action] = dict.fromkeys(FindingKind, "ignore")
        if not isinstance(on_finding, Mapping):
            self._actions = dict.fromkeys(FindingKind, _checked("`on_finding`", on_finding))
        else:
            chosen = {_kind(name): _checked(f"`on_finding` for {name!r}", each) for name, each in on_finding.items()}
            self._actions = dict.fromkeys(FindingKind, "warn") | chosen
            self._notes |= {kind: action for kind, action in chosen.items() if callable(action)}
        self.current: set[FindingKind] = set()
        self.current_notes: set[FindingKind] = set()

    @property
    def may_stop(self) -> bool:
        """Whether some kind of finding stops the training."""
        return "stop" in self._actions.values()

    @property
    def may_act(self) -> bool:
        """Whether some kind of finding does more than to warn."""
        return any(action not in ("warn", "ignore") for action in self._actions.values())

    def new_findings(self, diagnosis: Diagnosis) -> list[tuple[Finding, Action]]:
        """Findings and notes whose kind did not hold as such at the last call, and what to do about each."""
        findings = [finding for finding in diagnosis.findings if not finding.is_note]
        notes = [finding for finding in diagnosis.findings if finding.is_note]
        new = [(finding, self._actions[finding.kind]) for finding in findings if finding.kind not in self.current]
        new += [(note, self._notes[note.kind]) for note in notes if note.kind not in self.current_notes]
        self.current = {finding.kind for finding in findings}
        self.current_notes = {note.kind for note in notes}
        return new

    def reset(self) -> None:
        """Forget which findings and notes hold."""
        self.current, self.current_notes = set(), set()

    def state_dict(self) -> dict[str, Any]:
        """The kinds that hold now, as strings."""
        content = {
            "current": sorted(kind.value for kind in self.current),
            "notes": sorted(kind.value for kind in self.current_notes),
        }
        return with_format(_STATE_FORMAT, content)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ConfigurationError: `state` is of another version.
        """
        check_format(state, _STATE_FORMAT, "FindingActions")
        self.current = {FindingKind(kind) for kind in state["current"]}
        self.current_notes = {FindingKind(kind) for kind in state["notes"]}


def _checked(name: str, action: Action) -> Action:
    if not callable(action) and action not in ACTIONS:
        raise ConfigurationError(
            f"{name} must be one of {', '.join(map(repr, ACTIONS))}, a function, or a mapping from kinds of "
            f"findings to one of these; got {action!r}."
        )
    return action


def _kind(name: str) -> FindingKind:
    try:
        return FindingKind(name)
    except ValueError:
        kinds = ", ".join(kind.value for kind in FindingKind)
        raise ConfigurationError(f"`on_finding`: {name!r} is not a kind of finding; there are: {kinds}.") from None
