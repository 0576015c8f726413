"""Table of the README: one line for each thing that was measured, with the command that prints it."""

from statistics import fmean
from typing import Any

from tools.checkup_sections import first_runs
from tools.results import newest


def headline() -> str:
    lines = ["| what | measured | command |", "|---|---|---|"]
    lines += [f"| {what} | {measured} | `python -m benchmarks.{command}` |" for what, measured, command in _rows()]
    return "\n".join(lines)


def _rows() -> list[tuple[str, str, str]]:
    """Return what was measured, the result, and the benchmark."""
    return [*_watching(), *_checking(), *_verdicts(), *_pruning(), *_tokens(), *_explaining(), *_coverage()]


def _watching() -> list[tuple[str, str, str]]:
    cpu, gpu, exact = newest("overhead"), newest("billion"), newest("exactness")
    longest = exact["measured"][-1]
    parameters = f"{gpu['parameters'] / 1e9:.1f} billion parameters"
    forwards = longest["sdpa_forwards"]
    return [
        (
            "step time with `AttentionMonitor()`",
            f"{_ratio(cpu['ratio']['monitor_default'])} times that without, small Llama, CPU",
            "overhead",
        ),
        (
            "the same on a GPU, before it had checkup and layer statistics",
            f"{_ratio(gpu['watching']['ratio']['monitor_default'])} times, Llama with {parameters}",
            "billion",
        ),
        (
            f"exact attention entropy at {longest['tokens']:,} keys",
            f"the time of {forwards['exact']['median']:.2f} SDPA forwards (softmax of the matrix: "
            f"{forwards['materialised']['median']:.1f})",
            "exactness",
        ),
    ]


def _checking() -> list[tuple[str, str, str]]:
    runs = first_runs()
    shares = sorted(run["of_faults"]["named"] for run in runs)
    scripts, kinds = (sum(run["of_faults"][key] for run in runs) for key in ("scripts", "kinds_of_faults"))
    alarms, sound = (sum(run[key] for run in runs) for key in ("sound_with_alarm", "sound"))
    command = f"checkup --part blind-{len(runs)}"
    programs, now = newest("programs_blind"), newest("programs")
    return [
        (
            "faults that nobody had seen, named in the first 12 steps",
            f"{shares[0]:.0%} to {shares[-1]:.0%} by set, {runs[-1]['of_faults']['named']:.0%} in the last ({kinds} "
            f"faults in {scripts:,} scripts, {len(runs)} sets); alarms in {alarms} of {sound:,} sound scripts",
            command,
        ),
        (
            f"the same in {programs['programs']} complete programs with faults of one edit",
            f"{programs['named'] / programs['faults']:.0%} of {programs['faults']} at first sight "
            f"({now['named'] / now['faults']:.0%} now), {programs['alarms']} alarm in {programs['sound']} sound ones",
            "programs",
        ),
    ]


def _verdicts() -> list[tuple[str, str, str]]:
    result = newest("verdicts")
    quarter, half = (result["detection"]["diagnose with the checkup"][share] for share in ("0.25", "0.5"))
    alone = result["detection"]["diagnose"]["0.25"]
    checkup = result["checkup"]
    flagged = [len(checkup["flagged_sound_recipes"][share]) for share in ("0.25", "0.5")]
    return [
        (
            f"failing runs that are reported ({result['failed']} of {result['runs']} small trainings failed)",
            f"{quarter['recall']:.0%} after a quarter of the run ({alone['recall']:.0%} without the checkup), "
            f"{half['recall']:.0%} after half",
            "verdicts",
        ),
        (
            "sound recipes that are reported",
            f"{flagged[0]} of {checkup['sound_recipes']} after a quarter, {flagged[1]} after half",
            "verdicts",
        ),
        (
            "runs reported although they did not fail, most with a fault that did no harm",
            f"{quarter['false_alarms']:.0%} after a quarter ({alone['false_alarms']:.0%} without the checkup)",
            "verdicts",
        ),
    ]


def _pruning() -> list[tuple[str, str, str]]:
    speed, quality = newest("pruning_speed")["measured"][-1], newest("pruning_quality")
    half = next(row for row in speed["shares"] if row["share"] == 0.5)
    points = quality["ways"]["gate 50%"]["minus_dense"]
    return [
        (
            "half of the heads removed: step time",
            f"{_ratio(half['speedup'])} times as fast at {speed['num_tokens']:,} tokens, Mistral of 4 layers, CPU",
            "pruning_speed",
        ),
        (
            "half of the heads removed: accuracy",
            f"{points['median']:+.2f} points ({points['low']:+.2f} to {points['high']:+.2f}), MiniLM on SST-2",
            "pruning_quality --data DIRECTORY",
        ),
    ]


def _tokens() -> list[tuple[str, str, str]]:
    speed, quality = newest("tokens_speed")["measured"][-1], newest("tokens_quality")
    half = next(row for row in speed["rows"] if (row["criterion"], row["keep_ratio"]) == ("random", 0.5))
    gains = quality["ways"]["random 50%"]["less_than_all_tokens"]
    return [
        (
            "half of the tokens dropped: step time",
            f"{_ratio(half['speedup'])} times as fast at {speed['num_tokens']:,} tokens, Llama of 8 layers, CPU",
            "tokens_speed",
        ),
        (
            "half of the tokens dropped: loss after the same time",
            f"{-fmean(gains):+.3f} nats per byte ({-max(gains):+.3f} to {-min(gains):+.3f}, {len(gains)} seeds)",
            "tokens_quality",
        ),
    ]


def _explaining() -> list[tuple[str, str, str]]:
    speed_ups = [found["speed_up"]["median"] for found in newest("explain")["occlusion"].values()]
    return [
        (
            "hiding each token in turn",
            f"{min(speed_ups):.1f} to {max(speed_ups):.1f} times as fast as one forward each",
            "explain --data DIRECTORY",
        )
    ]


def _coverage() -> list[tuple[str, str, str]]:
    result = newest("coverage")
    totals = result["totals"]
    return [
        (
            f"{totals['architectures']} architectures of transformers {result['transformers']}",
            f"{totals['observed fully and right']} observed completely and correctly, {totals['heads prunable']} with "
            f"removable heads, {totals['tokens droppable']} with droppable tokens",
            "coverage",
        )
    ]


def _ratio(estimate: dict[str, Any]) -> str:
    return f"{estimate['median']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"
