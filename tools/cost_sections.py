"""Tables about the cost of watching, from the results of the benchmarks `overhead`, `billion` and `exactness`."""

from tools.markdown import interval, plain_table
from tools.results import machine, newest

_DEFAULT, _EVERY_STEP = "`AttentionMonitor()`", "`AttentionMonitor(every_n_steps=1)`"
_EAGER = "`output_attentions=True` on eager attention"


def overhead() -> str:
    result = newest("overhead")
    sizes, narrow, ratios = result["sizes"], result["narrow_sizes"], result["ratio"]
    watched, materialised = (_mib(result["extra_peak_mib"][way]) for way in ("watched", "materialised"))
    narrow_model = f"{narrow['num_heads']} heads of {narrow['hidden_size'] // narrow['num_heads']}"
    return plain_table(
        ["", "step time, with / without (95% interval)", "extra peak memory"],
        [
            [_DEFAULT, interval(ratios["monitor_default"]), watched],
            [_EVERY_STEP, interval(ratios["monitor_every_step"]), watched],
            [f"the same on a narrower model ({narrow_model})", interval(ratios["monitor_every_step_narrow"]), "–"],
            [f"{_EAGER}, every step (what people do today)", interval(ratios["materialised_every_step"]), materialised],
        ],
        f"A transformers Llama of {sizes['num_layers']} layers and {sizes['num_heads']} heads (hidden size "
        f"{sizes['hidden_size']}, as SmolLM-135M's) on {sizes['batch_size']} × {sizes['num_tokens']} tokens, "
        f"trained by Lightning with TensorBoard logging, on {machine(result)}. Steps with and without take turns "
        "in one training: `python -m benchmarks.overhead`.",
    )


def billion() -> str:
    result = newest("billion")
    sizes, ratios, peaks, speed = result["sizes"], result["watching"]["ratio"], result["peak_gib"], result["speed"]
    most = "out of memory" if peaks["materialised"] is None else f"{peaks['materialised']:.1f} GiB"
    memory = f"{peaks['watched']:.1f} GiB (without: {peaks['unwatched']:.1f})"
    model = f"on a GPU, {result['parameters'] / 1e9:.1f} billion parameters, {sizes['num_tokens']:,} tokens"
    gains = [
        [words, f"{interval(speed[name]['speedup'])} times as fast, ceiling {speed[name]['ceiling']:.2f}", "–"]
        for name, words in (("heads", "half of the heads removed"), ("tokens", "half of the tokens dropped"))
    ]
    return plain_table(
        [model, "a step (95% interval)", "peak memory"],
        [
            [_DEFAULT, f"{interval(ratios['monitor_default'])} times as long", memory],
            [_EVERY_STEP, f"{interval(ratios['monitor_every_step'])} times as long", "the same"],
            [_EAGER, "–", most],
            *gains,
        ],
        f"A transformers Llama with TinyLlama's sizes in bfloat16, one sequence a step, on {machine(result)}, "
        f"PyTorch {result['hardware']['torch'].partition('+')[0]}: `python -m benchmarks.billion`.",
    )


def exactness() -> str:
    result = newest("exactness")
    rows = []
    for at in result["measured"]:
        forwards = {way: f"{ratio['median']:.2f}×" for way, ratio in at["sdpa_forwards"].items()}
        mib = {way: f"{num_bytes / 2**20:.0f} MiB" for way, num_bytes in at["peak_extra_bytes"].items()}
        error = max(errors["exact"] for errors in at["errors_nats"].values())
        exact = [f"{at['tokens']:,}", forwards["exact"], f"{error:.0e}", mib["exact"]]
        rows.append([*exact, forwards["sampled"], forwards["materialised"], mib["materialised"]])
    exact = ["keys", "`attention_entropy` (exact): time in SDPA forwards", "error, nats", "extra memory"]
    return plain_table(
        [*exact, "`num_query_rows=32`: time", "softmax of the matrix: time", "extra memory"],
        rows,
        f"Causal, 8 heads of 64, float32, errors against float64, on {machine(result)}: "
        "`python -m benchmarks.exactness`.",
    )


def _mib(mib: float) -> str:
    return f"{mib:.0f} MiB" if mib >= 0.5 else "none that shows"
