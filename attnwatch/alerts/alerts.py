"""Alerts from one training to the services that the user named."""

from collections.abc import Sequence

from attnwatch.alerts.alert import Alert
from attnwatch.alerts.background import Background
from attnwatch.alerts.service import Service, services
from attnwatch.utils.messages import warn

PATIENCE_SECONDS = 5.0
"""Maximum time that the end of a training waits for pending alerts."""


class Alerts:
    """Send alerts without making training wait. Failures cause one warning.

    Args:
        alert: one or several Apprise URLs, or "$NAME" for a URL in an environment variable; None sends no alerts.

    Raises:
        ConfigurationError: a URL is invalid. The message does not show it, since it may contain a secret.
        ImportError: Apprise is not installed.
    """

    def __init__(self, alert: str | Sequence[str] | None = None):
        self._services = services(alert)
        self._background = Background(self._deliver)
        self._failed: dict[str, str] = {}
        self._has_warned = False

    def send(self, alert: Alert) -> None:
        """Send an alert to all services in the background."""
        for service in self._services:
            try:
                is_taken = self._background.put((service, alert))
            except RuntimeError:  # no thread can be started
                is_taken = False
            if not is_taken:
                self._failed[service.name] = "too many alerts were waiting, or no thread could be started"
        self._warn_of_failures()

    def finish(self) -> None:
        """Wait a few seconds for pending alerts."""
        if not self._background.finish(PATIENCE_SECONDS):
            self._failed.setdefault("the last alert", f"it was not sent within {PATIENCE_SECONDS:g} s")
        self._warn_of_failures()

    def restart(self) -> None:
        """Begin anew, for another training."""
        self._failed, self._has_warned = {}, False

    def _deliver(self, task: tuple[Service, Alert]) -> None:
        service, alert = task
        try:
            if not service.send(alert):
                self._failed[service.name] = "the service could not be reached, or refused it"
        except Exception as error:  # its text may contain the URL
            self._failed[service.name] = f"{type(error).__name__} in Apprise"

    def _warn_of_failures(self) -> None:
        if self._failed and not self._has_warned:
            self._has_warned = True
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self._failed.items())
            warn(
                f"an alert was not delivered; training continues ({reasons}). Check the URL given as `alert`, and "
                "whether this machine can reach the service; `apprise --body test URL` sends a test message.",
                once_for_all=True,
            )
