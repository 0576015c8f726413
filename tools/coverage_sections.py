"""Tables about models, from the stored result of `python -m benchmarks.coverage`, and about what processes send."""

from attnwatch.recorder.options import RecordingOptions
from attnwatch.recorder.processes import COLLECTIVES_PER_FLUSH, flush_bytes
from tools.markdown import table
from tools.results import machine, newest

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
    columns = {
        "model": "name",
        "its attention": "features",
        "observed": "observed",
        "largest deviation": "right",
        "heads prunable": "heads",
        "tokens droppable": "tokens",
    }
    return table(
        ({column: row[field] for column, field in columns.items()} for row in result["table"]),
        f"transformers {result['transformers']}, on {machine(result)}.",
    )


def flush_cost() -> str:
    options = RecordingOptions(10, 32, None, None, 512, 0)
    steps = options.observations_per_flush
    rows = []
    for words, (layers, heads) in _MODELS.items():
        sent = flush_bytes(num_steps=steps, num_sites=layers, num_heads=heads)
        ring = 2 * (_RANKS - 1) / _RANKS * sent
        rows.append(
            {
                "model": words,
                "a process gives, a flush": _size(sent),
                "a step, on average": _size(sent / (steps * options.every_n_steps)),
                f"a process sends and receives in a ring of {_RANKS:,}, a flush": _size(ring),
            }
        )
    return table(
        rows, f"{COLLECTIVES_PER_FLUSH} collectives a flush, of {steps} observed steps ({options.every_n_steps} apart)."
    )


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.2f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"
