"""Writes the tables of README and docs from where their facts live, between `<!-- begin x -->` and `<!-- end x -->`.

    python docs/update_readme.py [--check]

The statistics come from their declarations, the measurements from the newest files in benchmarks/results. With
--check nothing is written, and the exit code is 1 where something is out of date.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import coverage_sections
import declaration_sections
import headline_sections
import verdict_sections
from results import ROOT, machine, newest

from attnwatch.statistics import Statistic


def statistics() -> str:
    rows = ["| statistic | what it is | for one query row | unit |", "|---|---|---|---|"]
    for name, statistic in Statistic.registry.items():
        rows.append(f"| `{name}` | {statistic.summary} | {statistic.formula} | {statistic.unit or '–'} |")
    return "\n".join(rows)


def overhead() -> str:
    result = newest("overhead")
    sizes, narrow, ratios = result["sizes"], result["narrow_sizes"], result["ratio"]
    ways = {
        "monitor_default": "`AttentionMonitor()`",
        "monitor_every_step": "`AttentionMonitor(every_n_steps=1)`",
        "monitor_every_step_narrow": "the same on a narrower model "
        f"({narrow['num_heads']} heads of {narrow['hidden_size'] // narrow['num_heads']})",
        "materialised_every_step": "`output_attentions=True` on eager attention, every step (what people do today)",
    }
    memory = {
        "monitor_default": _mib(result["extra_peak_mib"]["watched"]),
        "materialised_every_step": _mib(result["extra_peak_mib"]["materialised"]),
    }
    memory["monitor_every_step"] = memory["monitor_default"]
    memory["monitor_every_step_narrow"] = "–"
    rows = ["| | step time, with / without (95% interval) | extra peak memory |", "|---|---|---|"]
    rows += [f"| {words} | {_interval(ratios[way])} | {memory[way]} |" for way, words in ways.items()]
    return "\n".join(
        [
            *rows,
            "",
            f"A transformers Llama of {sizes['num_layers']} layers and {sizes['num_heads']} heads (hidden size "
            f"{sizes['hidden_size']}, as SmolLM-135M's) on {sizes['batch_size']} × {sizes['num_tokens']} tokens, "
            f"trained by Lightning with TensorBoard logging, on {machine(result)}. Steps with and without take turns "
            "in one training: `python -m benchmarks.overhead`.",
        ]
    )


def billion() -> str:
    result = newest("billion")
    sizes, ratios, peaks, speed = result["sizes"], result["watching"]["ratio"], result["peak_gib"], result["speed"]
    most = "out of memory" if peaks["materialised"] is None else f"{peaks['materialised']:.1f} GiB"
    rows = [
        f"| on a GPU, {result['parameters'] / 1e9:.1f} billion parameters, {sizes['num_tokens']:,} tokens "
        "| a step (95% interval) | peak memory |",
        "|---|---|---|",
        f"| `AttentionMonitor()` | {_interval(ratios['monitor_default'])} times as long | {peaks['watched']:.1f} GiB "
        f"(without: {peaks['unwatched']:.1f}) |",
        f"| `AttentionMonitor(every_n_steps=1)` | {_interval(ratios['monitor_every_step'])} times as long | the same |",
        f"| `output_attentions=True` on eager attention | – | {most} |",
    ]
    for name, words in (("heads", "half of the heads removed"), ("tokens", "half of the tokens dropped")):
        ceiling = f"ceiling {speed[name]['ceiling']:.2f}"
        rows.append(f"| {words} | {_interval(speed[name]['speedup'])} times as fast, {ceiling} | – |")
    return "\n".join(
        [
            *rows,
            "",
            f"A transformers Llama with TinyLlama's sizes in bfloat16, one sequence a step, on {machine(result)}, "
            f"PyTorch {result['hardware']['torch'].partition('+')[0]}: `python -m benchmarks.billion`.",
        ]
    )


def explain() -> str:
    result = newest("explain")
    rows = [
        "| | hiding each token, times as fast as one forward each (95% interval) | largest difference, nats "
        "| probes of all layers cost, in forwards | deletion, nats more than at random: by hiding | by attention "
        "| by rollout | by gradient × input |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (model, hiding), probing in zip(result["occlusion"].items(), result["probes"].values(), strict=True):
        scores = ("occlusion", "attention", "rollout", "gradient")
        areas = [hiding["areas"][score]["deletion_minus_random"] for score in scores]
        cells = [
            model,
            _interval(hiding["speed_up"]),
            f"{hiding['max_difference']:.0e} of {hiding['largest_importance']:.2g}",
            _interval(probing["probing_in_forwards"]),
            *(f"{area['mean']:+.2f} ± {area['stderr']:.2f}" for area in areas),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [
            *rows,
            "",
            "Deletion: the mean, over shares of the tokens that are hidden, of the fall of the label's log-probability "
            "or the rise of the next token's loss. Agreement of attention with hiding is a rank correlation of "
            + " and ".join(
                f"{found['agreement']['attention']['mean']:.2f} ± {found['agreement']['attention']['stderr']:.2f} "
                f"({model})"
                for model, found in result["occlusion"].items()
            )
            + f". On {machine(result)}, PyTorch threads: {result['hardware']['torch_threads']}. "
            "`python -m benchmarks.explain --data DIRECTORY`.",
        ]
    )


def probe_costs() -> str:
    result = newest("explain")
    rows = [
        "| | tokens | time, in forwards of them (95% interval) | points by which logistic regression is better: median "
        "over targets and layers | at most |",
        "|---|---|---|---|---|",
    ]
    for model, found in result["probes"].items():
        widest = max(found["compared"], key=lambda pair: pair["logistic"] - pair["ridge"])
        better = found["logistic_minus_ridge_points"]
        rows.append(
            f"| {model} | {found['num_tokens']:,} | {_interval(found['probing_in_forwards'])} "
            f"| {better['median']:.1f} ({better['low']:.1f} to {better['high']:.1f}) "
            f"| {widest['target']}, {widest['layer']}: {widest['logistic']:.2f} against {widest['ridge']:.2f} |"
        )
    return "\n".join([*rows, "", f"On {machine(result)}: `python -m benchmarks.explain --data DIRECTORY`."])


def confidence() -> str:
    result = newest("explain")
    rows = [
        "| text | accuracy | mean confidence | expected calibration error (if calibrated) | AUROC "
        "| stated, yes/no: mean, AUROC | percentages among the replies |",
        "|---|---|---|---|---|---|---|",
    ]
    for text, found in result["confidence"].items():
        choices, stated = found["choices"], found["stated"]
        rows.append(
            f"| {text} | {_with_stderr(choices, 'accuracy')} | {choices['mean_confidence']:.2f} "
            f"| {_with_stderr(choices, 'expected_calibration_error')} ({choices['expected_if_calibrated']:.2f}) "
            f"| {_with_stderr(choices, 'auroc')} | {stated['mean_confidence']:.2f}, {_with_stderr(stated, 'auroc')} "
            f"| {found['percentages']} of {choices['num_examples']} |"
        )
    return "\n".join([*rows, "", f"On {machine(result)}: `python -m benchmarks.explain --data DIRECTORY`."])


def _with_stderr(figures: dict[str, float], name: str) -> str:
    return f"{figures[name]:.2f} ± {figures[f'{name}_stderr']:.2f}"


def exactness() -> str:
    result = newest("exactness")
    rows = [
        "| keys | `attention_entropy` (exact): time in SDPA forwards | error, nats | extra memory "
        "| `num_query_rows=32`: time | softmax of the matrix: time | extra memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for at in result["measured"]:
        forwards = {way: f"{ratio['median']:.2f}×" for way, ratio in at["sdpa_forwards"].items()}
        mib = {way: f"{num_bytes / 2**20:.0f} MiB" for way, num_bytes in at["peak_extra_bytes"].items()}
        error = max(errors["exact"] for errors in at["errors_nats"].values())
        rows.append(
            f"| {at['tokens']:,} | {forwards['exact']} | {error:.0e} | {mib['exact']} "
            f"| {forwards['sampled']} | {forwards['materialised']} | {mib['materialised']} |"
        )
    return "\n".join(
        [
            *rows,
            "",
            f"Causal, 8 heads of 64, float32, errors against float64, on {machine(result)}: "
            "`python -m benchmarks.exactness`.",
        ]
    )


def pruning_quality() -> str:
    result = newest("pruning_quality")
    rows = [
        "| heads gone, by | accuracy, mean of the seeds (each) | points more than dense (95% interval) "
        "| than at random | training, CPU seconds |",
        "|---|---|---|---|---|",
    ]
    for name, way in result["ways"].items():
        accuracies, seconds = way["accuracy"], way["cpu_seconds"]
        than_dense = "–" if name == "dense" else _points(way["minus_dense"])
        than_random = _points(way["minus_random"]) if "minus_random" in way and "random" not in name else "–"
        rows.append(
            f"| {name} | {fmean(accuracies):.2f} ({', '.join(f'{a:.2f}' for a in accuracies)}) "
            f"| {than_dense} | {than_random} | {fmean(seconds):.0f} |"
        )
    return "\n".join(
        [
            *rows,
            "",
            f"MiniLM fine-tuned on SST-2, {result['steps']} steps of {result['batch_size']}, heads removed in four "
            f"cuts between 10 and 40% of the run, without a guard; {result['sentences']:,} held-out sentences, "
            f"intervals by a paired bootstrap over seeds and sentences. On {machine(result)}: "
            "`python -m benchmarks.pruning_quality --data DIRECTORY`.",
        ]
    )


def pruning_speed() -> str:
    result = newest("pruning_speed")
    sizes = result["sizes"]
    rows = [
        "| tokens | heads gone | speed-up of a step over dense (95% interval) | its ceiling "
        "| step time, pruned / built small | a cut takes |",
        "|---|---|---|---|---|---|",
    ]
    for at in result["measured"]:
        rows += [
            f"| {at['num_tokens']:,} | {row['share']:.0%} | {_interval(row['speedup'])} | {row['ceiling']:.2f} "
            f"| {_interval(row['pruned_over_small'])} | {row['cut_steps']:.2f} steps |"
            for row in at["shares"]
        ]
    shares = " and ".join(f"{at['attention_share']:.0%}" for at in result["measured"])
    return "\n".join(
        [
            *rows,
            "",
            f"A transformers Mistral of {sizes['num_layers']} layers and {sizes['num_heads']} heads (hidden size "
            f"{sizes['hidden_size']}), batches of {sizes['tokens_per_batch']:,} tokens, AdamW. Attention with its "
            f"projections takes {shares} of a dense step; that sets the ceiling. On {machine(result)}: "
            "`python -m benchmarks.pruning_speed`.",
        ]
    )


def tokens() -> str:
    speed, quality = newest("tokens_speed"), newest("tokens_quality")
    by_length = {at["num_tokens"]: {_way(row): row for row in at["rows"]} for at in speed["measured"]}
    heads = " | ".join(f"a step at {length:,} tokens, times as fast (its ceiling)" for length in by_length)
    rows = [
        f"| kept, by | {heads} | steps in the same time | loss at the end, mean (each) | less than with all tokens "
        "| share of the time to reach their loss |",
        "|---|" + "---|" * (len(by_length) + 4),
    ]
    for name, way in quality["ways"].items():
        speeds = [_speed(rows_of.get(name)) for rows_of in by_length.values()]
        steps = sum(way["steps"]) / sum(quality["ways"]["all tokens"]["steps"])
        gains, reached = way["less_than_all_tokens"], way["time_to_their_loss"]
        is_whole = name == "all tokens"
        rows.append(
            f"| {name} | {' | '.join(speeds)} | {steps:.2f}× | {_mean(way['loss']):.3f} "
            f"({', '.join(f'{loss:.3f}' for loss in way['loss'])}) "
            f"| {'–' if is_whole else f'{_mean(gains):+.3f} ({min(gains):+.3f} to {max(gains):+.3f})'} "
            f"| {'–' if is_whole else ', '.join('never' if r is None else f'{r:.2f}' for r in reached)} |"
        )
    sizes = speed["sizes"]
    return "\n".join(
        [
            *rows,
            "",
            f"Speed: a transformers Llama of {sizes['num_layers']} layers (hidden size {sizes['hidden_size']}), "
            f"batches of {sizes['tokens_per_batch']:,} tokens, AdamW, tokens dropped in all layers but the first and "
            f"the last; the ceiling is for a cost that is linear in the tokens. On {machine(speed)}: "
            "`python -m benchmarks.tokens_speed`. Loss: a Llama of 8 layers on the bytes of Python's standard library, "
            f"nats per byte of held-out files, each way {quality['seconds']:.0f} s of CPU time on one thread, "
            f"{len(quality['ways']['all tokens']['loss'])} seeds. {machine(quality)}: "
            "`python -m benchmarks.tokens_quality`.",
        ]
    )


def _way(row: dict[str, Any]) -> str:
    return f"{row['criterion']} {row['keep_ratio']:.0%}"


def _speed(row: dict[str, Any] | None) -> str:
    return "–" if row is None else f"{row['speedup']['median']:.2f} ({row['ceiling']:.2f})"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _points(estimate: dict[str, float]) -> str:
    return f"{estimate['median']:+.2f} ({estimate['low']:+.2f} to {estimate['high']:+.2f})"


def _mib(mib: float) -> str:
    return f"{mib:.0f} MiB" if mib >= 0.5 else "none that shows"


def _interval(estimate: dict[str, float]) -> str:
    return f"{estimate['median']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


DOCS = ROOT / "docs"
SECTIONS: dict[Path, tuple[Callable[[], str], ...]] = {
    ROOT / "README.md": (headline_sections.headline,),
    DOCS / "coverage.md": (coverage_sections.coverage_totals, coverage_sections.coverage),
    DOCS / "benchmarks" / "cost.md": (overhead, billion, exactness),
    DOCS / "benchmarks" / "diagnosis.md": verdict_sections.DETAILS,
    DOCS / "benchmarks" / "explain.md": (explain, probe_costs, confidence),
    DOCS / "benchmarks" / "pruning.md": (pruning_speed, pruning_quality),
    DOCS / "benchmarks" / "tokens.md": (tokens,),
    DOCS / "explanation" / "diagnosis.md": (verdict_sections.reliability,),
    DOCS / "explanation" / "processes.md": (coverage_sections.flush_cost,),
    DOCS / "reference" / "built-in.md": (
        declaration_sections.model_families,
        declaration_sections.attention_calls,
        declaration_sections.loggers,
        declaration_sections.trainers,
    ),
    DOCS / "reference" / "command-line.md": (declaration_sections.command_line,),
    DOCS / "reference" / "criteria.md": (
        declaration_sections.head_criteria,
        declaration_sections.token_criteria,
        declaration_sections.schedules,
    ),
    DOCS / "reference" / "findings.md": (declaration_sections.findings,),
    DOCS / "reference" / "statistics.md": (statistics,),
}


def updated(document: str, sections: tuple[Callable[[], str], ...]) -> str:
    """The text with every section written anew."""
    for section in sections:
        begin, end = f"<!-- begin {section.__name__} -->", f"<!-- end {section.__name__} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(document):
            raise SystemExit(f"there is no section between {begin!r} and {end!r}")
        content = f"{begin}\n{section()}\n{end}"
        document = pattern.sub(lambda _, content=content: content, document)
    return document


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    out_of_date = False
    for path, sections in SECTIONS.items():
        before = path.read_text(encoding="utf-8")
        after = updated(before, sections)
        if before != after:
            out_of_date = True
            if options.check:
                print(f"{path.relative_to(ROOT)} is out of date: python docs/update_readme.py", file=sys.stderr)
            else:
                path.write_text(after, encoding="utf-8")
    return int(out_of_date and options.check)


if __name__ == "__main__":
    sys.exit(main())
