"""Files of W&B runs: protobuf records in blocks, with checksums."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from attnwatch.utils.files import UnreadableFileError

_BLOCK_BYTES = 2**15
_BEGIN = struct.Struct("<4sHB")  # start of the file: name, number and version of the format
_BEGIN_EXPECTED = (b":W&B", 0xBEE1, 0)
_PART = struct.Struct("<IHB")  # before each part of a record: checksum, number of bytes, kind
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def read_wandb_records(file: Path) -> Iterator[Any]:
    """Yield the complete protobuf records of a run, which may still be going on or may have been killed.

    Raises:
        UnreadableFileError: the file is damaged, or in another format.
        ImportError: wandb is missing.
    """
    try:
        from google.protobuf.message import DecodeError
        from wandb.proto import wandb_internal_pb2 as protobuf
    except ImportError as error:
        raise ImportError("reading a W&B run needs wandb: pip install wandb", name=error.name) from error
    with open(file, "rb") as stream:
        for number, content in enumerate(_contents(stream), start=1):
            record: Any = protobuf.Record()  # type: ignore[attr-defined]
            try:
                record.ParseFromString(content)
            except DecodeError as error:
                raise UnreadableFileError(f"is damaged in record {number} ({error})") from error
            yield record


def _contents(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the bytes of each complete record, which may span several blocks."""
    begin = stream.read(_BEGIN.size)
    if len(begin) < _BEGIN.size or _BEGIN.unpack(begin) != _BEGIN_EXPECTED:
        raise UnreadableFileError("does not begin like a W&B file: it is empty, damaged, or from another version")
    parts: list[bytes] = []
    while (part := _next_part(stream)) is not None:
        kind, content = part
        if (kind in (_WHOLE, _FIRST)) is bool(parts):
            raise UnreadableFileError(f"is damaged before byte {stream.tell():,}: parts of a record are missing")
        parts.append(content)
        if kind in (_WHOLE, _LAST):
            yield b"".join(parts)
            parts = []


def _next_part(stream: BinaryIO) -> tuple[int, bytes] | None:
    """Return the kind and the bytes of the next part of a record; None at the end of what was written."""
    left = _BLOCK_BYTES - stream.tell() % _BLOCK_BYTES
    if left < _PART.size:
        stream.read(left)
    place = stream.tell()
    header = stream.read(_PART.size)
    if len(header) < _PART.size:
        return None
    checksum, length, kind = _PART.unpack(header)
    content = stream.read(length)
    if len(content) < length:
        return None
    if kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST) or zlib.crc32(content, zlib.crc32(bytes([kind]))) != checksum:
        raise UnreadableFileError(f"is damaged at byte {place:,}: a checksum is wrong; use an intact copy of the run")
    return kind, content
