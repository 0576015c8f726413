"""What hiding something changes in the output, in nats."""

import torch
import torch.nn.functional as F
from torch import Tensor

from attnwatch.errors import ConfigurationError
from attnwatch.explain.subject import Batch, labels_of

EFFECTS = ("label", "loss", "kl")


class Effect:
    """Of rows, against the same sequences with nothing hidden.

    Attributes:
        name: one of `EFFECTS`.
        outputs: bool [batch, tokens], where the model says something that counts; None where it says one thing about a
            sequence.
        has_answer: bool [batch], False where there is nothing to measure by.
    """

    name: str
    outputs: Tensor | None = None
    has_answer: Tensor

    def of(self, logits: Tensor, sequences: Tensor, start: int) -> Tensor:
        """[rows], or [rows, tokens] from the token `start` on.

        Args:
            logits: of the rows, [rows, classes] or [rows, tokens, vocabulary].
            sequences: int64 [rows], which of the batch they are.
        """
        raise NotImplementedError


class LabelEffect(Effect):
    """Drop of the label's log-probability: log p(y | all) - log p(y | hidden).

    Of labels that are all yes or no (multi-label, float [batch, classes]) the sum over them.
    """

    name = "label"

    def __init__(self, logits: Tensor, labels: Tensor | None, problem_type: str | None):
        if labels is None:
            raise ConfigurationError("`effect` 'label' needs `labels` in the batch: give them, or effect='kl'.")
        self._is_of_many = is_multi_label(logits, labels, problem_type)
        if self._is_of_many:
            self.has_answer, self._labels = labels.new_ones(len(labels), dtype=bool), labels.float()
            self._base = self._losses(logits, self._labels)
            return
        if logits.shape[1] < 2:
            raise ConfigurationError(
                f"`effect` 'label' needs probabilities of classes, and the model has {logits.shape[1]} output: give "
                "`forward`, a function of (model, batch) that returns class logits [batch, classes]."
            )
        if labels.shape != logits.shape[:1] or labels.is_floating_point() or int(labels.max()) >= logits.shape[1]:
            raise ConfigurationError(
                f"`effect` 'label' needs one class of {logits.shape[1]} per sequence as `labels`, integers of shape "
                f"{list(logits.shape[:1])}, or of a multi-label model 0.0 and 1.0 of shape {list(logits.shape)}; got "
                f"{labels.dtype} of shape {list(labels.shape)}: effect='kl' needs none."
            )
        self.has_answer = labels >= 0
        self._labels = labels.clamp(min=0).long()
        self._base = self._losses(logits, self._labels)

    def of(self, logits: Tensor, sequences: Tensor, start: int) -> Tensor:
        return self._losses(logits, self._labels[sequences]) - self._base[sequences]

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self._is_of_many:
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1)
        return F.cross_entropy(logits, labels, reduction="none")


def is_multi_label(logits: Tensor, labels: Tensor, problem_type: str | None) -> bool:
    """Whether each class is a question of its own, with labels 0 or 1: as transformers tells it from a regression."""
    is_one = problem_type == "multi_label_classification" or (problem_type is None and logits.shape[1] > 1)
    is_of_each = labels.is_floating_point() and labels.shape == logits.shape
    return is_one and is_of_each and bool(((labels == 0) | (labels == 1)).all())


class LossEffect(Effect):
    """Rise of the loss of each prediction: log p(next | all) - log p(next | hidden), at the token that predicts."""

    name = "loss"

    def __init__(self, logits: Tensor, batch: Batch, real: Tensor):
        given, ids = labels_of(batch), batch["input_ids"]
        next_ids = (ids if given is None or given.shape != ids.shape else given)[:, 1:]
        if next_ids.numel() and int(next_ids.max()) >= logits.shape[2]:
            raise ConfigurationError(
                f"`effect` 'loss' is of the next token, and `input_ids` are not among the {logits.shape[2]} outputs: "
                "give effect='kl'."
            )
        next_ids = F.pad(next_ids, (0, 1), value=-1)
        self.outputs = (next_ids >= 0) & real & F.pad(real[:, 1:], (0, 1), value=False)
        self.has_answer = self.outputs.any(1)
        self._next_ids = next_ids.clamp(min=0)
        self._base = self._losses(logits, self._next_ids)

    def of(self, logits: Tensor, sequences: Tensor, start: int) -> Tensor:
        end = start + logits.shape[1]
        return self._losses(logits, self._next_ids[sequences, start:end]) - self._base[sequences, start:end]

    @property
    def largest(self) -> float:
        """Loss of a prediction with nothing hidden."""
        return float(self._base[self.outputs].max())

    @staticmethod
    def _losses(logits: Tensor, ids: Tensor) -> Tensor:
        # Faster than a log-sum-exp and the logit of the target.
        return F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)


class DivergenceEffect(Effect):
    """Kullback-Leibler divergence Σ_y p(y | all) · (log p(y | all) - log p(y | hidden)).

    Of a multi-label model the sum over its classes, each of which is there or not.
    """

    name = "kl"

    def __init__(self, logits: Tensor, real: Tensor, problem_type: str | None):
        self._is_of_many = problem_type == "multi_label_classification" and logits.ndim == 2
        if logits.shape[-1] < 2 and not self._is_of_many:
            raise ConfigurationError(
                f"`effect` 'kl' compares distributions over classes, and the model has {logits.shape[-1]} output: "
                "give `forward`, a function of (model, batch) that returns class logits."
            )
        self.outputs = real if logits.ndim == 3 else None
        self.has_answer = real.any(1)
        self._base = self._log_probabilities(logits)

    def of(self, logits: Tensor, sequences: Tensor, start: int) -> Tensor:
        base = self._base[sequences]
        if logits.ndim == 3:
            base = base[:, start : start + logits.shape[1]]
        return F.kl_div(self._log_probabilities(logits), base, reduction="none", log_target=True).sum(-1)

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        """Of what may be said; of a multi-label model of yes and no, [rows, 2 · classes]."""
        if self._is_of_many:
            return torch.cat([F.logsigmoid(logits), F.logsigmoid(-logits)], -1)
        return logits.log_softmax(-1)


def make_effect(effect: str | None, logits: Tensor, batch: Batch, real: Tensor, problem_type: str | None) -> Effect:
    """From its name; None means what fits the outputs. See `Subject.problem_type`.

    Raises:
        ConfigurationError: it is unknown, or does not fit.
    """
    is_sequence = logits.ndim == 3
    if is_sequence and logits.shape[1] != real.shape[1]:
        raise ConfigurationError(
            f"`batch`: {real.shape[1]} tokens give {logits.shape[1]} outputs, and it is not known which of them "
            "belongs to which; explained are models with one output per token, or one per sequence."
        )
    if effect is None:
        effect = "loss" if is_sequence else "label" if labels_of(batch) is not None else "kl"
    if effect not in EFFECTS:
        raise ConfigurationError(f"`effect` must be one of {', '.join(map(repr, EFFECTS))} or None, got {effect!r}.")
    if effect == "kl":
        return DivergenceEffect(logits, real, problem_type)
    if (effect == "loss") != is_sequence:
        fits = "'loss' or 'kl'" if is_sequence else "'label' or 'kl'"
        raise ConfigurationError(f"`effect` {effect!r} does not fit logits of shape {list(logits.shape)}: give {fits}.")
    return LossEffect(logits, batch, real) if is_sequence else LabelEffect(logits, labels_of(batch), problem_type)
