"""Atomic replacement of files and folders, and careful reading of files that may be damaged or huge."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from attnwatch.errors import ConfigurationError

# The largest index of a model's weights has some 10 MB. Reading more would take long, and nobody means to.
_MOST_BYTES = 2**26


class UnreadableFileError(Exception):
    """Error for a file that is not what it should be. The message completes the sentence "The file …"."""


def read_text(path: str | os.PathLike[str], *, most_bytes: int = _MOST_BYTES) -> str:
    """Return the text of a file in UTF-8.

    Raises:
        UnreadableFileError: it can't be opened, has more than `most_bytes` (64 MiB), or is not UTF-8.
    """
    try:
        with open(path, "rb") as stream:
            content = stream.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise UnreadableFileError(f"has more than {most_bytes >> 20} MiB")
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFileError(f"can't be read as UTF-8 text ({error})") from error


def read_json(path: str | os.PathLike[str], *, most_bytes: int = _MOST_BYTES) -> Any:
    """Return what a JSON file of at most `most_bytes` holds.

    Raises:
        UnreadableFileError: it can't be opened, is too large, or is not JSON.
    """
    return parse_json(read_text(path, most_bytes=most_bytes))


def parse_json(text: str) -> Any:
    """Parse JSON text.

    Raises:
        UnreadableFileError: the text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # the latter of brackets in brackets
        raise UnreadableFileError(f"is not JSON ({error})") from error


@contextlib.contextmanager
def replaced_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write a file that takes the place of `path` once it is complete and on disk.

    If writing fails, also because the disk is full, the old file stays and nothing is left beside it. A process that is
    killed leaves the old file or the new one, and perhaps a hidden `.NAME.*.tmp` that nobody reads.

    Raises:
        OSError: the file can't be written, or `path` is a folder, a device or a pipe.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replaced_file(Path(folder, "numbers.txt")) as stream:
        ...         _ = stream.write(b"1 2 3")
        ...     Path(folder, "numbers.txt").read_text()
        '1 2 3'
    """
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is no regular file, and is not replaced", str(path))
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with open(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, _mode_of(path))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def replaced_folder(directory: Path, keep: Callable[[str, list[str]], Iterable[str]]) -> Iterator[Path]:
    """Write a folder that takes the place of `directory` once it is complete and on disk.

    Args:
        directory: absolute path.
        keep: names of what is left out when the old folder is copied to the new one, as `ignore` of
            `shutil.copytree`.

    Raises:
        ConfigurationError: `directory` is a file.
    """
    if directory.is_file():
        raise ConfigurationError(f"`directory`: {str(directory)!r} is a file; give the path of a folder.")
    new, old = beside(directory, "new"), beside(directory, "old")
    if old.exists() and not directory.exists():  # killed between the two renames
        old.rename(directory)
    for left_over in (new, old):
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        if directory.exists():
            shutil.copytree(directory, new, symlinks=True, ignore=keep, dirs_exist_ok=True)
        yield new
        for file in new.rglob("*"):
            if file.is_file() and not file.is_symlink():
                _sync(file)
        _sync_folder(new)
        if directory.exists():
            directory.rename(old)
        new.rename(directory)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        if old.exists() and not directory.exists():
            old.rename(directory)
        raise
    _sync_folder(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def beside(directory: Path, suffix: str) -> Path:
    """Return the hidden sibling of a folder that `replaced_folder` uses."""
    return directory.with_name(f".{directory.name}.{suffix}")


def _mode_of(path: Path) -> int:
    """Return the permissions of an existing file, or those that a new file gets."""
    try:
        return path.stat().st_mode & 0o7777
    except OSError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder last; some systems can't open folders."""
    with contextlib.suppress(OSError):
        _sync(folder)


def free_space(path: str | os.PathLike[str]) -> float:
    """Return the free bytes on the disk of a path; infinite if they are unknown."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return float("inf")
