"""Reading of a run in any supported format."""

import os
from collections.abc import Iterator
from pathlib import Path

from attnwatch.errors import AttnwatchError, ConfigurationError
from attnwatch.runs.readers.base import RunReader
from attnwatch.runs.record import RunRecord
from attnwatch.utils.files import UnreadableFileError
from attnwatch.utils.messages import listed

_MOST_ENTRIES = 20_000
_MOST_LISTED = 10

Found = tuple[RunReader, Path]


def read_run(run: str | os.PathLike[str], *, loss_tag: str | None = None) -> RunRecord:
    """Read a run from a file or a folder, in any format of `RunReader.registry`.

    Args:
        run: path of a saved history, a log or a checkpoint, or of a folder that contains one run.
        loss_tag: tag of the training loss in a log; None means the first usual name that is present.

    Raises:
        ConfigurationError: there is no run, there are several, or it can't be read. The message says which and why.
        ImportError: a package that reads the format is missing.
    """
    path = Path(run)
    try:
        reader, place = _only_run(path)
    except OSError as error:
        raise ConfigurationError(f"`run`: {str(path)!r} can't be read: {error}.") from error
    return _read(reader, place, loss_tag)


def _read(reader: RunReader, place: Path, loss_tag: str | None) -> RunRecord:
    try:
        return reader.read(place, loss_tag=loss_tag)
    except (AttnwatchError, ImportError):
        raise
    except UnreadableFileError as error:
        raise ConfigurationError(f"`run`: {str(place)!r} {error}.") from error
    except OSError as error:
        raise ConfigurationError(f"`run`: {str(place)!r} can't be read: {error}.") from error
    except Exception as error:
        described = RunReader.registry.describe(reader)
        raise ConfigurationError(
            f"`run`: {str(place)!r} is damaged, or {described} can't read it ({type(error).__name__}: {error})."
        ) from error


def _only_run(path: Path) -> Found:
    found = _at(path) or sorted(_below(path), key=lambda each: str(each[1]))
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigurationError(f"`run`: {_why_none(path)}")
    runs = listed([f"{str(place)!r} ({reader.title})" for reader, place in found], most=_MOST_LISTED)
    raise ConfigurationError(f"`run`: {str(path)!r} contains {len(found)} runs; give one of them: {runs}.")


def _at(path: Path) -> list[Found]:
    """Return the runs at a path, in the first format that is found there."""
    for reader in sorted(RunReader.registry.values(), key=lambda each: each.precedence):
        places = reader.find(path)
        if places:
            return [(reader, place) for place in places]
    return []


def _below(path: Path) -> Iterator[Found]:
    """Yield each run below a folder once, even if several links lead to it. Hidden folders are left out."""
    waiting, seen, num_entries = [path] if path.is_dir() else [], set(), 0
    while waiting:
        for each in waiting.pop().iterdir():
            num_entries += 1
            if num_entries > _MOST_ENTRIES:
                raise ConfigurationError(
                    f"`run`: {str(path)!r} has more than {_MOST_ENTRIES:,} files and folders; give the folder of one "
                    "run."
                )
            if each.is_dir() and not each.name.startswith(".") and (real := each.resolve()) not in seen:
                seen.add(real)
                found = _at(each)
                yield from found
                waiting += [] if found else [each]


def _why_none(path: Path) -> str:
    formats = "; ".join(f"{reader.title} ({name})" for name, reader in RunReader.registry.items())
    if not path.exists():
        return f"{str(path)!r} does not exist; give a saved history (.npz), a log, a checkpoint, or a folder with one."
    if path.is_file():
        return f"{str(path)!r} is neither a saved attention history nor in another readable format: {formats}."
    if (path / "config.json").is_file():
        return f"{str(path)!r} holds a model, not a run; to inspect it: attnwatch inspect MODEL_DIR --text FILE."
    return f"{str(path)!r} and the folders below it contain no run; readable formats: {formats}."
