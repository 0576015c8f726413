"""Base class of the formats in which runs are kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from attnwatch.errors import ConfigurationError
from attnwatch.plugins import Plugin, Registry
from attnwatch.runs.record import RunRecord


class RunReader(Plugin):
    """One format in which runs are kept, such as a log or a checkpoint.

    Attributes:
        title: kind of file or log in words, such as "log of TensorBoard".
        gives: what is read of it, in words, for the documentation.
        precedence: of several formats at one place the one with the smallest number is read.

    Example:
        >>> import json
        >>> from attnwatch.runs import Points, logged_run
        >>> class JsonLines(RunReader):
        ...     name, title, gives = "json_lines", "log of JSON lines", "the loss"
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
        """Raise a `ConfigurationError` that names what a declaration lacks."""
        cls.registry.require_texts(plugin, "title", "gives")
        lacks = [name for name in ("find", "read") if getattr(type(plugin), name) is getattr(RunReader, name)]
        if lacks:
            raise ConfigurationError(f"{cls.registry.describe(plugin)} must have a method `{lacks[0]}`; see RunReader.")

    def find(self, path: Path) -> Sequence[Path]:
        """Return the places of the runs of this format that lie at a path, and not further below.

        It is called for every folder in which a run is looked for, so it should look at names and first bytes alone.

        Args:
            path: of a file or a folder, which need not exist.
        """
        raise NotImplementedError

    def read(self, place: Path, *, loss_tag: str | None = None) -> RunRecord:
        """Read a run.

        Args:
            place: one of those that `find` has returned.
            loss_tag: name of the training loss in the log; None means the first of the usual names that is there.

        Raises:
            ConfigurationError: an argument does not fit the run.
            UnreadableFileError: the run can't be read; the message continues a sentence about the place.
            OSError: a file can't be opened.
            ImportError: a package that reads the format is missing.
        """
        raise NotImplementedError


def refuse_loss_tag(place: Path, loss_tag: str | None) -> None:
    """Raise a `ConfigurationError` where a tag of the loss is given for a run that has the loss which was recorded."""
    if loss_tag is not None:
        raise ConfigurationError(f"`loss_tag` is of a log; {str(place)!r} has the loss that was recorded.")
