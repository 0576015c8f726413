"""Faults of one edit each in complete training programs, named by the checkup.

    python -m benchmarks.programs [--quick] [--only WORD …] [--workers N] [--ran] [--out PATH]

Each program in `scripts` is written as its author would write it for real data, with small data of its own, and trains
in a plain loop, in Lightning or in the transformers Trainer. Beside it, a TOML file lists edits of its source: faults
with the kinds of findings that name them, and changes that look odd and are sound. Their authors had not read the
checks.
"""

import argparse

from benchmarks.common import Benchmark, progress, show
from benchmarks.programs.edits import Edit, all_edits
from benchmarks.programs.work import Outcome, done

BENCHMARK = Benchmark("programs", __doc__, duration="about 12 minutes on 2 CPU cores", quick="every tenth edit")


def main() -> None:
    parser = BENCHMARK.parser()
    parser.add_argument("--only", nargs="+", metavar="WORD", help="edits with one of these in the name; not stored")
    parser.add_argument("--workers", type=int, default=2, help="processes that train")
    parser.add_argument("--ran", action="store_true", help="tell only which programs ran; not stored")
    options = BENCHMARK.start(parser)
    edits = _chosen(options)
    outcomes = dict(progress(done(edits, options.workers), "programs", total=len(edits)))
    outcomes = {edit: outcomes[edit] for edit in edits}
    if options.ran:
        for edit, outcome in outcomes.items():
            show(f"{outcome.seconds:5.1f} s  {edit.program}: {edit.name}  {outcome.error or 'ran'}")
        return
    for edit, outcome in outcomes.items():
        show(_line(edit, outcome))
    BENCHMARK.publish(_totals(outcomes), options, is_full=not options.only)


def _chosen(options: argparse.Namespace) -> list[Edit]:
    edits = all_edits()
    if options.only:
        edits = [each for each in edits if any(word in f"{each.program}: {each.name}" for word in options.only)]
    return edits[:: 10 if options.quick else 1]


def _line(edit: Edit, outcome: Outcome) -> str:
    said = [f"{each.kind.value}{' (note)' if each.is_note else ''}" for each in outcome.findings]
    if outcome.error:
        result = "ERROR"
    elif edit.kinds:
        result = "named" if outcome.names(edit) else "noted" if outcome.notes(edit) else "missed"
    else:
        result = "ALARM" if outcome.alarms else "ok"
    told = outcome.error or ", ".join(said) or "–"
    return f"{result:7} {edit.program}: {edit.name} [{', '.join(edit.kinds)}]: {told}"


def _totals(outcomes: dict[Edit, Outcome]) -> dict[str, object]:
    faults = {edit: each for edit, each in outcomes.items() if edit.kinds}
    sound = {edit: each for edit, each in outcomes.items() if not edit.kinds}
    return {
        "programs": len({edit.program for edit in outcomes}),
        "faults": len(faults),
        "named": sum(each.names(edit) for edit, each in faults.items()),
        "named_or_noted": sum(each.notes(edit) for edit, each in faults.items()),
        "noticed": sum(bool(each.alarms) for each in faults.values()),
        "sound": len(sound),
        "alarms": sum(bool(each.alarms) for each in sound.values()),
        "errors": sum(bool(each.error) for each in outcomes.values()),
        "scripts": [
            {
                "program": edit.program,
                "edit": edit.name,
                "kinds": edit.kinds,
                "findings": [[each.kind.value, each.is_note] for each in outcome.findings],
                "error": outcome.error,
            }
            for edit, outcome in outcomes.items()
        ],
    }


if __name__ == "__main__":
    main()
