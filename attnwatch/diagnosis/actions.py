"""What to do about findings: shared by everything that takes `on_finding`."""

from collections.abc import Callable, Mapping
from typing import Any

from attnwatch.diagnosis.verdict import Diagnosis, Finding, FindingKind
from attnwatch.errors import ConfigurationError
from attnwatch.states import check_format, with_format

ACTIONS = ("warn", "stop", "ignore")
Action = str | Callable
_STATE_FORMAT = 1


class FindingActions:
    """Says which findings are new, and what the user wants done about each.

    Args:
        on_finding: one of `ACTIONS`, a function, or a mapping from kinds to one of these; kinds that are not in a
            mapping warn.

    Attributes:
        current: kinds that hold now; a kind is new again once it has been gone.

    Raises:
        ConfigurationError: an unknown kind or action.
    """

    def __init__(self, on_finding: Action | Mapping[str, Action]):
        if not isinstance(on_finding, Mapping):
            self._actions = dict.fromkeys(FindingKind, _checked("`on_finding`", on_finding))
        else:
            self._actions = dict.fromkeys(FindingKind, "warn")
            self._actions |= {
                _kind(name): _checked(f"`on_finding` for {name!r}", action) for name, action in on_finding.items()
            }
        self.current: set[FindingKind] = set()

    @property
    def may_stop(self) -> bool:
        """Whether some kind of finding stops the training."""
        return "stop" in self._actions.values()

    @property
    def may_act(self) -> bool:
        """Whether some kind of finding does more than to warn."""
        return any(action not in ("warn", "ignore") for action in self._actions.values())

    def new_findings(self, diagnosis: Diagnosis) -> list[tuple[Finding, Action]]:
        """Findings whose kind did not hold at the last call."""
        new = [(finding, self._actions[finding.kind]) for finding in diagnosis.findings]
        new = [(finding, action) for finding, action in new if finding.kind not in self.current]
        self.current = {finding.kind for finding in diagnosis.findings}
        return new

    def reset(self) -> None:
        """Forget which findings hold."""
        self.current = set()

    def state_dict(self) -> dict[str, Any]:
        """The kinds that hold now, as strings."""
        return with_format(_STATE_FORMAT, {"current": sorted(kind.value for kind in self.current)})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ConfigurationError: `state` is of another version.
        """
        check_format(state, _STATE_FORMAT, "FindingActions")
        self.current = {FindingKind(kind) for kind in state["current"]}


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
