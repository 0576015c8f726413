"""Arrays and scripts packed into a page, and unpacked by `run_page.js`."""

import base64
import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from attnwatch.utils.extras import extra_needed
from attnwatch.utils.rounding import rounded

with extra_needed("report", "the run page"):
    from bokeh.resources import Resources

# 13 bits of mantissa keep four significant digits.
_MANTISSA_BITS = 13
_LEVEL = 6


@dataclass(frozen=True)
class PackedArrays:
    """Arrays for a page.

    Attributes:
        content: base64 of the gzipped bytes of all arrays.
        places: `shape` of each array by name, and `start`, the index of its first number in the packed sequence.
        size: total number of values.
    """

    content: str
    places: dict[str, dict[str, Any]]
    size: int


def pack(arrays: Mapping[str, np.ndarray]) -> PackedArrays:
    """Pack arrays, rounded to four significant digits.

    The first bytes of all numbers come first, then all second bytes, and so on: similar bytes compress better.
    """
    places, start = {}, 0
    for name, array in arrays.items():
        places[name] = {"shape": list(array.shape), "start": start}
        start += array.size
    numbers = [rounded(array.ravel(), _MANTISSA_BITS) for array in arrays.values()]
    together = np.concatenate(numbers) if numbers else np.empty(0, dtype=np.float32)
    planes = np.ascontiguousarray(together.astype("<f4").view(np.uint8).reshape(-1, 4).T)
    return PackedArrays(_packed(planes.tobytes()), places, start)


def pack_text(text: str) -> str:
    """Return a text as gzipped base64."""
    return _packed(text.encode())


@cache
def packed_bokeh() -> str:
    """Return Bokeh's script as gzipped base64."""
    return _packed("\n".join(Resources(mode="inline", components=["bokeh"]).js_raw).encode())


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, _LEVEL, mtime=0)).decode()
