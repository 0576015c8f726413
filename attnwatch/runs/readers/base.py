"""Base class of run readers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from attnwatch.errors import ConfigurationError
from attnwatch.plugins import Plugin, Registry
from attnwatch.runs.record import RunRecord


class RunReader(Plugin):
    """Reader of one run format, such as a log or a checkpoint.

    Attributes:
        title: kind of file or log in words, such as "TensorBoard log".
        gives: what can be read from it, in words, for the documentation.
        precedence: if several formats are in one place, the one with the smallest number is read.

    Example:
        >>> import json
        >>> from attnwatch.runs import Points, logged_run
        >>> class JsonLines(RunReader):
        ...     name, title, gives = "json_lines", "JSON lines log", "the loss"
        ...
        ...     def find(self, path):
        ...         return [path] if path.suffix == ".jsonl" else []
        ...
        ...     def read(self, place, *, loss_tag=None):
        ...         points = Points()
        ...         for line in place.read_text().splitlines():
        ...             row = json.loads(line)
        ...             points.add("loss", row["step"], row["loss"])
        ...         return logged_run(place.stem, points.curves(), source=self.title, loss_tag=loss_tag)
    """

    registry: ClassVar[Registry["RunReader"]] = Registry("run reader", "attnwatch.runs.readers", as_instances=True)
    title: ClassVar[str]
    gives: ClassVar[str]
    precedence: ClassVar[int] = 5

    @classmethod
    def check(cls, plugin: Any) -> None:
        """Raise a `ConfigurationError` that names what the declaration lacks."""
        cls.registry.require_texts(plugin, "title", "gives")
        lacks = [name for name in ("find", "read") if getattr(type(plugin), name) is getattr(RunReader, name)]
        if lacks:
            raise ConfigurationError(f"{cls.registry.describe(plugin)} must have a method `{lacks[0]}`; see RunReader.")

    def find(self, path: Path) -> Sequence[Path]:
        """Return the places of runs in this format at a path, without searching folders further below.

        It is called for every folder that is searched, so it should look only at names and first bytes.

        Args:
            path: path of a file or a folder, which need not exist.
        """
        raise NotImplementedError

    def read(self, place: Path, *, loss_tag: str | None = None) -> RunRecord:
        """Read a run.

        Args:
            place: a place that `find` returned.
            loss_tag: name of the training loss in the log; None means the first usual name that is present.

        Raises:
            ConfigurationError: an argument does not fit the run.
            UnreadableFileError: the run can't be read; the message completes a sentence that begins with the place.
            OSError: a file can't be opened.
            ImportError: a package that reads the format is missing.
        """
        raise NotImplementedError


def refuse_loss_tag(place: Path, loss_tag: str | None) -> None:
    """Raise a `ConfigurationError` if a loss tag is given for a run whose loss was recorded."""
    if loss_tag is not None:
        raise ConfigurationError(f"`loss_tag` applies to logs only; leave it out: {str(place)!r} holds its own loss.")
