"""What a report says, each part with how to read it. A part that can't be written says why."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from attnwatch.capture import is_observed
from attnwatch.errors import AttnwatchError, ConfigurationError
from attnwatch.explain import Answers, Calibration, LayerProbes, Occlusion, ask, compare, occlude, probe_layers
from attnwatch.explain import classifier_calibration as calibration_of_classifier
from attnwatch.explain.asking.questions import Question, questions_from_text
from attnwatch.explain.comparison import DISAGREEMENT, summary
from attnwatch.explain.pieces import token_pieces
from attnwatch.recorder import AttentionHistory, AttentionRecorder
from attnwatch.report.charts import heatmap, highlighted, line_chart, reliability_chart
from attnwatch.report.html import Markup, element, joined, rows
from attnwatch.report.reading import Reading
from attnwatch.statistics import Statistic
from attnwatch.utils.labels import site_labels

# Hiding takes a row of a forward for each token.
_SHOWN_SEQUENCES = 4
_SHOWN_QUESTIONS = 6
_NUM_QUESTIONS, _PROMPT_TOKENS = 64, 32


def section(title: str, lead: str, write: Callable[[], Iterable[str]]) -> Markup:
    """With its reason in the place of what can't be written."""
    try:
        body = joined(*write())
    except AttnwatchError as error:
        body = element("p", f"Not written: {error}")
    except Exception as error:  # of a model of any kind: the other parts may be written all the same
        body = element("p", f"Not written: {type(error).__name__}: {error}")
    return element("section", element("h2", title), element("p", lead, class_="soft"), body)


def attention(reading: Reading) -> list[Markup]:
    """Statistics of each layer and head."""
    with AttentionRecorder(reading.model, num_query_rows=None) as recorder:
        with recorder.step(0), torch.no_grad():
            for batch in reading.batches:
                reading.model(**{name: value for name, value in batch.items() if name != "labels"})
        history = recorder.history()
    if not len(history):
        reasons = "; ".join(f"{site}: {why}" for site, why in history.coverage.items())
        raise ConfigurationError(reasons or "the model has no attention, or none that its modules call of torch's")
    shown = [name for name, statistic in Statistic.registry.items() if statistic.per_layer]
    found = [name for name in shown if np.isfinite(history[name]).any()]
    parts = [_of_statistic(history, name) for name in found]
    lacking = [f"{name.replace('_', ' ')}: needs {_needs(name)}" for name in shown if name not in found]
    missing = {site: why for site, why in history.coverage.items() if not is_observed(why)}
    charts = element("div", parts, class_="pair")
    reasons = [*(["; ".join(lacking)] if lacking else []), *(f"{site}: {why}" for site, why in missing.items())]
    return [charts, *(element("p", f"Not observed: {reason}", class_="soft") for reason in reasons)]


def _needs(name: str) -> str:
    if name == "content_sensitivity":
        return "two or more sequences of equal length in a batch"
    return "tokens that see two or more, with finite logits"


def _of_statistic(history: AttentionHistory, name: str) -> Markup:
    statistic, values = Statistic.registry[name], history[name][0]
    unit = f" [{statistic.unit}]" if statistic.unit else ""
    layers = [label.removeprefix("layer_") for label in site_labels(history.sites)]
    chart = heatmap(
        values,
        row_names=layers,
        column_names=[str(head) for head in range(values.shape[1])],
        value_range=statistic.chart_range(values),
        corner="layer, head",
    )
    return element(
        "figure",
        element("h3", f"{name.replace('_', ' ')}{unit}"),
        element("p", statistic.summary, class_="soft"),
        chart,
    )


def inputs(reading: Reading) -> list[Markup]:
    """Which tokens mattered, and whether attention says so."""
    _refuse_other_heads(reading)
    batch = {name: value[:_SHOWN_SEQUENCES] for name, value in reading.batches[0].items()}
    found = occlude(reading.model, batch, tokenizer=reading.tokenizer)
    measured = {
        "label": "how much the label's log-probability falls",
        "loss": "how much the loss of the predictions behind it rises, on average",
        "kl": "how far the output moves (KL divergence)",
    }
    lead = (
        f"The stronger the red, the more hiding a token hurts: {measured[found.effect]}, in nats. Blue: hiding it "
        "helps. Grey: it was not hidden."
    )
    texts = [
        joined(_highlighted(reading, ids[real], importance[real]), _caption(importance[real], said))
        for ids, importance, real, said in zip(
            batch["input_ids"], found.importance, batch["attention_mask"].bool(), _answers(reading, batch), strict=True
        )
    ]
    return [element("p", lead), *texts, _agreement(reading, batch, found)]


def _answers(reading: Reading, batch: dict[str, Tensor]) -> list[str]:
    """What a classifier says of each sequence."""
    if not reading.is_classifier:
        return [""] * len(batch["input_ids"])
    names = reading.model.config.id2label
    with torch.no_grad():
        given = {name: value for name, value in batch.items() if name != "labels"}
        sure, guesses = reading.model(**given).logits.softmax(-1).max(-1)
    labels = batch["labels"].tolist() if "labels" in batch else guesses.tolist()
    return [
        f"It says {names[guess]} ({probability:.0%})"
        + ("" if guess == label else f", the label is {names[label]}")
        + "; "
        for guess, probability, label in zip(guesses.tolist(), sure.tolist(), labels, strict=True)
    ]


def _caption(importance: Tensor, said: str) -> Markup:
    """With the scale of the colours, which are relative to the strongest."""
    known = importance[importance.isfinite()]
    strongest = f"the strongest colour is {known.abs().max():.2g} nats." if len(known) else "nothing was hidden."
    return element("p", said + strongest if said else strongest.capitalize(), class_="soft")


def _refuse_other_heads(reading: Reading) -> None:
    if reading.is_classifier or reading.is_language_model:
        return
    name = type(reading.model).__name__
    is_regression = name.endswith("ForSequenceClassification")  # with one label: see `read`
    what = "has a regression head (`num_labels` is 1)" if is_regression else "is neither"
    raise ConfigurationError(f"this part is for sequence classifiers and causal language models; {name} {what}.")


def _highlighted(reading: Reading, ids: Tensor, importance: Tensor) -> Markup:
    return highlighted(token_pieces(ids.tolist(), reading.tokenizer), importance.tolist(), unit="nats")


def _agreement(reading: Reading, batch: dict[str, Tensor], found: Occlusion) -> Markup:
    compared = compare(reading.model, batch, found)
    named = {
        "attention received": compared.attention,
        "attention rollout": compared.rollout,
        "gradient × input": compared.gradient,
    }
    lines = []
    for name, values in named.items():
        over = summary(values) if values.numel() else None
        lines.append([name, "not observed" if over is None else f"{over.mean:+.2f} ± {over.stderr:.2f}"])
    words = (
        "Does anything cheaper tell the same? Rank correlation with hiding, from -1 to 1, over these sequences; below "
        f"{DISAGREEMENT} attention should not be taken for importance."
    )
    return joined(element("h3", "Does attention agree?"), element("p", words), rows(["by", "agreement"], lines))


def layers(reading: Reading) -> list[Markup]:
    """What can be read off each layer's states."""
    probes = probe_layers(reading.model, reading.batches, tokenizer=reading.tokenizer)
    if not probes.targets:
        raise ConfigurationError("; ".join(f"{name}: {why}" for name, why in probes.skipped.items()))
    above = {name: probes.above_baseline[index].tolist() for index, name in enumerate(probes.targets)}
    chart = line_chart(above, x_name="layer (0: embeddings)", y_name="accuracy above the baseline")
    skipped = (element("p", f"{name}: skipped, {why}", class_="soft") for name, why in probes.skipped.items())
    return [chart, _probe_table(probes), *skipped]


def _probe_table(probes: LayerProbes) -> Markup:
    best = probes.accuracy.nan_to_num(-1).argmax(1).tolist()
    lines = [
        [
            name,
            str(probes.num_classes[index]),
            f"{probes.baseline[index]:.2f}",
            f"{probes.accuracy[index, 0]:.2f}",
            f"{probes.accuracy[index, layer]:.2f} ± {probes.stderr[index, layer]:.2f} ({probes.layers[layer]})",
            f"{probes.selectivity[index, layer]:+.2f}",
        ]
        for index, (name, layer) in enumerate(zip(probes.targets, best, strict=True))
    ]
    return rows(["target", "classes", "baseline", "at the embeddings", "at its best layer", "selectivity there"], lines)


def confidence(reading: Reading, questions: list[Question] | None) -> list[Markup]:
    """Whether its probabilities can be believed."""
    if reading.is_classifier:
        if not reading.has_labels:
            raise ConfigurationError("the text has no labels: end every line with a tab and the label.")
        return [_calibrated(calibration_of_classifier(reading.model, reading.batches))]
    _refuse_other_heads(reading)
    made = questions is None
    asked = _made_questions(reading) if made else questions
    answers = ask(reading.model, reading.tokenizer, asked)
    told_why = ask(reading.model, reading.tokenizer, asked[:_SHOWN_QUESTIONS], reasons=True)
    origin = "made from the text: how does it go on?" if made else "of your file"
    number = len(answers.labels)
    lead = element("p", f"{number} {'question' if number == 1 else 'questions'} {origin}.")
    skipped = (element("p", f"Skipped: {prompt}: {why}", class_="soft") for prompt, why in answers.skipped)
    stated = answers.stated_calibration()
    told = [] if stated is None else [element("h3", "Asked in words whether it is sure"), _calibrated(stated)]
    return [lead, _calibrated(answers.calibration()), *told, *_examples(told_why), *skipped]


def _made_questions(reading: Reading) -> list[Question]:
    longest = max(batch["input_ids"].shape[1] for batch in reading.batches)
    prompt_tokens = min(_PROMPT_TOKENS, longest // 2)
    return questions_from_text(reading.batches, reading.tokenizer, _NUM_QUESTIONS, prompt_tokens=prompt_tokens)


def _calibrated(found: Calibration) -> Markup:
    chart = reliability_chart(
        found.bin_confidence.tolist(), found.bin_accuracy.tolist(), found.bin_count.int().tolist()
    )
    numbers = [
        ["accuracy", f"{found.accuracy:.3f} ± {found.accuracy_stderr:.3f}"],
        ["mean confidence", f"{found.mean_confidence:.3f}"],
        [
            "expected calibration error",
            f"{found.expected_calibration_error:.3f} ± {found.expected_calibration_error_stderr:.3f}",
        ],
        ["… by chance alone", f"{found.expected_if_calibrated:.3f}"],
        ["Brier score", f"{found.brier:.3f} ± {found.brier_stderr:.3f}"],
        ["AUROC of the confidence", found.auroc_reason or f"{found.auroc:.3f} ± {found.auroc_stderr:.3f}"],
    ]
    return element("div", chart, rows(["", ""], numbers), class_="pair")


def _examples(answers: Answers) -> list[Markup]:
    """Questions, answers, and what the model says of them."""
    words = "Its answer in bold. Below, what it writes when it is asked why: a claim, which explains nothing."
    parts = [element("h3", "Some of the questions"), element("p", words)]
    for index, (prompt, choices, guess) in enumerate(
        zip(answers.prompts, answers.choices, answers.predictions, strict=True)
    ):
        right = "right" if answers.correct[index] else f"wrong: it is “{choices[answers.labels[index]].strip()}”"
        verdict = f"{answers.probabilities[index].max():.0%}, {right}; says it is sure: "
        verdict += f"{answers.stated_confidence[index]:.0%}"
        parts.append(element("div", prompt.strip(), element("b", choices[guess]), class_="text"))
        parts.append(element("p", verdict, class_="soft"))
        parts.append(element("p", answers.claimed_reasons[index].strip(), class_="claim"))
    return parts
