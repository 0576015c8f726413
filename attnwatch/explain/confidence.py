"""Asking a model how sure it is: its probabilities, its words, and whether either can be believed."""

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.errors import ConfigurationError
from attnwatch.explain.asking.answers import Answers
from attnwatch.explain.asking.interview import Interview
from attnwatch.explain.asking.questions import Question, as_questions
from attnwatch.explain.asking.templates import Templates, as_templates
from attnwatch.explain.calibration import Calibration, calibration
from attnwatch.explain.effects import is_multi_label
from attnwatch.explain.subject import Batch, Forward, Subject, as_batch, described, labels_of

_NO_LABEL = -100


def ask(
    model: nn.Module | Subject,
    tokenizer: Any,
    questions: str | PathLike[str] | Iterable[Question | Mapping[str, Any]],
    *,
    templates: Templates | None = None,
    stated: str | None = "yes_no",
    reasons: bool = False,
    score: str = "sum",
    max_new_tokens: int = 32,
    batch_size: int = 8,
    max_length: int | None = None,
    forward: Forward | None = None,
) -> Answers:
    """Put multiple-choice questions to a causal language model; nothing of it or of the random state changes.

    It answers with the choice that has the largest probability: p(choice) ∝ exp(Σ_t log p(token t | prompt, tokens
    before t)). Choices are read from the first token on in which some choice parts from the prompt's own tokens.

    Args:
        model: a causal language model, or the `Subject` of one.
        tokenizer: of transformers.
        questions: path of a JSONL file (see `load_questions`), or a list.
        templates: the words; see `Templates`.
        stated: how it is then asked whether it is sure. `"yes_no"`: the probability of "yes" over that of "yes" and
            "no". `"percentage"`: it writes a number (see `parse_percentage`). None: not at all.
        reasons: whether it is asked why, too.
        score: `"sum"` as above; `"mean"`: divided by the choice's number of tokens, so that long ones stand a chance.
        max_new_tokens: of a reason.
        batch_size: rows of a forward.
        max_length: tokens that may be read at once; the model's positions are a limit in any case.
        forward: see `Subject`; without reasons and percentages only, as these need transformers' `generate`.

    Raises:
        ConfigurationError: an argument is wrong, `model` is no causal language model, or no question can be asked.
    """
    subject = model if isinstance(model, Subject) else Subject(model, forward)
    require_language_model(subject)
    interview = Interview(
        subject,
        tokenizer,
        as_questions(questions),
        templates=as_templates(templates),
        stated=stated,
        reasons=reasons,
        score=score,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        max_length=max_length,
    )
    return interview.hold()


def classifier_calibration(
    model: nn.Module | Subject,
    batches: Iterable[Batch],
    *,
    num_bins: int = 15,
    bins: str = "equal_width",
    forward: Forward | None = None,
) -> Calibration:
    """Calibration of a classifier's probabilities, one forward a batch.

    Args:
        model: returns logits [batch, classes]; or the `Subject` of one.
        batches: as the model takes them, with `labels` [batch] (−100: no label), on its device; or [batch, classes] of
            0.0 and 1.0 (multi-label), where each class of each sequence is an example.
        num_bins, bins: see `calibration`.
        forward: see `Subject`.

    Raises:
        ConfigurationError: the model returns other logits, or batches have no labels.
    """
    subject = model if isinstance(model, Subject) else Subject(model, forward)
    probabilities, labels = [], []
    with subject.asked():
        for batch in map(as_batch, batches):
            found, given = _judged(subject.logits(batch), labels_of(batch), subject.problem_type)
            probabilities.append(found.cpu())
            labels.append(given.cpu())
    if not probabilities:
        raise ConfigurationError("`batches` is empty: give at least one.")
    return calibration(torch.cat(probabilities), torch.cat(labels), num_bins=num_bins, bins=bins)


def _judged(logits: Tensor, labels: Tensor | None, problem_type: str | None) -> tuple[Tensor, Tensor]:
    """(probabilities float64 [examples, classes], labels int64 [examples]) of what has a label."""
    if logits.ndim == 2 and isinstance(labels, Tensor) and is_multi_label(logits, labels, problem_type):
        yes = logits.double().sigmoid().flatten()
        return torch.stack([1 - yes, yes], 1), labels.flatten().long()
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ConfigurationError(
            f"`model` must return logits [batch, classes] of at least two classes, got {list(logits.shape)}. "
            "Give `questions` if it is a language model."
        )
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != logits.shape[:1]:
        got = "none" if labels is None else described(labels)
        raise ConfigurationError(
            f"`batches` must have integer `labels` [batch], a tensor, or of a multi-label model 0.0 and 1.0 [batch, "
            f"classes]; got {got}."
        )
    known = labels != _NO_LABEL
    return logits[known].double().softmax(-1), labels[known]


def is_classifier(subject: Subject) -> bool:
    """Whether it is one of transformers', of sequences."""
    base = getattr(subject.model, "get_base_model", None)
    name = type(base() if callable(base) else subject.model).__name__
    return "Classification" in name and "TokenClassification" not in name


def require_language_model(subject: Subject) -> None:
    """Raises a `ConfigurationError` unless it is a causal one; what a user's `forward` calls is taken for one."""
    model = subject.model
    if subject.has_own_forward:
        return
    can_generate = getattr(model, "can_generate", None)
    if not callable(can_generate) or not can_generate() or getattr(model.config, "is_encoder_decoder", False):
        raise ConfigurationError(
            f"`model` must be a causal language model, got a {type(model).__name__}; for a classifier there is "
            "classifier_calibration. If it is a language model under another name, give `forward`."
        )
