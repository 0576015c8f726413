"""Services to which Apprise sends alerts. Their URLs contain secrets and are never shown."""

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from attnwatch.alerts.alert import Alert
from attnwatch.errors import ConfigurationError
from attnwatch.utils.extras import extra_needed

_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]{0,19})://", re.IGNORECASE)
_VARIABLE = re.compile(r"\$(\w+)")
_NOTIFY_TYPES = {"warning": "warning", "error": "failure"}
_TALKATIVE = {"apprise", "oauthlib", "requests", "requests_oauthlib", "urllib3"}


class Service:
    """Service that receives alerts, such as a chat channel.

    Args:
        url: URL that Apprise supports, or "$NAME" for the URL in an environment variable.
        place: position among several URLs, for messages.

    Attributes:
        name: scheme of the URL, the only part of it that is ever shown.

    Raises:
        ConfigurationError: Apprise does not support the URL, or the variable is not set.
        ImportError: Apprise is not installed.
    """

    def __init__(self, url: str, place: str = ""):
        self._url = _from_environment(url)
        found = _SCHEME.match(self._url)
        self.name = found[1].lower() if found else ""
        if self._target() is None:
            what = f"{self.name}:// is unknown or incomplete" if self.name else "it has no scheme such as slack://"
            raise ConfigurationError(
                f"`alert`{place} is not a URL that Apprise knows: {what}. See https://appriseit.com/services for the "
                "URLs of all services. (The URL is not shown, as it may hold a secret.)"
            )

    def __repr__(self) -> str:
        return f"Service({self.name!r})"

    def send(self, alert: Alert) -> bool:
        """Send an alert and return whether the service accepted it. Apprise waits a few seconds for an answer."""
        with _unlogged():
            target = self._target()
            kind = _NOTIFY_TYPES[alert.level]
            return bool(target.notify(body=alert.text, title=alert.title, notify_type=kind, body_format="text"))

    def _target(self) -> Any:
        """Return Apprise's object for the service; None if Apprise does not support the URL."""
        with extra_needed("alerts", "AttentionMonitor(alert=…)"):
            from apprise import Apprise
        with _unlogged():
            return Apprise.instantiate(self._url)


def services(alert: object) -> list[Service]:
    """Return the services that the user named.

    Args:
        alert: a URL, a list of them, or None.

    Raises:
        ConfigurationError: `alert` has another type, or a URL is invalid. The message shows no URL.
        ImportError: Apprise is not installed.
    """
    urls = [] if alert is None else [alert] if isinstance(alert, str) else alert
    if not isinstance(urls, Sequence) or isinstance(urls, bytes) or not all(isinstance(url, str) for url in urls):
        raise ConfigurationError(
            "`alert` must be an Apprise URL, such as 'slack://TokenA/TokenB/TokenC', or a list of them; got "
            f"{type(alert).__name__}."
        )
    many = len(urls) > 1
    return [Service(url, f" {number} of {len(urls)}" if many else "") for number, url in enumerate(urls, start=1)]


def _from_environment(url: str) -> str:
    named = _VARIABLE.fullmatch(url)
    if named is None:
        return url
    if not os.environ.get(named[1]):
        raise ConfigurationError(f"`alert` names the environment variable {named[1]}, which is not set.")
    return os.environ[named[1]]


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Hide the log messages of this thread from Apprise and its dependencies, which contain URLs."""
    thread = threading.get_ident()

    def is_of_others(record: logging.LogRecord) -> bool:
        return threading.get_ident() != thread

    names = {*_TALKATIVE, *(name for name in logging.root.manager.loggerDict if name.split(".")[0] in _TALKATIVE)}
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(is_of_others)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_of_others)
