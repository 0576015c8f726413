"""Faults named and sound scripts left alone by the checkup of the first steps.

    python -m benchmarks.checkup [--quick] [--only WORD …] [--part PART] [--workers N] [--out PATH]

Each script trains a tiny model for a dozen steps with a `TrainingCheckup`. A fault is named if an alarm has a kind that
says its cause, and noticed if there is any alarm; notes are counted apart. An alarm is a finding that is no note. Sound
scripts look odd and train all the same. Three quarters of the faults and of the sound scripts were written blind, in
five sets, by authors who had not read the checks. Each fault on one architecture, and some sound scripts, are also
trained by Lightning and by the transformers Trainer with `AttentionMonitor()`. Beside the checkup stand `diagnose`
alone and a rule for the loss.
"""

import argparse
import time
from collections.abc import Sequence

import torch
import transformers as hf

from benchmarks.checkup import report
from benchmarks.checkup.architectures import ARCHITECTURES
from benchmarks.checkup.beside import Beside, compared
from benchmarks.checkup.scores import PARTS, Judged, totals
from benchmarks.checkup.scripts import STEPS, Outcome, run, train
from benchmarks.checkup.trainers import TRAINERS
from benchmarks.checkup.work import DIAGNOSED, Task, all_cases, done
from benchmarks.common import Benchmark, progress, quiet_libraries

BENCHMARK = Benchmark("checkup", __doc__, duration="about 15 minutes on 2 CPU cores", quick="every tenth script")
_QUICK_STRIDE = 10
_DIAGNOSED_STRIDE, _LONG_STRIDE, _LONG = 4, 32, 160
_SOUND_IN_TRAINERS = 40


def main() -> None:
    parser = BENCHMARK.parser()
    parser.add_argument("--only", nargs="+", metavar="WORD", help="scripts with one of these in the name; not stored")
    parser.add_argument("--part", choices=PARTS, help="scripts of this part only; not stored")
    parser.add_argument("--workers", type=int, default=2, help="processes that train")
    options = BENCHMARK.start(parser)
    torch.set_num_threads(1)  # the models are too small for more
    quiet_libraries()
    begin, chosen = time.perf_counter(), _chosen(options)
    tasks = _tasks(chosen)
    ended = dict(progress(done(tasks, options.workers), "trainings", total=len(tasks)))
    judged = [
        Judged(all_cases()[task.case], outcome, task.way)
        for task in tasks
        if task.way != DIAGNOSED and isinstance(outcome := ended[task], Outcome)
    ]
    scores = totals(judged) | {"beside": {str(steps): compared(_beside(ended, steps)) for steps in (STEPS, _LONG)}}
    report.print_all(judged, scores)
    cost = {name: cost_of(name) for name in progress(ARCHITECTURES, "cost")}
    report.print_cost(cost)
    about = {"quick": options.quick, "transformers": hf.__version__, "totals": scores, "cost": cost}
    about |= {"seconds": time.perf_counter() - begin, "workers": options.workers}
    about |= {"not_expressible": report.left_out(ended), "messages": report.messages(judged)}
    scripts = [report.storable(each) for each in judged]
    BENCHMARK.publish(about | {"scripts": scripts}, options, is_full=not (options.only or options.part))


def _chosen(options: argparse.Namespace) -> list[int]:
    """Return the numbers of the scripts that the command line asks for."""
    numbers = range(len(all_cases()))
    if options.part:
        numbers = [number for number in numbers if all_cases()[number].part == options.part]
    if options.only:
        names = [f"{case.name}, {case.architecture}" for case in all_cases()]
        return [number for number in numbers if any(word in names[number] for word in options.only)]
    return list(numbers[:: _QUICK_STRIDE if options.quick else 1])


def _tasks(chosen: Sequence[int]) -> list[Task]:
    plain = [Task(number) for number in chosen]
    trained = [Task(number, way) for number in _for_trainers(chosen) for way in TRAINERS]
    usual = [number for number in chosen if not all_cases()[number].is_deliberate]
    short = [Task(number, DIAGNOSED, STEPS) for number in usual[::_DIAGNOSED_STRIDE]]
    long = [Task(number, DIAGNOSED, _LONG) for number in usual[::_LONG_STRIDE]]
    return [*long, *trained, *plain, *short]


def _for_trainers(chosen: Sequence[int]) -> list[int]:
    """Return each fault on one architecture, another one from fault to fault, and sound scripts of all kinds."""
    of_fault: dict[str, list[int]] = {}
    sound = []
    for number in chosen:
        case = all_cases()[number]
        if case.kinds:
            of_fault.setdefault(case.name, []).append(number)
        elif not case.is_deliberate:
            sound.append(number)
    faults = [numbers[index % len(numbers)] for index, numbers in enumerate(of_fault.values())]
    return [*faults, *sound[:: max(1, len(sound) // _SOUND_IN_TRAINERS)]]


def _beside(ended: dict[Task, Outcome | str], steps: int) -> list[Beside]:
    seen = []
    for task, outcome in ended.items():
        plain = ended.get(Task(task.case))
        if (
            task.way == DIAGNOSED
            and task.steps == steps
            and isinstance(plain, Outcome)
            and isinstance(outcome, Outcome)
        ):
            case = all_cases()[task.case]
            seen.append(Beside(Judged(case, plain), Judged(case, outcome)))
    return seen


def cost_of(architecture: str) -> dict[str, float]:
    """Return the seconds of all steps of a plain script with and without a checkup, the faster of two runs each."""
    script = ARCHITECTURES[architecture]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for with_checkup in (False, True, True, False):
        trained = run(script).trained if with_checkup else train(script)
        seconds[with_checkup].append(sum(trained.step_seconds))
    with_s, without_s = min(seconds[True]), min(seconds[False])
    return {"steps": STEPS, "with_s": with_s, "without_s": without_s, "ratio": with_s / without_s}


if __name__ == "__main__":
    main()
