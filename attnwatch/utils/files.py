"""Atomic replacement of files and folders, and safe reading of files that may be damaged or huge."""

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

# Maximum size of files to read. The largest index of a model's weights has about 10 MB.
_MOST_BYTES = 2**26


class UnreadableFileError(Exception):
    """Error for a file with invalid content. The message completes the sentence "The file …"."""


def read_text(path: str | os.PathLike[str], *, most_bytes: int = _MOST_BYTES) -> str:
    """Return the text of a UTF-8 file.

    Raises:
        UnreadableFileError: the file can't be opened, has more than `most_bytes` (64 MiB), or is not UTF-8.
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
    """Return the content of a JSON file of at most `most_bytes`.

    Raises:
        UnreadableFileError: the file can't be opened, is too large, or is not JSON.
    """
    return parse_json(read_text(path, most_bytes=most_bytes))


def parse_json(text: str) -> Any:
    """Parse JSON text.

    Raises:
        UnreadableFileError: the text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # the latter for deeply nested brackets
        raise UnreadableFileError(f"is not JSON ({error})") from error


@contextlib.contextmanager
def replaced_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write a file that replaces `path` once it is complete and on disk.

    If writing fails, even because the disk is full, the old file stays and no temporary file is left. A killed process
    leaves either the old or the new file, and possibly a hidden `.NAME.*.tmp` that is never read.

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
        raise OSError(errno.EINVAL, "is not a regular file, so it is not replaced", str(path))
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
    """Write a folder that replaces `directory` once it is complete and on disk.

    Args:
        directory: absolute path.
        keep: function that returns the names to leave out when the old folder is copied to the new one, like `ignore`
            of `shutil.copytree`.

    Raises:
        ConfigurationError: `directory` is a file.
    """
    if directory.is_file():
        raise ConfigurationError(f"`directory`: {str(directory)!r} is a file; pass the path of a folder.")
    new, old = beside(directory, "new"), beside(directory, "old")
    if old.exists() and not directory.exists():  # a process was killed between the two renames
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
    """Return the permissions of an existing file, or the default for new files."""
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
    """Make renames in a folder durable, on systems that can open folders."""
    with contextlib.suppress(OSError):
        _sync(folder)


def free_space(path: str | os.PathLike[str]) -> float:
    """Return the number of free bytes on the disk of a path; infinite if unknown."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return float("inf")
