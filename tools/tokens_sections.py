"""Table about dropped tokens, from the results of the benchmarks `tokens_speed` and `tokens_quality`."""

from statistics import fmean

from tools.markdown import table
from tools.results import machine, newest


def tokens() -> str:
    speed, quality = newest("tokens_speed"), newest("tokens_quality")
    sizes, whole = speed["sizes"], quality["ways"]["all tokens"]
    rows = []
    for name, way in quality["ways"].items():
        speeds = {}
        for at in speed["measured"]:
            found = [row for row in at["rows"] if f"{row['criterion']} {row['keep_ratio']:.0%}" == name]
            speeds[f"a step at {at['num_tokens']:,} tokens, times as fast (its ceiling)"] = (
                f"{found[0]['speedup']['median']:.2f} ({found[0]['ceiling']:.2f})" if found else "–"
            )
        gains, is_whole = way["less_than_all_tokens"], way is whole
        gained = f"{fmean(gains):+.3f} ({min(gains):+.3f} to {max(gains):+.3f})"
        reached = ", ".join("never" if share is None else f"{share:.2f}" for share in way["time_to_their_loss"])
        rows.append(
            {
                "kept, by": name,
                **speeds,
                "steps in the same time": f"{sum(way['steps']) / sum(whole['steps']):.2f}×",
                "loss at the end, mean (each)": f"{fmean(way['loss']):.3f} "
                f"({', '.join(f'{loss:.3f}' for loss in way['loss'])})",
                "less than with all tokens": "–" if is_whole else gained,
                "share of the time to reach their loss": "–" if is_whole else reached,
            }
        )
    return table(
        rows,
        f"Speed: a transformers Llama of {sizes['num_layers']} layers (hidden size {sizes['hidden_size']}), "
        f"batches of {sizes['tokens_per_batch']:,} tokens, AdamW, tokens dropped in all layers but the first and "
        f"the last; the ceiling is for a cost that is linear in the tokens. On {machine(speed)}: "
        "`python -m benchmarks.tokens_speed`. Loss: a Llama of 8 layers on the bytes of Python's standard library, "
        f"nats per byte of held-out files, each way {quality['seconds']:.0f} s of CPU time on one thread, "
        f"{len(whole['loss'])} seeds. {machine(quality)}: `python -m benchmarks.tokens_quality`.",
    )
