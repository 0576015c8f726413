"""Base class of loggers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from attnwatch.errors import ConfigurationError
from attnwatch.plugins import Plugin, Registry

if TYPE_CHECKING:
    from attnwatch.dashboard.layout import Layout

Draw = Callable[[], Mapping[str, np.ndarray]]
"""Function that draws images by tag, each uint8 [height, width, 3]."""
Setting = str | int | float | bool
AlertLevel = Literal["warning", "error"]
Write = Callable[[Mapping[str, float], int], None]
"""Function that writes numbers by tag at a step, as the trainer itself would."""


class Logger(Plugin):
    """Kind of logger, for any trainer.

    A subclass names the classes that it recognises, and overrides the methods for other output than numbers that the
    logger supports. It need not import a library before it writes. An error in a method causes one warning, the failed
    output is not tried again, and training continues.

    Args:
        target: the trainer's own object, such as Lightning's `WandbLogger` or transformers' `WandbCallback`.
        write: function that writes numbers to `target`.

    Attributes:
        class_names: class names of `target`, without modules; subclasses are recognised too.

    Example:
        >>> class PrintLogger(Logger):
        ...     name, class_names = "print", ("TextIOWrapper",)
        ...
        ...     def log_scalars(self, numbers, step):
        ...         for tag, number in numbers.items():
        ...             print(f"step {step}: {tag} = {number}", file=self.target)
    """

    registry: ClassVar[Registry[type["Logger"]]] = Registry("logger", "attnwatch.loggers")
    class_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, target: Any, write: Write | None = None):
        self.target = target
        self._write = write

    @classmethod
    def check(cls, plugin: Any) -> None:
        """Raise a `ConfigurationError` unless `plugin` is a class with a tuple of `class_names`."""
        names = getattr(plugin, "class_names", None)
        is_tuple = isinstance(names, tuple) and all(isinstance(name, str) and name.isidentifier() for name in names)
        if not isinstance(plugin, type) or not is_tuple:
            raise ConfigurationError(
                f"{cls.registry.describe(plugin)} must be a class whose `class_names` is a tuple of class names, such "
                f'as ("WandbLogger", "WandbCallback"); got {names!r}.'
            )

    def log_scalars(self, numbers: Mapping[str, float], step: int) -> None:
        """Log scalars by tag at a step. The default writes them as the trainer itself would."""
        if self._write is None:
            raise NotImplementedError(
                f"{type(self).__name__} must override `log_scalars` to write to a {type(self.target).__name__}."
            )
        self._write(numbers, step)

    def log_images(self, draw: Draw, step: int) -> None:
        """Log the images that `draw` returns. The default neither draws nor logs any."""

    def log_page(self, page: Path) -> None:
        """Log the HTML page about a finished run. The default does nothing, since the page is beside the logs."""

    def log_text(self, tag: str, markdown: str, step: int) -> None:
        """Log a text. The default does nothing."""

    def log_layout(self, layout: "Layout") -> None:
        """Arrange curves that will be logged into charts. The default leaves this to the logger."""

    def log_alert(self, title: str, text: str, level: AlertLevel) -> None:
        """Send an alert through the logger. The default does nothing.

        Args:
            title: title of fewer than 64 characters.
            text: description of the event.
            level: severity of the alert.
        """

    def log_outcome(self, settings: Mapping[str, Setting], metrics: Sequence[str]) -> None:
        """Log the outcome of a finished run, by which runs are compared. The default does nothing.

        Args:
            settings: hyperparameters by name, and the verdict.
            metrics: tags of the curves whose last values are the outcome.
        """


def logger_for(target: Any, write: Write | None = None, *, otherwise: type[Logger] | None = None) -> Logger | None:
    """Return the logger that recognises `target`, or else one of the class `otherwise`.

    The most derived class that a logger names decides; among several such loggers, the one registered last.
    """
    by_class = {name: kind for kind in Logger.registry.values() for name in kind.class_names}
    kind = next((by_class[base.__name__] for base in type(target).__mro__ if base.__name__ in by_class), otherwise)
    return None if kind is None else kind(target, write)
