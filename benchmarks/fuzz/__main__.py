"""Drawn attention calls, compared with a plain float64 computation.

    python -m benchmarks.fuzz [--cases N] [--seed S] [--quick] [--out PATH]
    python -m benchmarks.fuzz --seed S --case INDEX

Shapes, strides (transposed, sliced with steps, expanded, overlapping, conjugated), dtypes, masks (bool, float, finite
biases, broadcast), causality, grouped heads, scales (negative, 0, up to 1e36), values that are not finite, sizes of
zero, and what models add (soft caps, biases, learned sinks, windows, padding) are drawn for `attention_entropy`,
`attention_statistics` and the calls that a recorder makes. Every value is compared with NumPy in float64
(`benchmarks/fuzz/oracle.py`), within tolerances that follow from float arithmetic (`judging.py`). A call that raises,
changes its arguments or gives another answer the second time is counted too. Each CPU core has a process of its own.
The exit code is 1 where anything is found; a case is drawn again by its seed and index.
"""

import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.common import Benchmark, progress, show
from benchmarks.fuzz.cases import draw_case
from benchmarks.fuzz.judging import judge_drawn

FULL, QUICK = 15_000, 500
BENCHMARK = Benchmark("fuzz", __doc__, duration="about 7 minutes on 2 CPU cores", quick=f"{QUICK} cases")
_MAX_SHOWN = 20


def main() -> None:
    parser = BENCHMARK.parser()
    parser.add_argument("--cases", type=int, help=f"how many ({FULL}; {QUICK} with --quick)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, metavar="INDEX", help="only this one, described in full")
    options = BENCHMARK.start(parser)
    if options.case is not None:
        print(f"Case {options.case}: {draw_case(options.seed, options.case)}")
        indices: Sequence[int] = [options.case]
    else:
        indices = range(options.cases or (QUICK if options.quick else FULL))
    found = _run(indices, options.seed)
    measured = {"quick": options.quick, "seed": options.seed, **found}
    BENCHMARK.publish(measured, options, is_full=len(indices) >= FULL)
    sys.exit(1 if found["wrong"] or found["crashes"] else 0)


def _run(indices: Sequence[int], seed: int) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    failures: list[str] = []
    begin = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), torch.set_num_threads, (1,)) as pool:
        judged = progress(pool.imap(partial(judge_drawn, seed), indices, chunksize=20), "cases", total=len(indices))
        for index, (is_empty, verdicts) in zip(indices, judged, strict=True):
            counts["empty"] += is_empty
            for verdict in verdicts:
                calls[verdict.function] += 1
                counts["values"] += verdict.num_judged
                counts["wrong"] += bool(verdict.wrong)
                counts["crashes"] += bool(verdict.crash)
                if verdict.wrong or verdict.crash:
                    failures.append(f"case {index}, {verdict.function}: {verdict.wrong or verdict.crash}")
                    if len(failures) <= _MAX_SHOWN:
                        again = f"python -m benchmarks.fuzz --seed {seed} --case {index}"
                        show(f"{failures[-1]}\n  {draw_case(seed, index)}\n  again: {again}")
    print(f"{len(indices)} cases: {counts['wrong']} wrong, {counts['crashes']} crashes")
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
