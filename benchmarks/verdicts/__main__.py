"""Correctness of verdicts: stored trainings with known outcomes, judged by what others taught.

    python -m benchmarks.verdicts [--quick] [--runs DIRECTORY] [--out PATH]

The stored runs are judged anew, each by thresholds from other tasks and architectures, also with what a checkup has
found in their first steps, which `python -m tools.check_runs` trains again. --quick trains six new ones and judges them
at half of their budget instead. The runs are trained by `python -m tools.train_runs`, and `python -m
tools.tune_risk_model` writes the risk model of the package.
"""

import tempfile
import time
from pathlib import Path

from attnwatch import diagnose
from benchmarks.common import Benchmark
from benchmarks.verdicts.checked import CHECKED
from benchmarks.verdicts.report import measure
from benchmarks.verdicts.retrain import retrain
from benchmarks.verdicts.runs import STORED, Recipe, RunStore

BENCHMARK = Benchmark("verdicts", __doc__, duration="about 2 minutes on 2 CPU cores", quick="six new trainings")
_QUICK = (
    Recipe("copy", "llama", seed=1000),
    Recipe("copy", "opt", "cosine", seed=1001),
    Recipe("recall", "qwen3", seed=1002),
    Recipe("copy", "llama", fault="queries and keys left out", seed=1003),
    Recipe("copy", "opt", fault="rate far too low", seed=1004),
    Recipe("recall", "qwen3", fault="weights decayed", seed=1005),
)


def main() -> None:
    parser = BENCHMARK.parser()
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: the stored ones)")
    options = BENCHMARK.start(parser)
    BENCHMARK.publish(quick() if options.quick else full(RunStore(options.runs) if options.runs else STORED), options)


def full(store: RunStore) -> dict[str, object]:
    """Return all that is measured on the runs of a store."""
    begin = time.perf_counter()
    runs = list(store.values())
    measured = measure(runs, CHECKED)
    print(f"\n{len(runs)} runs judged in {time.perf_counter() - begin:.0f} s.")
    return measured


def quick() -> dict[str, object]:
    """Return the mean risk at half of the budget of some new sound runs, and of some with faults."""
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(Path(folder))
        retrain(_QUICK, store)
        runs = list(store.values())
    risks: dict[bool, list[float]] = {True: [], False: []}
    for run in runs:
        diagnosis = diagnose(run.until(0.5).history, total_steps=run.budget)
        risks[bool(run.recipe.fault)].append(diagnosis.risk)
        print(
            f"{run.name:<50} accuracy {run.quality:.3f}   at half of the budget: {diagnosis.status.value}, "
            f"risk {diagnosis.risk:.2f}"
        )
    sound, faulty = (sum(risks[fault]) / len(risks[fault]) for fault in (False, True))
    print("The faulty runs are told apart." if sound < faulty else "This is NOT what was measured before.")
    return {"risk_of_sound_runs": sound, "risk_of_faulty_runs": faulty}


if __name__ == "__main__":
    main()
