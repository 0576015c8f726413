"""Warnings that reach the user once a run and never stop a training."""

import logging
import sys
import warnings

from attnwatch.errors import AttnwatchWarning

logger = logging.getLogger("attnwatch")


def warn(message: str, *, stacklevel: int = 2, always: bool = False) -> None:
    """Show an `AttnwatchWarning`, as often as it is called.

    Python shows a warning of one line once a process; a second run in the same process would stay silent. Filters that
    turn warnings into errors must not stop a training: the message is then logged by the logger "attnwatch".

    Args:
        message: one or more sentences, without the prefix "attnwatch: ".
        stacklevel: as in `warnings.warn`: 2 points to where the caller was called.
        always: log the message too where a filter hides it.
    """
    frame = sys._getframe(1)
    for _ in range(stacklevel - 1):
        frame = frame.f_back or frame
    module, line = frame.f_globals.get("__name__", "<unknown>"), frame.f_lineno
    text = f"attnwatch: {message}"
    registry: dict = {}
    try:
        warnings.warn_explicit(text, AttnwatchWarning, frame.f_code.co_filename, line, module, registry)
    except AttnwatchWarning:
        logger.warning(text)
        return
    if always and _is_hidden(text, module, line):
        logger.warning(text)


class WarnOnce:
    """Shows each message once, whatever details it comes with."""

    def __init__(self):
        self._given: set[str] = set()

    def __call__(self, message: str, details: str = "") -> None:
        if message not in self._given:
            self._given.add(message)
            warn(message + details, stacklevel=3)


def _is_hidden(text: str, module: str, line: int) -> bool:
    """Whether the filters ignore this warning."""
    for action, message, category, of_module, lineno in warnings.filters:
        if (
            (message is None or message.match(text))
            and issubclass(AttnwatchWarning, category)
            and (of_module is None or of_module.match(module))
            and lineno in (0, line)
        ):
            return action == "ignore"
    return False
