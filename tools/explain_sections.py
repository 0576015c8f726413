"""Tables about explanations, from the stored result of `python -m benchmarks.explain`."""

from collections.abc import Mapping

from tools.markdown import interval, table, with_stderr
from tools.results import machine, newest

_COMMAND = "`python -m benchmarks.explain --data DIRECTORY`."
_SCORES = {
    "deletion, nats more than at random: by hiding": "occlusion",
    "by attention": "attention",
    "by rollout": "rollout",
    "by gradient × input": "gradient",
}


def explain() -> str:
    result = newest("explain")
    rows = []
    for (model, hiding), probing in zip(result["occlusion"].items(), result["probes"].values(), strict=True):
        areas = {words: hiding["areas"][score]["deletion_minus_random"] for words, score in _SCORES.items()}
        rows.append(
            {
                "": model,
                "hiding each token, times as fast as one forward each (95% interval)": interval(hiding["speed_up"]),
                "largest difference, nats": f"{hiding['max_difference']:.0e} of {hiding['largest_importance']:.2g}",
                "probes of all layers cost, in forwards": interval(probing["probing_in_forwards"]),
                **{words: with_stderr(area["mean"], area["stderr"], "+.2f") for words, area in areas.items()},
            }
        )
    agreement = {model: found["agreement"]["attention"] for model, found in result["occlusion"].items()}
    return table(
        rows,
        "Deletion: the mean, over shares of the tokens that are hidden, of the fall of the label's log-probability "
        "or the rise of the next token's loss. Agreement of attention with hiding is a rank correlation of "
        + " and ".join(f"{with_stderr(each['mean'], each['stderr'])} ({model})" for model, each in agreement.items())
        + f". On {machine(result)}, PyTorch threads: {result['hardware']['torch_threads']}. {_COMMAND}",
    )


def probe_costs() -> str:
    result = newest("explain")
    rows = []
    for model, found in result["probes"].items():
        widest = max(found["compared"], key=lambda pair: pair["logistic"] - pair["ridge"])
        better = found["logistic_minus_ridge_points"]
        difference = f"{better['median']:.1f} ({better['low']:.1f} to {better['high']:.1f})"
        accuracies = f"{widest['logistic']:.2f} against {widest['ridge']:.2f}"
        rows.append(
            {
                "": model,
                "tokens": f"{found['num_tokens']:,}",
                "time, in forwards of them (95% interval)": interval(found["probing_in_forwards"]),
                "points by which logistic regression is better: median over targets and layers": difference,
                "at most": f"{widest['target']}, {widest['layer']}: {accuracies}",
            }
        )
    return table(rows, f"On {machine(result)}: {_COMMAND}")


def confidence() -> str:
    result = newest("explain")
    rows = []
    for text, found in result["confidence"].items():
        choices, stated = found["choices"], found["stated"]
        error = _named(choices, "expected_calibration_error")
        rows.append(
            {
                "text": text,
                "accuracy": _named(choices, "accuracy"),
                "mean confidence": f"{choices['mean_confidence']:.2f}",
                "expected calibration error (if calibrated)": f"{error} ({choices['expected_if_calibrated']:.2f})",
                "AUROC": _named(choices, "auroc"),
                "stated, yes/no: mean, AUROC": f"{stated['mean_confidence']:.2f}, {_named(stated, 'auroc')}",
                "percentages among the replies": f"{found['percentages']} of {choices['num_examples']}",
            }
        )
    return table(rows, f"On {machine(result)}: {_COMMAND}")


def _named(figures: Mapping[str, float], name: str) -> str:
    return with_stderr(figures[name], figures[f"{name}_stderr"])
