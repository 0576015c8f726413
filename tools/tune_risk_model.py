"""Write the risk model of the package, tuned on the stored runs of `benchmarks.verdicts`.

python -m tools.tune_risk_model [--runs DIRECTORY]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import attnwatch.diagnosis
from benchmarks.common import write_json
from benchmarks.verdicts.attention import Signals
from benchmarks.verdicts.outcomes import failed
from benchmarks.verdicts.runs import STORED, Run, RunStore
from benchmarks.verdicts.tune import SHARES

_MODEL = Path(attnwatch.diagnosis.__file__).with_name("risk_model.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: the stored ones)")
    options = parser.parse_args()
    write_model(list((RunStore(options.runs) if options.runs else STORED).values()), _MODEL)


def write_model(runs: Sequence[Run], path: Path) -> None:
    """Tune a risk model on all runs, at all shares of their budgets."""
    outcomes = failed(runs)
    parts = {run.name: [run.until(share) for share in SHARES] for run in runs}
    model = Signals(parts, SHARES).tune(list(parts), outcomes)
    about = {"tuned_on": f"{len(runs)} runs of {len({run.recipe.task for run in runs})} tasks", **model.to_json()}
    write_json(path, about, indent=1)
    print(f"Wrote {path.name}: {about['tuned_on']}, {sum(outcomes.values())} of them failed.")


if __name__ == "__main__":
    main()
