"""Protection of files that are no pages from pages that would take their place."""

from pathlib import Path

from attnwatch.errors import ConfigurationError

_BEGIN = b"<!doctype html"
_MOST_BYTES_BEFORE = 256


def require_no_other_file(out: Path, *, argument: str) -> None:
    """Raise a `ConfigurationError` if a page at this path would replace a file that is no page, such as a run.

    Args:
        out: path of a page that is to be written.
        argument: name of the argument that the path comes from.

    Raises:
        ConfigurationError: see above. Empty files, such as temporary ones, may be replaced.
        OSError: the file can't be read.
    """
    if not out.is_file():
        return
    with open(out, "rb") as stream:
        begin = stream.read(_MOST_BYTES_BEFORE).lower()
    if begin and _BEGIN not in begin:
        raise ConfigurationError(
            f"`{argument}`: {str(out)!r} is a file that is no page, and is not replaced; give another path, or remove "
            "the file."
        )
