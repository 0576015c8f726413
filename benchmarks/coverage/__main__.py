"""Support of architectures of transformers: observation, correctness, removal of heads, dropping of tokens.

    python -m benchmarks.coverage [--quick] [--only MODEL …] [--out PATH]

Each architecture is built tiny from its configuration, without dropout, and four things are measured of it:

- observed: which of its attention modules an `AttentionRecorder` observes in one training step, and why not the others;
- right: the recorded statistics against those computed in float64 from the attention weights that the same model
  returns with eager attention, for texts of different lengths (padded on either side), of equal lengths, and packed;
- heads prunable: one head of each module is removed (of grouped queries, a group), and the outputs are compared with
  those of the model with these heads masked;
- tokens droppable: one training step computes half of the tokens in all layers, with finite gradients, and the states
  of the kept tokens are compared with those of the model with the others masked (where a mask can say that).
"""

import time
import warnings

import torch
import transformers as hf

from benchmarks.common import Benchmark, progress
from benchmarks.coverage import report
from benchmarks.coverage.measure import measure
from benchmarks.coverage.table import ARCHITECTURES, QUICK

BENCHMARK = Benchmark(
    "coverage", __doc__, duration="about 5 minutes on 2 CPU cores", quick="one architecture of each kind"
)


def main() -> None:
    parser = BENCHMARK.parser()
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="model classes of transformers; not stored")
    options = BENCHMARK.start(parser)
    torch.set_num_threads(1)  # the models are too small for more
    warnings.simplefilter("ignore")
    hf.logging.set_verbosity_error()
    only = options.only or (QUICK if options.quick else None)
    begin = time.perf_counter()
    chosen = [each for each in ARCHITECTURES if only is None or each.model in only]
    measured = [measure(each) for each in progress(chosen, "architectures")]
    rows = [report.row(each) for each in measured]
    report.print_table(rows)
    totals = report.totals(measured)
    print(f"\nIn {time.perf_counter() - begin:.0f} s:", ", ".join(f"{name} {count}" for name, count in totals.items()))
    for each in measured:
        for crash in each["crashes"]:
            print(f"{each['name']} {crash}")
    goals = report.goals(totals) if only is None else []
    for goal in goals:
        verdict = "holds" if goal["holds"] else "DOES NOT HOLD"
        print(f"{goal['goal']}: {verdict} ({goal['measured']}, at least {goal['at_least']})")
    about = {"quick": options.quick, "transformers": hf.__version__, "totals": totals, "goals": goals}
    result = report.storable({**about, "table": rows, "measured": measured})
    BENCHMARK.publish(result, options, is_full=only is None)


if __name__ == "__main__":
    main()
