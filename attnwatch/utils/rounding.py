"""Rounding of stored arrays, so that they compress well."""

import numpy as np

_MANTISSA_BITS = 23


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """Round to this many bits of mantissa, float32.

    Values that are not finite, or would become infinite, stay unchanged.

    Example:
        >>> rounded(np.array([1.23456789, np.nan]), 8)
        array([1.234375,      nan], dtype=float32)
    """
    spare = _MANTISSA_BITS - bits
    exact = np.ascontiguousarray(values, dtype=np.float32)
    raised = exact.view(np.uint32) + np.uint32(1 << (spare - 1))
    coarse = (raised & np.uint32(0xFFFFFFFF << spare & 0xFFFFFFFF)).view(np.float32)
    return np.where(np.isfinite(exact) & np.isfinite(coarse), coarse, exact)
