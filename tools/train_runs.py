"""Train the runs of `benchmarks.verdicts` that are not stored; all of them take an hour on 2 CPU cores.

    python -m tools.train_runs [--data DIRECTORY] [--runs DIRECTORY] [--workers N]

With --data, digits and sentences are real: image/mnist.npz, text/sst2_train.tsv, text/sst2_dev.tsv.
"""

import argparse
from pathlib import Path

from benchmarks.verdicts.recipes import recipes
from benchmarks.verdicts.retrain import retrain
from benchmarks.verdicts.runs import STORED, RunStore
from benchmarks.verdicts.tasks import tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with real digits and sentences")
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: the stored ones)")
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
    options = parser.parse_args()
    every = [recipe for task in tasks(options.data).values() for recipe in recipes(task)]
    retrain(every, RunStore(options.runs) if options.runs else STORED, data=options.data, workers=options.workers)


if __name__ == "__main__":
    main()
