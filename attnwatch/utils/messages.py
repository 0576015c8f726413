"""Messages to the user: warnings that never stop a training run, and information."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Hashable, Iterator, Sequence
from types import FrameType

from attnwatch.errors import AttnwatchWarning
from attnwatch.utils.processes import is_first_process

logger = logging.getLogger("attnwatch")


# Packages whose lines are not part of the user's script.
_NOT_OF_THE_USER = {"attnwatch", "contextlib", "torch"}


def warn(message: str, *, always: bool = False, once_for_all: bool = False) -> None:
    """Show an `AttnwatchWarning` on every call, at the line of the user's script that led to it.

    By default, Python shows a warning from one line once per process, so a second run in the same process would be
    silent. Filters that turn warnings into errors must not stop a training run: the logger "attnwatch" then logs the
    message.

    Args:
        message: one or more sentences, without the prefix "attnwatch: ".
        always: log the message if a filter hides it.
        once_for_all: show the message only on the first process of `torch.distributed`, since it is the same on all.
    """
    if once_for_all and not is_first_process():
        return
    frame = _frame_of_user()
    module, line = frame.f_globals.get("__name__", "<unknown>"), frame.f_lineno
    text = f"attnwatch: {message}"
    is_hidden = _is_hidden(text, module, line)
    registry: dict[str | tuple[str, type[Warning], int], int] = {}
    try:
        warnings.warn_explicit(text, AttnwatchWarning, frame.f_code.co_filename, line, module, registry)
    except AttnwatchWarning:
        logger.warning(text)
        return
    if always and is_hidden:
        logger.warning(text)


class NonFatal:
    """Context that turns an error into one warning instead of ending the training run. Create one per run.

    `KeyboardInterrupt` and other exceptions that are not an `Exception` are not caught.

    Example:
        >>> non_fatal = NonFatal()
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     for _ in range(2):
        ...         with non_fatal("the monitor failed", key="monitor"):
        ...             raise ValueError("no number")
        >>> [str(each.message) for each in caught]
        ['attnwatch: the monitor failed, training continues: ValueError: no number']
    """

    def __init__(self) -> None:
        self._failed: set[Hashable] = set()

    def has_failed(self, key: Hashable) -> bool:
        """Return whether an error occurred under this key."""
        return key in self._failed

    @contextlib.contextmanager
    def __call__(self, message: str, *, key: Hashable = None) -> Iterator[None]:
        """Warn with `message` and the error, once per key, or for each error if there is no key."""
        try:
            yield
        except Exception as error:
            cause = f" (because of {error.__cause__!r})" if error.__cause__ else ""
            reason = f"{type(error).__name__}: {error}{cause}"
            key = reason if key is None else key
            if key not in self._failed:
                self._failed.add(key)
                warn(f"{message}, training continues: {reason}")


class WarnOnce:
    """Function that shows each message once, whatever its details. Create one per run."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def __call__(self, message: str, details: str = "", *, once_for_all: bool = False) -> None:
        """See `warn`."""
        if message not in self._given:
            self._given.add(message)
            warn(message + details, once_for_all=once_for_all)


def printable(text: str, *, keep: str = "\n") -> str:
    r"""Escape control characters, which could move a terminal's cursor, in a text from a file.

    Args:
        keep: control characters to keep.

    Example:
        >>> printable("layer\x1b[2J")
        'layer\\x1b[2J'
    """
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode() for each in text
    )


def inform(message: str, *, by: logging.Logger = logger) -> None:
    """Show a message that is not a warning, through a logger if it shows the level INFO, otherwise on the screen.

    Messages have the level INFO, which loggers hide unless configured. On the screen, progress bars stay intact.
    `logging.getLogger("attnwatch").setLevel(logging.WARNING)` silences these messages.

    Args:
        message: message without the prefix "attnwatch: ".
        by: logger that users of the trainer may have configured.
    """
    text = f"attnwatch: {message}"
    if logger.level > logging.INFO:
        return
    for each in dict.fromkeys((by, logger)):
        if _shows_news(each):
            each.info(text)
            return
    _print(text)


def duration(seconds: float) -> str:
    """Format a time in milliseconds, or in seconds from 1 s on, with three digits and no exponent.

    >>> duration(0.0123), duration(1.234), duration(83.2)
    ('12.3 ms', '1.23 s', '83.2 s')
    """
    value, unit = (seconds, "s") if abs(seconds) >= 0.9995 else (1e3 * seconds, "ms")
    rounded = float(f"{value:.3g}")
    digits = f"{rounded:.4f}".rstrip("0").rstrip(".")
    return f"{digits} {unit}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, in the plural unless it is 1.

    >>> counted(1, "head"), counted(1200, "step"), counted(2, "batch", "batches")
    ('1 head', '1,200 steps', '2 batches')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return the first of some names, and the number of the others.

    >>> listed(["a", "b"]), listed(["a", "b", "c"], most=1)
    ('a, b', 'a and 2 more')
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def share_in_words(share: float) -> str:
    """Return a share, 0 to 1, in words.

    >>> share_in_words(0.73), share_in_words(0.05), share_in_words(0.99)
    ('about 7 in 10', 'about 1 in 10', 'nearly all')
    """
    if share >= 0.95:
        return "nearly all"
    return "hardly any" if share < 0.05 else f"about {max(round(10 * share), 1)} in 10"


def _frame_of_user() -> FrameType:
    """Return the innermost frame of the user's script; the frame of the warning if there is none."""
    innermost = frame = sys._getframe(1)
    while frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_OF_THE_USER:
        if frame.f_back is None:
            return innermost
        frame = frame.f_back
    return frame


def _is_hidden(text: str, module: str, line: int) -> bool:
    """Return whether the filters hide this warning."""
    for action, message, category, of_module, lineno in warnings.filters:
        if (
            (message is None or message.match(text))
            and issubclass(AttnwatchWarning, category)
            and (of_module is None or of_module.match(module))
            and lineno in (0, line)
        ):
            was_given = (text, AttnwatchWarning) in getattr(warnings, "onceregistry", {})
            return action == "ignore" or (action == "once" and was_given)
    return False


def _shows_news(each: logging.Logger) -> bool:
    """Return whether a message with the level INFO reaches a handler."""
    if each.disabled or not each.isEnabledFor(logging.INFO):
        return False
    at: logging.Logger | None = each
    while at is not None:
        for handler in at.handlers:
            if handler.level <= logging.INFO and not isinstance(handler, logging.NullHandler):
                return True
        at = at.parent if at.propagate else None
    return False


def _print(text: str) -> None:
    try:
        from tqdm import tqdm
    except ImportError:
        print(text)
    else:
        tqdm.write(text)
