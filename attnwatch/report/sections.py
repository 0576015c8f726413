"""Sections of the model page: the variables of each template, or the reason why a section can't be written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from torch import Tensor

from attnwatch.capture import is_observed
from attnwatch.dashboard.reliability import reliability_figure
from attnwatch.errors import AttnwatchError, ConfigurationError
from attnwatch.explain import (
    Answers,
    Calibration,
    Question,
    ask,
    classifier_calibration,
    compare,
    occlude,
    probe_layers,
    questions_from_text,
)
from attnwatch.explain.comparison import DISAGREEMENT
from attnwatch.explain.token_text import displayed_tokens
from attnwatch.recorder import AttentionHistory, AttentionRecorder
from attnwatch.report.analysis import ModelAnalysis
from attnwatch.report.charts import heat_cells, highlight_styles, inline_svg, line_figure
from attnwatch.statistics import Statistic
from attnwatch.utils.labels import site_labels
from attnwatch.utils.messages import counted

# Each hidden token takes a row of a forward.
_SHOWN_SEQUENCES = 4
_SHOWN_QUESTIONS = 6
_NUM_QUESTIONS, _PROMPT_TOKENS = 64, 32
_EFFECTS = {
    "label": "how much the label's log-probability falls",
    "loss": "how much the loss of the predictions behind it rises, on average",
    "kl": "how far the output moves (KL divergence)",
}
_NEEDS = {"content_sensitivity": "two or more sequences of equal length in a batch"}
_NEEDS_OF_OTHERS = "tokens that see two or more, with finite logits"


@dataclass(frozen=True)
class Section:
    """Section of the page.

    Attributes:
        name: name of the section and of its template.
        content: variables of the template.
        reason: reason why there is no content; empty if there is some.
    """

    name: str
    content: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


def make_sections(analysis: ModelAnalysis, questions: list[Question] | None) -> list[Section]:
    """Return all sections of a page.

    Args:
        questions: for a language model; None means questions that are made from the text.
    """
    return [
        _section("attention", lambda: _attention_content(analysis)),
        _section("inputs", lambda: _inputs_content(analysis)),
        _section("layers", lambda: _layers_content(analysis)),
        _section("confidence", lambda: _confidence_content(analysis, questions)),
    ]


def _section(name: str, make: Callable[[], dict[str, Any]]) -> Section:
    """Return a section with what `make` returns, or with the reason why it could not."""
    try:
        return Section(name, make())
    except Exception as error:  # of any kind, from a model of any kind: the other sections can be written all the same
        kind = "" if isinstance(error, AttnwatchError) else f"{type(error).__name__}: "
        return Section(name, reason=f"{kind}{error}")


def _attention_content(analysis: ModelAnalysis) -> dict[str, Any]:
    """Return the statistics of each layer and head."""
    with AttentionRecorder(analysis.model, num_query_rows=None) as recorder:
        with recorder.step(0):
            for batch in analysis.batches:
                analysis.output(batch)
        history = recorder.history()
    if not len(history):
        reasons = "; ".join(f"{site}: {why}" for site, why in history.coverage.items())
        raise ConfigurationError(
            reasons or "the model has no attention, or none that calls torch's attention functions"
        )
    shown = [name for name, statistic in Statistic.registry.items() if statistic.per_layer]
    found = [name for name in shown if np.isfinite(history[name]).any()]
    lacking = [
        f"{name.replace('_', ' ')}: needs {_NEEDS.get(name, _NEEDS_OF_OTHERS)}" for name in shown if name not in found
    ]
    missing = [f"{site}: {why}" for site, why in history.coverage.items() if not is_observed(why)]
    return {
        "layers": [label.removeprefix("layer_") for label in site_labels(history.sites)],
        "statistics": [_statistic(history, name) for name in found],
        "not_observed": ["; ".join(lacking)] * bool(lacking) + missing,
    }


def _statistic(history: AttentionHistory, name: str) -> dict[str, Any]:
    statistic, values = Statistic.registry[name], history[name][0]
    unit = f" [{statistic.unit}]" if statistic.unit else ""
    return {
        "title": f"{name.replace('_', ' ')}{unit}",
        "summary": statistic.summary,
        "heads": list(range(values.shape[1])),
        "cells": heat_cells(values, statistic.chart_range(values)),
    }


def _inputs_content(analysis: ModelAnalysis) -> dict[str, Any]:
    """Return the importance of tokens, and its rank correlations with attention and gradients."""
    _require_classes_or_next_tokens(analysis)
    batch = {name: value[:_SHOWN_SEQUENCES] for name, value in analysis.batches[0].items()}
    found = occlude(analysis.model, batch, tokenizer=analysis.tokenizer)
    rows = zip(batch["input_ids"], found.importance, batch["attention_mask"].bool(), strict=True)
    predictions = _predictions(analysis, batch)
    means = compare(analysis.model, batch, found).means()
    named = {"attention": "attention received", "rollout": "attention rollout", "gradient": "gradient × input"}
    agreement = [
        (name, f"{means[key].mean:+.2f} ± {means[key].stderr:.2f}" if key in means else "not observed")
        for key, name in named.items()
    ]
    texts = [
        {
            "words": _highlighted(displayed_tokens(ids[real].tolist(), analysis.tokenizer), importance[real].tolist()),
            "caption": _caption(importance[real], prediction),
        }
        for (ids, importance, real), prediction in zip(rows, predictions, strict=True)
    ]
    measured = _EFFECTS[found.effect]
    return {"measured": measured, "texts": texts, "agreement": agreement, "disagreement": DISAGREEMENT}


def _predictions(analysis: ModelAnalysis, batch: dict[str, Tensor]) -> list[str]:
    """Return a sentence about a classifier's prediction for each sequence."""
    if not analysis.is_classifier:
        return [""] * len(batch["input_ids"])
    names = cast(dict[int, str], analysis.model.config.id2label)
    confidence, guesses = analysis.output(batch).logits.softmax(-1).max(-1)
    labels = batch["labels"].tolist() if "labels" in batch else guesses.tolist()
    return [
        f"The prediction is {names[guess]} ({probability:.0%})"
        + ("" if guess == label else f", the label is {names[label]}")
        for guess, probability, label in zip(guesses.tolist(), confidence.tolist(), labels, strict=True)
    ]


def _highlighted(words: Sequence[str], values: Sequence[float]) -> list[tuple[str, str, str]]:
    """Return the text, style and tooltip of each word."""
    styles = highlight_styles(values)
    titles = [f"{value:+.3g} nats" if style else "not hidden" for value, style in zip(values, styles, strict=True)]
    return list(zip(words, styles, titles, strict=True))


def _caption(importance: Tensor, prediction: str) -> str:
    """Return the prediction and the scale of the colours."""
    known = importance[importance.isfinite()]
    scale = f"The strongest colour is {known.abs().max():.2g} nats." if len(known) else "Nothing was hidden."
    return f"{prediction}. {scale}" if prediction else scale


def _require_classes_or_next_tokens(analysis: ModelAnalysis) -> None:
    if analysis.is_classifier or analysis.is_language_model:
        return
    name = type(analysis.model).__name__
    is_regression = name.endswith("ForSequenceClassification")  # with one label: see `load_analysis`
    what = "has a regression head (`num_labels` is 1)" if is_regression else "is neither"
    raise ConfigurationError(f"this part is for sequence classifiers and causal language models; {name} {what}.")


def _layers_content(analysis: ModelAnalysis) -> dict[str, Any]:
    """Return the accuracy of linear probes of each layer."""
    probes = probe_layers(analysis.model, analysis.batches, tokenizer=analysis.tokenizer)
    if not probes.targets:
        raise ConfigurationError("; ".join(f"{name}: {why}" for name, why in probes.skipped.items()))
    series = {name: probes.above_baseline[index].tolist() for index, name in enumerate(probes.targets)}
    chart = line_figure(series, x_name="layer (0: embeddings)", y_name="accuracy above the baseline")
    targets = []
    for index, name in enumerate(probes.targets):
        accuracy, best = probes.accuracy[index], int(probes.accuracy[index].nan_to_num(-1).argmax())
        at_best = f"{accuracy[best]:.2f} ± {probes.stderr[index, best]:.2f} ({probes.layers[best]})"
        baseline, selectivity = probes.baseline[index], float(probes.selectivity[index, best])
        numbers = [f"{baseline:.2f}", f"{accuracy[0]:.2f}", at_best, f"{round(selectivity, 2) + 0.0:+.2f}"]
        targets.append([name, probes.num_classes[index], *numbers])
    return {"chart": inline_svg(chart), "targets": targets, "skipped": probes.skipped}


def _confidence_content(analysis: ModelAnalysis, given: list[Question] | None) -> dict[str, Any]:
    """Return the calibration of the model's probabilities, and some answers of a language model."""
    if analysis.is_classifier:
        if not analysis.has_labels:
            raise ConfigurationError("the text has no labels: end every line with a tab and the label.")
        found = classifier_calibration(analysis.model, analysis.batches)
        return {"calibrations": [_calibration("", "probability of the class", found)]}
    _require_classes_or_next_tokens(analysis)
    questions = given
    if questions is None:
        longest = max(batch["input_ids"].shape[1] for batch in analysis.batches)
        length = min(_PROMPT_TOKENS, longest // 2)
        questions = questions_from_text(analysis.batches, analysis.tokenizer, _NUM_QUESTIONS, prompt_tokens=length)
    answers = ask(analysis.model, analysis.tokenizer, questions)
    with_reasons = ask(analysis.model, analysis.tokenizer, questions[:_SHOWN_QUESTIONS], reasons=True)
    origin = "made from the text, about how it goes on" if given is None else "of your file"
    number, stated = len(answers.labels), answers.stated_calibration()
    calibrations = [_calibration("", "probability of the choice", answers.calibration())]
    if stated is not None:
        calibrations.append(_calibration("Asked in words whether it is sure", "stated confidence", stated))
    return {
        "questions": f"{counted(number, 'question')} {origin}.",
        "calibrations": calibrations,
        "examples": [_example(with_reasons, index) for index in range(len(with_reasons.labels))],
        "skipped": answers.skipped,
    }


def _calibration(heading: str, title: str, found: Calibration) -> dict[str, Any]:
    error, error_stderr = found.expected_calibration_error, found.expected_calibration_error_stderr
    numbers = [
        ("accuracy", f"{found.accuracy:.3f} ± {found.accuracy_stderr:.3f}"),
        ("mean confidence", f"{found.mean_confidence:.3f}"),
        ("expected calibration error", f"{error:.3f} ± {error_stderr:.3f}"),
        ("… by chance alone", f"{found.expected_if_calibrated:.3f}"),
        ("Brier score", f"{found.brier:.3f} ± {found.brier_stderr:.3f}"),
        ("AUROC of the confidence", found.auroc_reason or f"{found.auroc:.3f} ± {found.auroc_stderr:.3f}"),
    ]
    return {"heading": heading, "chart": inline_svg(reliability_figure(found, title)), "numbers": numbers}


def _example(answers: Answers, index: int) -> dict[str, str]:
    """Return a question, the model's answer, and its claimed reason."""
    choices, guess = answers.choices[index], answers.predictions[index]
    right = "right" if answers.correct[index] else f"wrong: it is “{choices[answers.labels[index]].strip()}”"
    probability, stated = answers.probabilities[index].max(), answers.stated_confidence[index]
    return {
        "prompt": answers.prompts[index].strip(),
        "choice": choices[guess].strip(),
        "verdict": f"{probability:.0%}, {right}; stated confidence: {stated:.0%}",
        "claim": answers.claimed_reasons[index].strip(),
    }
