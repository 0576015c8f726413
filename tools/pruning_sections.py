"""Tables about removed heads, from the results of the benchmarks `pruning_quality` and `pruning_speed`."""

from statistics import fmean

from tools.markdown import interval, points, table
from tools.results import machine, newest


def pruning_quality() -> str:
    result = newest("pruning_quality")
    rows = []
    for name, way in result["ways"].items():
        each = ", ".join(f"{accuracy:.2f}" for accuracy in way["accuracy"])
        is_compared = "minus_random" in way and "random" not in name
        rows.append(
            {
                "heads gone, by": name,
                "accuracy, mean of the seeds (each)": f"{fmean(way['accuracy']):.2f} ({each})",
                "points more than dense (95% interval)": "–" if name == "dense" else points(way["minus_dense"]),
                "than at random": points(way["minus_random"]) if is_compared else "–",
                "training, CPU seconds": f"{fmean(way['cpu_seconds']):.0f}",
            }
        )
    return table(
        rows,
        f"MiniLM fine-tuned on SST-2, {result['steps']} steps of {result['batch_size']}, heads removed in four "
        f"cuts between 10 and 40% of the run, without a guard; {result['sentences']:,} held-out sentences, "
        f"intervals by a paired bootstrap over seeds and sentences. On {machine(result)}: "
        "`python -m benchmarks.pruning_quality --data DIRECTORY`.",
    )


def pruning_speed() -> str:
    result = newest("pruning_speed")
    sizes = result["sizes"]
    rows = [
        {
            "tokens": f"{at['num_tokens']:,}",
            "heads gone": f"{row['share']:.0%}",
            "speed-up of a step over dense (95% interval)": interval(row["speedup"]),
            "its ceiling": f"{row['ceiling']:.2f}",
            "step time, pruned / built small": interval(row["pruned_over_small"]),
            "a cut takes": f"{row['cut_steps']:.2f} steps",
        }
        for at in result["measured"]
        for row in at["shares"]
    ]
    shares = " and ".join(f"{at['attention_share']:.0%}" for at in result["measured"])
    return table(
        rows,
        f"A transformers Mistral of {sizes['num_layers']} layers and {sizes['num_heads']} heads (hidden size "
        f"{sizes['hidden_size']}), batches of {sizes['tokens_per_batch']:,} tokens, AdamW. Attention with its "
        f"projections takes {shares} of a dense step; that sets the ceiling. On {machine(result)}: "
        "`python -m benchmarks.pruning_speed`.",
    )
