"""Check that a page replaces nothing but a page."""

from pathlib import Path

from attnwatch.errors import ConfigurationError

_BEGIN = b"<!doctype html"
_MOST_BYTES_BEFORE = 256


def require_no_other_file(out: Path, *, argument: str) -> None:
    """Raise a `ConfigurationError` if a page at this path would replace another kind of file, such as a run.

    Args:
        out: path of the page to write.
        argument: name of the argument that holds the path.

    Raises:
        ConfigurationError: the file has content and is not a page.
        OSError: the file can't be read.
    """
    if not out.is_file():
        return
    with open(out, "rb") as stream:
        begin = stream.read(_MOST_BYTES_BEFORE).lower()
    if begin and _BEGIN not in begin:
        raise ConfigurationError(
            f"`{argument}`: {str(out)!r} is not a page, and is not replaced; give another path, or remove the file."
        )
