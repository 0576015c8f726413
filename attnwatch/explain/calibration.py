"""Calibration of the probabilities of a model."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from attnwatch.errors import ConfigurationError
from attnwatch.explain.batches import Batch, as_batch, describe, labels_of
from attnwatch.explain.effects import is_multi_label
from attnwatch.explain.evaluated_model import EvaluatedModel, Forward
from attnwatch.utils.arguments import require_choice, require_int
from attnwatch.utils.extras import extra_needed

Binning = Literal["equal_width", "equal_mass"]

_RESAMPLES = 200
_NO_LABEL = -100


@dataclass
class Calibration:
    """Calibration of n predictions with confidences c_i, and r_i = 1 for a right prediction and 0 for a wrong one.

    Attributes:
        num_examples: number of examples n.
        accuracy, accuracy_stderr: mean of r_i, and sqrt(accuracy (1 − accuracy) / n).
        mean_confidence: mean of c_i; an over-confident model has one above its accuracy.
        expected_calibration_error: Σ_b n_b/n · |accuracy_b − confidence_b| over bins b of the confidence, 0 to 1
            (Guo et al. 2017, arXiv 1706.04599, equation 3).
        expected_calibration_error_stderr: standard error from a bootstrap over the examples.
        expected_if_calibrated: expected calibration error that a perfectly calibrated model would show with these
            confidences by chance alone: the mean over outcomes drawn from them (Bröcker and Smith 2007). An error that
            does not exceed it is no evidence of miscalibration.
        brier, brier_stderr: for class probabilities, the mean of Σ_k (p_ik − [k is the label])², 0 to 2 (Brier 1950);
            for confidences, the mean of (c_i − r_i)², 0 to 1.
        auroc, auroc_stderr: fraction of the pairs of a right and a wrong answer in which the right one has the higher
            confidence; ties count as half, and 0.5 is chance. The standard error (Hanley and McNeil 1982) is 0 if no
            pair is out of order, however few pairs there are. nan without such pairs.
        auroc_reason: reason why there is no AUROC; empty if there is one.
        bin_lower, bin_upper, bin_confidence, bin_accuracy, bin_count: reliability diagram, float64 [bins]: limits,
            means and number of examples of each bin (lower, upper]. The first bin includes its lower limit. The means
            of an empty bin are nan.
    """

    num_examples: int
    accuracy: float
    accuracy_stderr: float
    mean_confidence: float
    expected_calibration_error: float
    expected_calibration_error_stderr: float
    expected_if_calibrated: float
    brier: float
    brier_stderr: float
    auroc: float
    auroc_stderr: float
    auroc_reason: str
    bin_lower: Tensor
    bin_upper: Tensor
    bin_confidence: Tensor
    bin_accuracy: Tensor
    bin_count: Tensor

    def __str__(self) -> str:
        auroc = self.auroc_reason or f"{self.auroc:.3f} ± {self.auroc_stderr:.3f}"
        return (
            f"{self.num_examples} examples: accuracy {self.accuracy:.3f} ± {self.accuracy_stderr:.3f}, mean confidence "
            f"{self.mean_confidence:.3f}, expected calibration error {self.expected_calibration_error:.3f} ± "
            f"{self.expected_calibration_error_stderr:.3f} ({self.expected_if_calibrated:.3f} by chance alone), Brier "
            f"score {self.brier:.3f} ± {self.brier_stderr:.3f}, AUROC of the confidence: {auroc}"
        )


def calibration(
    probabilities: ArrayLike | Tensor,
    outcomes: ArrayLike | Tensor,
    *,
    num_bins: int = 15,
    bins: Binning = "equal_width",
    seed: int = 0,
) -> Calibration:
    """Return accuracy, expected calibration error, Brier score, reliability diagram, and AUROC of the confidence.

    Among equal probabilities, the first class is the prediction. The order of examples does not matter.

    Args:
        probabilities: probabilities [examples, classes], 0 to 1, rows sum to 1; or confidences [examples], 0 to 1.
        outcomes: labels [examples], integers from 0 to classes − 1; for confidences, whether each prediction is right.
        num_bins: number of bins of the reliability diagram and the expected calibration error.
        bins: `"equal_width"` for bins ((b − 1)/num_bins, b/num_bins]; `"equal_mass"` for bins with about equally many
            examples (Nguyen and O'Connor 2015). Equal confidences share a bin, so there may be fewer bins.
        seed: seed of the resampling.

    Raises:
        ConfigurationError: an argument has an invalid shape or range, or is empty.

    >>> found = calibration([0.9, 0.9, 0.6, 0.6], [True, True, True, False], num_bins=10)
    >>> round(found.expected_calibration_error, 3)  # (2·|1 − 0.9| + 2·|0.5 − 0.6|) / 4
    0.1
    >>> round(found.auroc, 3)  # the wrong one ties with one of the three right ones: 2.5 / 3
    0.833
    """
    require_int("num_bins", num_bins, minimum=1)
    require_int("seed", seed, minimum=0)
    require_choice("bins", bins, Binning)
    confidence, right, squares = _scored(_array("probabilities", probabilities), _array("outcomes", outcomes))
    order = np.lexsort((squares, right, confidence))  # sums and draws must not depend on the order of the examples
    confidence, right, squares = confidence[order], right[order], squares[order]
    n = len(confidence)
    edges = np.arange(num_bins + 1) / num_bins if bins == "equal_width" else _equal_mass_edges(confidence, num_bins)
    index = np.searchsorted(edges[1:-1], confidence, side="left")
    count = np.bincount(index, minlength=len(edges) - 1).astype(float)
    accuracy, (auroc, auroc_stderr, reason) = right.mean(), _auroc(confidence, right)
    error_stderr, error_by_chance = _resample(confidence, right, index, np.random.default_rng(seed))
    with np.errstate(invalid="ignore"):  # 0/0 in empty bins is nan
        bin_confidence = np.bincount(index, confidence, len(count)) / count
        bin_accuracy = np.bincount(index, right, len(count)) / count
    return Calibration(
        num_examples=n,
        accuracy=float(accuracy),
        accuracy_stderr=math.sqrt(accuracy * (1 - accuracy) / n),
        mean_confidence=float(confidence.mean()),
        expected_calibration_error=_error(right - confidence, index),
        expected_calibration_error_stderr=error_stderr,
        expected_if_calibrated=error_by_chance,
        brier=float(squares.mean()),
        brier_stderr=float(squares.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan,
        auroc=auroc,
        auroc_stderr=auroc_stderr,
        auroc_reason=reason,
        bin_lower=torch.from_numpy(edges[:-1].copy()),
        bin_upper=torch.from_numpy(edges[1:].copy()),
        bin_confidence=torch.from_numpy(bin_confidence),
        bin_accuracy=torch.from_numpy(bin_accuracy),
        bin_count=torch.from_numpy(count),
    )


def classifier_calibration(
    model: nn.Module | EvaluatedModel,
    batches: Iterable[Batch],
    *,
    num_bins: int = 15,
    bins: Binning = "equal_width",
    forward: Forward | None = None,
) -> Calibration:
    """Return the calibration of a classifier's probabilities, from one forward per batch.

    Args:
        model: classifier that returns logits [batch, classes].
        batches: arguments of the model by name, on its device, with integer `labels` [batch] (−100: no label), or
            [batch, classes] of 0.0 and 1.0 for multi-label models, where each class of each sequence is an example.
        num_bins, bins: see `calibration`.
        forward: see `EvaluatedModel`.

    Raises:
        ConfigurationError: the model returns logits with another shape, or batches have no labels.

    Example:
        >>> batch = {"x": torch.randn(20, 4), "labels": torch.randint(3, (20,))}
        >>> call = lambda model, batch: model(batch["x"])
        >>> classifier_calibration(nn.Linear(4, 3), [batch], forward=call).num_examples
        20
    """
    evaluated = EvaluatedModel.of(model, forward)
    judged = []
    with evaluated.evaluating():
        for batch in map(as_batch, batches):
            found = _judge(evaluated.logits(batch), labels_of(batch), evaluated.problem_type)
            judged.append([each.cpu() for each in found])
    if not judged:
        raise ConfigurationError("`batches` is empty: pass at least one.")
    return calibration(*map(torch.cat, zip(*judged, strict=True)), num_bins=num_bins, bins=bins)


def _judge(logits: Tensor, labels: Tensor | None, problem_type: str | None) -> tuple[Tensor, Tensor]:
    """Return probabilities, float64 [examples, classes], and labels, int64 [examples], of the examples with a label."""
    if logits.ndim == 2 and isinstance(labels, Tensor) and is_multi_label(logits, labels, problem_type):
        yes = logits.double().sigmoid().flatten()
        return torch.stack([1 - yes, yes], 1), labels.flatten().long()
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ConfigurationError(
            f"`model` must return logits [batch, classes] of at least two classes, got {list(logits.shape)}. "
            "Pass `questions` if it is a language model."
        )
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != logits.shape[:1]:
        got = "none" if labels is None else describe(labels)
        raise ConfigurationError(
            f"`batches` must have integer `labels` [batch] as a tensor, or for multi-label models 0.0 and 1.0 [batch, "
            f"classes]; got {got}."
        )
    known = labels != _NO_LABEL
    return logits[known].double().softmax(-1), labels[known]


def _scored(probabilities: np.ndarray, outcomes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each example's confidence, whether it was right (0. or 1.), and its term of the Brier score."""
    if probabilities.ndim not in (1, 2) or probabilities.size == 0:
        raise ConfigurationError(
            "`probabilities` must be [examples, classes] or confidences [examples], at least one; got the shape "
            f"{list(probabilities.shape)}."
        )
    if outcomes.shape != probabilities.shape[:1]:
        raise ConfigurationError(
            f"`outcomes` must be [examples], {len(probabilities)} as in `probabilities`; got the shape "
            f"{list(outcomes.shape)}."
        )
    if not (probabilities >= 0).all() or not (probabilities <= 1 + 1e-6).all():
        raise ConfigurationError(
            f"`probabilities` must be between 0 and 1; they range from {probabilities.min():.4g} to "
            f"{probabilities.max():.4g}. Apply the softmax to logits first."
        )
    probabilities = np.minimum(probabilities, 1.0)
    if probabilities.ndim == 1:
        if not np.isin(outcomes, (0, 1)).all():
            raise ConfigurationError(
                "`outcomes` must say for each confidence whether the prediction was right: True or False."
            )
        return probabilities, outcomes, (probabilities - outcomes) ** 2
    sums, num_classes = probabilities.sum(1), probabilities.shape[1]
    if (np.abs(sums - 1) > 1e-2).any():
        raise ConfigurationError(
            f"`probabilities`: each row must sum to 1; the sums range from {sums.min():.4g} to {sums.max():.4g}."
        )
    if not np.isin(outcomes, np.arange(num_classes)).all():
        raise ConfigurationError(
            f"`outcomes` must be labels, integers from 0 to {num_classes - 1} for {num_classes} classes; got "
            f"{outcomes.min():g} to {outcomes.max():g}."
        )
    labels = outcomes.astype(int)
    right = (probabilities.argmax(1) == labels).astype(float)
    squares = ((probabilities - np.eye(num_classes)[labels]) ** 2).sum(1)
    return probabilities.max(1), right, squares


def _equal_mass_edges(confidence: np.ndarray, num_bins: int) -> np.ndarray:
    """Return distinct limits from 0 to 1 for sorted confidences."""
    last_of_bin = np.ceil(len(confidence) * np.arange(1, num_bins) / num_bins).astype(int) - 1
    inner = np.unique(confidence[last_of_bin.clip(min=0)])
    return np.concatenate(([0.0], inner[(inner > 0) & (inner < 1)], [1.0]))


def _error(excess: np.ndarray, index: np.ndarray) -> float:
    """Return the expected calibration error from r_i − c_i and the bin of each example."""
    return float(np.abs(np.bincount(index, excess)).sum() / len(excess))


def _resample(
    confidence: np.ndarray, right: np.ndarray, index: np.ndarray, random: np.random.Generator
) -> tuple[float, float]:
    """Return the standard error of the expected calibration error, and its mean for a calibrated model."""
    again, by_chance = [], []
    for _ in range(_RESAMPLES):
        drawn = random.integers(len(right), size=len(right))
        again.append(_error((right - confidence)[drawn], index[drawn]))
        by_chance.append(_error((random.random(len(right)) < confidence) - confidence, index))
    return float(np.std(again, ddof=1)), float(np.mean(by_chance))


def _auroc(confidence: np.ndarray, right: np.ndarray) -> tuple[float, float, str]:
    """Return the AUROC and its standard error, or nan and the reason why there is none."""
    num_right = int(right.sum())
    num_wrong = len(right) - num_right
    if not num_right or not num_wrong:
        return math.nan, math.nan, f"all answers are {'right' if num_right else 'wrong'}"
    with extra_needed("explain", "the AUROC"):
        from scipy.stats import rankdata
    rank_sum = rankdata(confidence)[right == 1].sum()
    auroc = float((rank_sum - num_right * (num_right + 1) / 2) / (num_right * num_wrong))  # Mann and Whitney
    spread = (num_right - 1) * (auroc / (2 - auroc) - auroc**2)
    spread += (num_wrong - 1) * (2 * auroc**2 / (1 + auroc) - auroc**2)
    variance = (auroc * (1 - auroc) + spread) / (num_right * num_wrong)
    return auroc, math.sqrt(max(variance, 0.0)), ""


def _array(name: str, values: ArrayLike | Tensor) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().double().cpu().numpy()
    try:
        values = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"`{name}` must be a tensor or an array of numbers, got {values!r:.80}.") from error
    if not np.isfinite(values).all():
        raise ConfigurationError(f"`{name}` must be finite; {np.count_nonzero(~np.isfinite(values))} are not.")
    return values
