"""Causes that findings name, compared with the faults that were made, on runs that nothing was tuned on.

    python -m benchmarks.causes [--quick] [--runs DIRECTORY] [--out PATH]

Each script trains a tiny model for 160 steps, of which every second is observed; `diagnose` is given the history and
nothing else. A fault is named if its cause is the first (top 1) or among the first three (top 3) of the first finding.
Two sets of faults are held out: every sixth script of the blind sets of `benchmarks.checkup`; and others on tasks and
architectures of their own. The weights of the causes were tuned on the stored runs of `benchmarks.verdicts` and on the
other faults of `benchmarks.checkup`.
"""

import re
import warnings
from pathlib import Path

import torch

from attnwatch import AttentionHistory, diagnose
from benchmarks.causes.held_out import blind_cases, other_cases
from benchmarks.causes.observe import STEPS, observed
from benchmarks.causes.scores import Ranked, reliability, summary
from benchmarks.checkup.scripts import Case
from benchmarks.common import Benchmark, progress, quiet_libraries, show

BENCHMARK = Benchmark("causes", __doc__, duration="about 5 minutes on 2 CPU cores", quick="every twelfth script")
_QUICK_STRIDE = 12
_SEED = 7


def main() -> None:
    parser = BENCHMARK.parser()
    parser.add_argument("--runs", type=Path, help="folder where histories are kept, and not recorded again")
    options = BENCHMARK.start(parser)
    torch.set_num_threads(1)  # the models are too small for more
    warnings.simplefilter("ignore")
    quiet_libraries()
    sets = {"faults held out": blind_cases(), "others": other_cases()}
    if options.quick:
        sets = {name: cases[::_QUICK_STRIDE] for name, cases in sets.items()}
    ranked = {name: _ranked(cases, options.runs, name) for name, cases in sets.items()}
    everything = [each for those in ranked.values() for each in those]
    measured = {name: summary(those) for name, those in [*ranked.items(), ("all", everything)]}
    _print(ranked, measured)
    scripts = [_storable(each) for each in everything]
    BENCHMARK.publish(
        {"steps": STEPS, "sets": measured, "reliability": reliability(everything), "scripts": scripts}, options
    )


def _ranked(cases: list[Case], folder: Path | None, name: str) -> list[Ranked]:
    ranked = []
    for case in progress(cases, name):
        history = _history(case, folder)
        if history is not None and len(history):
            ranked.append(Ranked(case, diagnose(history, total_steps=STEPS)))
    return ranked


def _history(case: Case, folder: Path | None) -> AttentionHistory | None:
    """Train, or read what was kept."""
    if folder is None:
        return observed(case.script, _SEED)
    path = folder / (re.sub(r"[^a-z0-9]+", "-", f"{case.name} {case.architecture}".lower()) + ".npz")
    if not path.exists():
        history = observed(case.script, _SEED)
        if history is None:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        history.save(path)
    return AttentionHistory.load(path)


def _print(ranked: dict[str, list[Ranked]], measured: dict[str, dict[str, float]]) -> None:
    for name, those in ranked.items():
        show(f"\n{name}: fault, architecture: causes (share of the evidence); * names the fault")
        for each in those:
            if each.is_found:
                causes = ", ".join(f"{'*' * (cause in each.truth)}{cause} {score:.2f}" for cause, score in each.causes)
                show(f"  {each.case.name}, {each.case.architecture}: {causes}")
    show(f"\n{'':<18}{'runs':>6}{'found':>7}{'top 1':>7}{'top 3':>7}   by fault   same traces as one")
    for name, each in measured.items():
        show(
            f"{name:<18}{each['runs']:>6}{each['with_finding']:>7}{each['top1']:>7.2f}{each['top3']:>7.2f}   "
            f"{each['top1_by_fault']:.2f} {each['top3_by_fault']:.2f}  {each['top1_same_traces_as_one']:.2f} "
            f"{each['top3_same_traces_as_one']:.2f}"
        )


def _storable(ranked: Ranked) -> dict[str, object]:
    return {
        "fault": ranked.case.name,
        "architecture": ranked.case.architecture,
        "named_by": sorted(ranked.truth),
        "status": ranked.diagnosis.status.value,
        "causes": [{"name": name, "score": round(score, 3)} for name, score in ranked.causes],
    }


if __name__ == "__main__":
    main()
