"""Reading of TensorBoard event files, of which damaged ones are refused."""

import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from attnwatch.errors import ConfigurationError
from attnwatch.utils.extras import extra_needed

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

# Length of a record and the checksum of these eight bytes. The content and its checksum follow.
_HEADER = struct.Struct("<QI")
_CHECKSUM_BYTES = 4
_MOST_BYTES = 2**24  # of a record; an image has about 10**5, and checksums of larger records take seconds


def read_events(file: Path) -> Iterator["Event"]:
    """Yield the complete events of a file, which may still be growing or may have been cut off.

    Raises:
        ConfigurationError: the file is damaged. TensorBoard would silently show only what comes before.
        ImportError: tensorboard is missing.
    """
    with extra_needed("tensorboard", "reading a logged run"):
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    num_whole, is_damaged = _whole_records(file)
    number = 0
    try:
        for event in itertools.islice(LegacyEventFileLoader(str(file)).Load(), num_whole):
            number += 1
            yield event
    except Exception as error:  # its type depends on which byte is wrong
        raise _damaged(file, number) from error
    if is_damaged or number < num_whole:
        raise _damaged(file, number)


def _whole_records(file: Path) -> tuple[int, bool]:
    """Return the number of complete records, and whether the next one is damaged rather than just cut off."""
    from tensorboard.summary.writer.record_writer import masked_crc32c

    number, end = 0, os.path.getsize(file)
    with open(file, "rb") as stream:
        while len(header := stream.read(_HEADER.size)) == _HEADER.size:
            length, checksum = _HEADER.unpack(header)
            if masked_crc32c(header[:8]) != checksum or length > _MOST_BYTES:
                return number, True
            if stream.tell() + length + _CHECKSUM_BYTES > end:
                break
            stream.seek(length + _CHECKSUM_BYTES, os.SEEK_CUR)
            number += 1
    return number, False


def _damaged(file: Path, number: int) -> ConfigurationError:
    return ConfigurationError(
        f"`run`: {str(file)!r} is damaged after event {number}: use an intact copy, or move the file away to "
        "judge the run by its other files."
    )
