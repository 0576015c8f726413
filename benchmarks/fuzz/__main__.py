"""Drawn attention calls against a plain float64 computation: how many are wrong, how many crash.

    python -m benchmarks.fuzz [--cases N] [--seed S] [--quick] [--out PATH]
    python -m benchmarks.fuzz --seed S --case INDEX

Shapes, strides (transposed, sliced with steps, expanded, overlapping, conjugated), dtypes, masks (bool, float, finite
biases, broadcast), causality, grouped heads, scales (negative, 0, up to 1e36), values that are not finite, sizes of
zero, and what models add (soft caps, biases, learned sinks, windows, padding) are drawn for `attention_entropy`,
`attention_statistics` and the calls that a recorder makes. Every value is compared with NumPy in float64
(`benchmarks/fuzz/oracle.py`), within tolerances that follow from float arithmetic (`judging.py`). A call that raises,
changes its arguments or gives another answer the second time is counted too. The exit code is 1 where anything is
found; a case is drawn again by its seed and index.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import publish, results_path
from benchmarks.fuzz.cases import draw_case
from benchmarks.fuzz.judging import judge

FULL, QUICK = 20_000, 500
_MAX_SHOWN = 20


def main() -> None:
    arguments = _parse_arguments()
    torch.set_num_threads(1)
    if arguments.case is not None:
        found = _run([arguments.case], arguments.seed)
    else:
        found = _run(range(arguments.cases or (QUICK if arguments.quick else FULL)), arguments.seed)
    is_full = not arguments.quick and arguments.case is None and found["cases"] >= FULL
    path = arguments.out or (results_path("fuzz") if is_full else None)
    publish("fuzz", {"quick": arguments.quick, "seed": arguments.seed, **found}, path)
    sys.exit(1 if found["wrong"] or found["crashes"] else 0)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, help=f"how many ({FULL}; {QUICK} with --quick)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, metavar="INDEX", help="only this one, described in full")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} cases, not stored")
    parser.add_argument("--out", type=Path, help=f"store the JSON here ({FULL} cases or more: in benchmarks/results)")
    return parser.parse_args()


def _run(indices: range | list[int], seed: int) -> dict[str, Any]:
    counts, calls, failures = Counter(), Counter(), []
    begin = time.perf_counter()
    for done, index in enumerate(indices, start=1):
        case = draw_case(seed, index)
        if len(indices) == 1:
            print(f"Case {index}: {case}")
        for verdict in judge(case):
            calls[verdict.function] += 1
            counts["values"] += verdict.num_judged
            counts["wrong"] += bool(verdict.wrong)
            counts["crashes"] += bool(verdict.crash)
            if verdict.wrong or verdict.crash:
                failures.append(f"case {index}, {verdict.function}: {verdict.wrong or verdict.crash}")
                if len(failures) <= _MAX_SHOWN:
                    print(f"{failures[-1]}\n  {case}\n  again: python -m benchmarks.fuzz --seed {seed} --case {index}")
        counts["empty"] += case.is_empty
        if done % max(1, len(indices) // 10) == 0:
            print(f"{done} of {len(indices)} cases: {counts['wrong']} wrong, {counts['crashes']} crashes", flush=True)
    return {
        "cases": len(indices),
        "wrong": counts["wrong"],
        "crashes": counts["crashes"],
        "calls": dict(calls),
        "values_compared": counts["values"],
        "empty_cases": counts["empty"],
        "seconds": round(time.perf_counter() - begin, 1),
        "failures": failures[:_MAX_SHOWN],
    }


if __name__ == "__main__":
    main()
