"""Correctness and cost of explanations.

    python -m benchmarks.explain --data DIRECTORY [--quick] [--out PATH]

DIRECTORY has models/stories15M, text/sst2_train.tsv, text/sst2_dev.tsv, lm/wikitext2_valid.txt and
lm/tinyshakespeare.txt. Hiding inputs: the same importance as one forward for each hidden token, how many times as fast,
and which score finds the tokens whose removal hurts. Probes: what they cost in forwards, what they find. Confidence: of
a model in a text like those that it was trained on, and in another one.
"""

from pathlib import Path

from benchmarks.common import Benchmark, quiet_libraries
from benchmarks.explain import confidence, occlusion, probes

BENCHMARK = Benchmark("explain", __doc__, duration="about 8 minutes on 2 CPU cores", quick="little of everything")
PARTS = {"occlusion": occlusion.measure, "probes": probes.measure, "confidence": confidence.measure}
LEAST_SPEED_UP, MOST_FORWARDS = 3.0, 5.0


def main() -> None:
    parser = BENCHMARK.parser()
    parser.add_argument("--data", type=Path, required=True, help="folder with models and texts, see above")
    options = BENCHMARK.start(parser)
    quiet_libraries()
    measured = {}
    for name, measure in PARTS.items():
        print(f"\n== {name}")
        measured[name] = measure(options.data, options.quick)
    print()
    for model, found in measured["occlusion"].items():
        speed_up = found["speed_up"]["median"]
        verdict = _verdict(speed_up >= LEAST_SPEED_UP)
        print(f"hiding, {model}: {speed_up:.2f} times as fast (>= {LEAST_SPEED_UP:g}: {verdict})")
    for model, found in measured["probes"].items():
        forwards = found["probing_in_forwards"]["median"]
        print(f"probes, {model}: {forwards:.2f} forwards (< {MOST_FORWARDS:g}: {_verdict(forwards < MOST_FORWARDS)})")
    BENCHMARK.publish(measured, options)


def _verdict(reached: bool) -> str:
    return "reached" if reached else "missed"


if __name__ == "__main__":
    main()
