"""Error against float64, cost in SDPA forwards and extra memory of the ways to look at attention entropy.

    python -m benchmarks.exactness [--quick] [--out PATH]

The ways, on causal self-attention in float32 (batch 1, 8 heads, head_dim 64):

- exact: `attention_entropy`, every row through the fused kernel;
- sampled: `attention_statistics` of 32 stratified query rows, all statistics;
- materialised: softmax of the whole matrix, then its entropy, which is what hooks usually do.

Errors are the largest over rows and heads, in nats, on two kinds of inputs: `normal` (logits of standard deviation 1,
attention nearly uniform) and `peaked` (sharp attention, and keys with a common part). Of the sampled rows two errors
are told apart: of arithmetic, against float64 means over the same rows, and of sampling, against means over all rows.

Time is the ratio to one `scaled_dot_product_attention` forward, measured in pairs. Memory is how far the resident
memory of a fresh process rises at the peak of one call.
"""

from collections.abc import Callable
from functools import partial
from itertools import chain
from math import log2
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnwatch import attention_entropy, attention_statistics
from attnwatch.attention import stratified_rows
from benchmarks.common import Benchmark, Estimate, progress, time_paired
from benchmarks.memory import peak_extra_bytes

BENCHMARK = Benchmark(
    "exactness", __doc__, duration="about 6 minutes on 2 CPU cores", quick="shorter sequences and few repetitions"
)
HEADS, HEAD_DIM, SAMPLED_ROWS, SEED = 8, 64, 32, 0
FULL = {"tokens": [512, 2048, 8192], "seconds": 20.0, "min_pairs": 15}
QUICK = {"tokens": [512, 1024, 4096], "seconds": 1.0, "min_pairs": 5}

MAX_SDPA_FORWARDS = 1.3
MAX_ERROR_NATS = 1e-4
MAX_GROWTH_EXPONENT = 1.25  # 1 is linear, 2 is quadratic


def main() -> None:
    options = BENCHMARK.start()
    settings = QUICK if options.quick else FULL
    measured = [_measure(tokens, settings) for tokens in settings["tokens"]]
    _print_table(measured)
    growth = {way: _growth_exponent(measured, way) for way in WAYS}
    print("\nMemory grows with tokens to the power of " + ", ".join(f"{growth[way]:.2f} ({way})" for way in growth))
    goals = _goals(measured, growth)
    for goal in goals:
        verdict = "holds" if goal["holds"] else "DOES NOT HOLD"
        print(f"{goal['goal']}: {verdict} ({goal['measured']:.3g}, at most {goal['at_most']:g})")
    setup = {"batch": 1, "heads": HEADS, "head_dim": HEAD_DIM, "dtype": "float32", "is_causal": True}
    results = {"quick": options.quick, "setup": {**setup, **settings}, "goals": goals, "memory_growth": growth}
    BENCHMARK.publish({**results, "measured": measured}, options)


def _normal_inputs(tokens: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(SEED)
    return torch.randn(1, HEADS, tokens, HEAD_DIM), torch.randn(1, HEADS, tokens, HEAD_DIM)


def _peaked_inputs(tokens: int) -> tuple[Tensor, Tensor]:
    query, key = _normal_inputs(tokens)
    return 4 * query, key + torch.randn(1, HEADS, 1, HEAD_DIM)


INPUTS = {"normal": _normal_inputs, "peaked": _peaked_inputs}


def _exact(query: Tensor, key: Tensor) -> Tensor:
    return attention_entropy(query, key, is_causal=True)


def _sampled(query: Tensor, key: Tensor) -> Any:
    generator = torch.Generator().manual_seed(SEED)
    return attention_statistics(query, key, is_causal=True, num_query_rows=SAMPLED_ROWS, generator=generator)


@torch.no_grad()
def _materialised(query: Tensor, key: Tensor) -> Tensor:
    hidden = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).triu(1)
    weights = (query @ key.mT * HEAD_DIM**-0.5).masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.special.entr(weights).sum(-1)


@torch.no_grad()
def _sdpa(query: Tensor, key: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, key, is_causal=True)


WAYS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "exact": _exact,
    "sampled": _sampled,
    "materialised": _materialised,
}


def _measure(tokens: int, settings: dict[str, Any]) -> dict[str, Any]:
    query, key = _normal_inputs(tokens)
    baseline = partial(_sdpa, query, key)
    limits = {"seconds": settings["seconds"], "min_pairs": settings["min_pairs"]}
    timings = {
        way: time_paired(partial(function, query, key), baseline, label=f"{tokens} tokens, {way}", **limits)
        for way, function in WAYS.items()
    }
    return {
        "tokens": tokens,
        "sdpa_ms": 1e3 * median(chain(*(timing.baseline_s for timing in timings.values()))),
        "sdpa_forwards": {
            way: {**timing.ratio.to_json(), "pairs": len(timing.baseline_s)} for way, timing in timings.items()
        },
        "errors_nats": {
            kind: _errors(*inputs(tokens)) for kind, inputs in progress(INPUTS.items(), f"{tokens} tokens, errors")
        },
        "peak_extra_bytes": {
            name: peak_extra_bytes(_prepare, name, tokens)
            for name in progress(("sdpa", *WAYS), f"{tokens} tokens, peak memory")
        },
    }


def _errors(query: Tensor, key: Tensor) -> dict[str, float]:
    reference = _float64_entropy(query, key)
    statistics = _sampled(query, key)
    rows = stratified_rows(query.shape[2], SAMPLED_ROWS, torch.Generator().manual_seed(SEED))
    same_rows = reference[0, :, rows[rows > 0]].mean(-1)  # row 0 sees one key and does not count
    all_rows = reference[0, :, 1:].mean(-1)
    return {
        "exact": _largest(_exact(query, key) - reference),
        "materialised": _largest(_materialised(query, key) - reference),
        "sampled_arithmetic": _largest(statistics.entropy - same_rows),
        "sampled_from_all_rows": _largest(statistics.entropy - all_rows),
        "mean_entropy": all_rows.mean().item(),
    }


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def _float64_entropy(query: Tensor, key: Tensor, *, block: int = 256) -> Tensor:
    """Return -Σ p log p of every causal row by its definition in float64, block by block of rows."""
    query, key = query.double(), key.double()
    entropies = []
    for begin in range(0, query.shape[2], block):
        rows = torch.arange(begin, min(begin + block, query.shape[2]))
        logits = query[:, :, rows] @ key.mT * HEAD_DIM**-0.5
        hidden = torch.arange(key.shape[2]) > rows[:, None]
        weights = logits.masked_fill(hidden, -torch.inf).softmax(-1)
        entropies.append(-torch.special.xlogy(weights, weights).sum(-1))
    return torch.cat(entropies, dim=-1)


def _prepare(name: str, tokens: int) -> Callable[[], Any]:
    """Return the call whose memory is measured; a small call before starts the threads and loads the libraries."""
    function = {"sdpa": _sdpa, **WAYS}[name]
    function(*_normal_inputs(64))
    return partial(function, *_normal_inputs(tokens))


def _growth_exponent(measured: list[dict[str, Any]], way: str) -> float:
    """Return b of memory ~ tokens^b, between the two longest sequences."""
    before, after = measured[-2:]
    ratio = after["peak_extra_bytes"][way] / max(1, before["peak_extra_bytes"][way])
    return log2(ratio) / log2(after["tokens"] / before["tokens"])


def _goals(measured: list[dict[str, Any]], growth: dict[str, float]) -> list[dict[str, Any]]:
    slowest = max(at["sdpa_forwards"]["exact"]["median"] for at in measured)
    error = max(errors["exact"] for at in measured for errors in at["errors_nats"].values())
    goals = [
        ("Exact entropy, in SDPA forwards", slowest, MAX_SDPA_FORWARDS),
        ("Exact entropy, error in nats", error, MAX_ERROR_NATS),
        ("Exact entropy, memory as a power of tokens", growth["exact"], MAX_GROWTH_EXPONENT),
    ]
    return [
        {"goal": name, "measured": value, "at_most": bound, "holds": value <= bound} for name, value, bound in goals
    ]


def _print_table(measured: list[dict[str, Any]]) -> None:
    row = "{:>6}  {:<12}  {:<22}  {:<28}  {:>12}".format
    print(row("tokens", "way", "SDPA forwards [95 %]", "error, nats (normal, peaked)", "peak extra"))
    for at in measured:
        mib = {name: f"{num_bytes / 2**20:.1f} MiB" for name, num_bytes in at["peak_extra_bytes"].items()}
        print(row(at["tokens"], "SDPA", f"1 = {at['sdpa_ms']:.2f} ms", "", mib["sdpa"]))
        for way, cost in at["sdpa_forwards"].items():
            error_name = "sampled_arithmetic" if way == "sampled" else way
            errors = ", ".join(f"{errors[error_name]:.1e}" for errors in at["errors_nats"].values())
            ratio = Estimate(cost["median"], cost["low"], cost["high"])
            print(row(at["tokens"], way, str(ratio), errors, mib[way]))
    print(f"\nMean entropy over {SAMPLED_ROWS} sampled rows, from that over all rows (largest of {HEADS} heads):")
    for at in measured:
        for kind, errors in at["errors_nats"].items():
            error, mean = errors["sampled_from_all_rows"], errors["mean_entropy"]
            print(f"  {at['tokens']} tokens, {kind}: {error:.3f} of {mean:.2f} nats")


if __name__ == "__main__":
    main()
