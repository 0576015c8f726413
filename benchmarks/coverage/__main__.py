"""Which models are observed, are the numbers right, can heads be removed and tokens be dropped?

    python -m benchmarks.coverage [--quick] [--only MODEL …] [--out PATH]

Each architecture is built tiny from its configuration, without dropout, and four things are measured of it:

- observed: which of its attention modules an `AttentionRecorder` observes in one training step, and why not the others;
- right: the recorded statistics against those computed in float64 from the attention weights that the same model
  returns with eager attention, for texts of different lengths (padded on either side), of equal lengths, and packed;
- heads prunable: one head of each module is removed (of grouped queries, a group), and the outputs are compared with
  those of the model with these heads masked;
- tokens droppable: one training step computes half of the tokens in all layers, with finite gradients, and the states
  of the kept tokens are compared with those of the model with the others masked (where a mask can say that).

Last line of the output: JSON.
"""

import argparse
import time
import warnings
from pathlib import Path

import torch
import transformers as hf

from benchmarks.common import publish, results_path
from benchmarks.coverage import report
from benchmarks.coverage.measure import measure
from benchmarks.coverage.table import ARCHITECTURES, QUICK


def main() -> None:
    arguments = _parse_arguments()
    torch.set_num_threads(1)  # the models are too small for more
    warnings.simplefilter("ignore")
    hf.logging.set_verbosity_error()
    only = arguments.only or (QUICK if arguments.quick else None)
    begin = time.perf_counter()
    measured = [measure(each) for each in ARCHITECTURES if only is None or each.model in only]
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
    path = arguments.out or (None if only else results_path("coverage"))
    about = {"quick": arguments.quick, "transformers": hf.__version__, "totals": totals, "goals": goals}
    publish("coverage", report.storable({**about, "table": rows, "measured": measured}), path)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one architecture of each kind, not stored")
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="model classes of transformers, not stored")
    parser.add_argument("--out", type=Path, help="store the JSON here (a full run: in benchmarks/results)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
