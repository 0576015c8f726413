"""Peak memory of a call, the allocations inside fused kernels included."""

import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def peak_extra_bytes(prepare: Callable[..., Callable[[], Any]], *args: Any) -> int:
    """Return how far the resident memory of a fresh process rises above its state before a call, at the peak.

    Resident memory includes what a fused kernel allocates inside, which PyTorch's operators do not show. Linux only.

    Args:
        prepare: function of a module, called with `args` in the new process; returns the function to measure.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_extra_bytes_here, (prepare, args, torch.get_num_threads()))


def _peak_extra_bytes_here(prepare: Callable[..., Callable[[], Any]], args: tuple[Any, ...], num_threads: int) -> int:
    torch.set_num_threads(num_threads)
    function = prepare(*args)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = _status_bytes("VmRSS")
    function()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no line {field!r}: peak memory is measured on Linux only.")
    return 1024 * int(found[1])
