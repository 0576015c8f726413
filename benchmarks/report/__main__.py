"""Measurements of what people see of a run: the page about it, and how far curves move although attention does not.

    python -m benchmarks.report [--quick] [--out PATH]

Pages of random histories are written, and opened in Chromium if it is installed. A small Llama is frozen, new and after
a training on source code, and observed on new batches and on one batch; the table has the standard deviation from step
to step of its curves, for several ways to choose query rows.
"""

from benchmarks.common import Benchmark, quiet_libraries
from benchmarks.report import noise, page

BENCHMARK = Benchmark("report", __doc__, duration="about 10 minutes on 2 CPU cores", quick="few observations")
PARTS = {"page": page.measure, "noise": noise.measure}


def main() -> None:
    options = BENCHMARK.start()
    quiet_libraries()
    BENCHMARK.publish({name: measure(options.quick) for name, measure in PARTS.items()}, options)


if __name__ == "__main__":
    main()
