"""Tables about models, from the stored result of `python -m benchmarks.coverage`, and about what processes send."""

from results import machine, newest

from attnwatch.recorder.options import RecordingOptions
from attnwatch.recorder.processes import COLLECTIVES_PER_FLUSH, flush_bytes

_MODELS = {"12 layers × 12 heads": (12, 12), "32 layers × 32 heads": (32, 32), "96 layers × 128 heads": (96, 128)}
_RANKS = 10_000


def coverage_totals() -> str:
    result = newest("coverage")
    totals = result["totals"]
    return (
        f"Of {totals['architectures']} architectures of transformers {result['transformers']}, each built tiny from "
        f"its configuration, {totals['observed fully and right']} are observed in all of their attention layers, with "
        "the numbers of their own eager attention weights; heads can be removed in "
        f"{totals['heads prunable']} and tokens dropped in {totals['tokens droppable']}, each checked against masking. "
        f"{totals['without attention']} have no attention. All others are refused, layer by layer, with the reason. "
        "`python -m benchmarks.coverage` prints this."
    )


def coverage() -> str:
    result = newest("coverage")
    rows = ["| model | its attention | observed | largest deviation | heads prunable | tokens droppable |"]
    rows.append("|---|---|---|---|---|---|")
    rows += [
        f"| {row['name']} | {row['features']} | {row['observed']} | {row['right']} | {row['heads']} | {row['tokens']} |"
        for row in result["table"]
    ]
    return "\n".join([*rows, "", f"transformers {result['transformers']}, on {machine(result)}."])


def flush_cost() -> str:
    options = RecordingOptions(10, 32, None, None, 512, 0)
    steps = options.observations_per_flush
    rows = [
        "| model | a process gives, a flush | a step, on average | a process sends and receives in a ring of "
        f"{_RANKS:,}, a flush |",
        "|---|---|---|---|",
    ]
    for words, (layers, heads) in _MODELS.items():
        sent = flush_bytes(num_steps=steps, num_sites=layers, num_heads=heads)
        ring = 2 * (_RANKS - 1) / _RANKS * sent
        every = sent / (steps * options.every_n_steps)
        rows.append(f"| {words} | {_size(sent)} | {_size(every)} | {_size(ring)} |")
    return "\n".join(
        [
            *rows,
            "",
            f"{COLLECTIVES_PER_FLUSH} collectives a flush, of {steps} observed steps ({options.every_n_steps} apart).",
        ]
    )


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.2f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"
