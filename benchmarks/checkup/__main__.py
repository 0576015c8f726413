"""Faults named and sound scripts left alone by the checkup of the first steps.

    python -m benchmarks.checkup [--quick] [--only WORD …] [--out PATH]

Each script trains a tiny model for a dozen steps with a `TrainingCheckup`. A fault is named if one of the findings has
a kind that says its cause (notes do not count), and noticed if there is any finding. An alarm is a finding that is no
note in a sound script that looks odd. A third of the faults is held out: nothing is tuned on them.
"""

import warnings

import torch
import transformers as hf

from benchmarks.checkup import report
from benchmarks.checkup.architectures import ARCHITECTURES
from benchmarks.checkup.faults import FAULTS, cases_of
from benchmarks.checkup.held_out import HELD_OUT
from benchmarks.checkup.scores import Judged, totals
from benchmarks.checkup.scripts import STEPS, run
from benchmarks.checkup.sound import SOUND
from benchmarks.common import Benchmark, progress, quiet_libraries

BENCHMARK = Benchmark("checkup", __doc__, duration="about 6 minutes on 2 CPU cores", quick="every tenth script")
_STRIDE = 10


def main() -> None:
    parser = BENCHMARK.parser()
    parser.add_argument("--only", nargs="+", metavar="WORD", help="scripts with one of these in the name; not stored")
    options = BENCHMARK.start(parser)
    torch.set_num_threads(1)  # the models are too small for more
    warnings.simplefilter("ignore")
    quiet_libraries()
    cases = [*cases_of(FAULTS), *cases_of(HELD_OUT, is_held_out=True), *SOUND]
    if options.only:
        cases = [case for case in cases if any(word in f"{case.name}, {case.architecture}" for word in options.only)]
    elif options.quick:
        cases = cases[::_STRIDE]
    judged = [Judged(case, run(case.script)) for case in progress(cases, "scripts")]
    report.print_faults(judged)
    report.print_sound(judged)
    scores = totals(judged)
    report.print_totals(scores)
    cost = {name: cost_of(name) for name in progress(ARCHITECTURES, "cost")}
    for name, each in cost.items():
        print(
            f"{name:<16} {STEPS} steps in {each['with_s']:.2f} s, "
            f"{each['without_s']:.2f} s without it ({each['ratio']:.1f})"
        )
    scripts = [report.storable(each) for each in judged]
    about = {"quick": options.quick, "transformers": hf.__version__, "totals": scores, "cost": cost}
    BENCHMARK.publish(about | {"scripts": scripts}, options, is_full=not options.only)


def cost_of(architecture: str) -> dict[str, float]:
    """Return the seconds of all steps of a plain script with and without a checkup, the faster of two runs each."""
    script = ARCHITECTURES[architecture]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for with_checkup in (False, True, True, False):
        seconds[with_checkup].append(sum(run(script, with_checkup=with_checkup).step_seconds))
    with_s, without_s = min(seconds[True]), min(seconds[False])
    return {"steps": STEPS, "with_s": with_s, "without_s": without_s, "ratio": with_s / without_s}


if __name__ == "__main__":
    main()
