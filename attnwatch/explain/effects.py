"""Effects of hiding tokens on a model's output, in nats."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attnwatch.errors import ConfigurationError
from attnwatch.explain.batches import Batch, labels_of
from attnwatch.explain.evaluated_model import EvaluatedModel
from attnwatch.utils.arguments import require_choice

EffectName = Literal["label", "loss", "kl"]


class Effect:
    """Change of the output of rows, against the same sequences with nothing hidden.

    Attributes:
        name: one of `EffectName`.
        outputs: bool [batch, tokens], the outputs that count; None if the model has one output per sequence.
        measurable: bool [batch], False for sequences without a label or a prediction.
    """

    name: EffectName
    outputs: Tensor | None = None
    measurable: Tensor

    def measure(self, logits: Tensor, sequences: Tensor, start: int) -> Tensor:
        """Return the effects [rows], or [rows, tokens] from the token `start` on.

        Args:
            logits: of the rows, [rows, classes] or [rows, tokens, vocabulary].
            sequences: int64 [rows], the sequence of the batch that each row comes from.
        """
        raise NotImplementedError


class LabelEffect(Effect):
    """Drop of the label's log-probability: log p(y | all) - log p(y | hidden).

    For multi-label models, float labels [batch, classes], the sum over classes.
    """

    name = "label"

    def __init__(self, logits: Tensor, labels: Tensor | None, problem_type: str | None):
        if labels is None:
            raise ConfigurationError("`effect` 'label' needs `labels` in the batch: give them, or effect='kl'.")
        self._is_multi_label = is_multi_label(logits, labels, problem_type)
        if self._is_multi_label:
            self.measurable = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
            self._labels = labels.float()
        else:
            _check_classes(logits, labels)
            self.measurable = labels >= 0
            self._labels = labels.clamp(min=0).long()
        self._base = self._losses(logits, self._labels)

    def measure(self, logits: Tensor, sequences: Tensor, start: int) -> Tensor:
        return self._losses(logits, self._labels[sequences]) - self._base[sequences]

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self._is_multi_label:
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1)
        return F.cross_entropy(logits, labels, reduction="none")


class LossEffect(Effect):
    """Rise of each prediction's loss: log p(next | all) - log p(next | hidden), at the token that predicts.

    Attributes:
        largest: largest loss of a prediction with nothing hidden.
    """

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
        self.outputs: Tensor = (next_ids >= 0) & real & F.pad(real[:, 1:], (0, 1), value=False)
        self.measurable = self.outputs.any(1)
        self._next_ids = next_ids.clamp(min=0)
        self._base = self._losses(logits, self._next_ids)

    def measure(self, logits: Tensor, sequences: Tensor, start: int) -> Tensor:
        end = start + logits.shape[1]
        return self._losses(logits, self._next_ids[sequences, start:end]) - self._base[sequences, start:end]

    @property
    def largest(self) -> float:
        return float(self._base[self.outputs].max())

    @staticmethod
    def _losses(logits: Tensor, ids: Tensor) -> Tensor:
        # Faster than a log-sum-exp and the logit of the target.
        return F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)


class DivergenceEffect(Effect):
    """Kullback-Leibler divergence Σ_y p(y | all) · (log p(y | all) - log p(y | hidden)).

    For multi-label models the sum of the divergences of all classes.
    """

    name = "kl"

    def __init__(self, logits: Tensor, real: Tensor, problem_type: str | None):
        self._is_multi_label = problem_type == "multi_label_classification" and logits.ndim == 2
        if logits.shape[-1] < 2 and not self._is_multi_label:
            raise ConfigurationError(
                f"`effect` 'kl' compares distributions over classes, and the model has {logits.shape[-1]} output: "
                "give `forward`, a function of (model, batch) that returns class logits."
            )
        self.outputs = real if logits.ndim == 3 else None
        self.measurable = real.any(1)
        self._base = self._log_probabilities(logits)

    def measure(self, logits: Tensor, sequences: Tensor, start: int) -> Tensor:
        base = self._base[sequences]
        if logits.ndim == 3:
            base = base[:, start : start + logits.shape[1]]
        return F.kl_div(self._log_probabilities(logits), base, reduction="none", log_target=True).sum(-1)

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        """Return them over the last axis; for multi-label models those of yes and of no, [rows, 2 · classes]."""
        if self._is_multi_label:
            return torch.cat([F.logsigmoid(logits), F.logsigmoid(-logits)], -1)
        return logits.log_softmax(-1)


def is_multi_label(logits: Tensor, labels: Tensor, problem_type: str | None) -> bool:
    """Return whether each class has a label of its own, 0.0 or 1.0; transformers tells regression apart alike."""
    may_be = problem_type == "multi_label_classification" or (problem_type is None and logits.shape[1] > 1)
    is_per_class = labels.is_floating_point() and labels.shape == logits.shape
    return may_be and is_per_class and bool(((labels == 0) | (labels == 1)).all())


def make_effect(
    name: EffectName | None, logits: Tensor, batch: Batch, real: Tensor, problem_type: str | None
) -> Effect:
    """Return the effect of this name; None means the one that fits the outputs.

    Args:
        logits: of the batch with nothing hidden.
        real: bool [batch, tokens], False at padding.
        problem_type: see `EvaluatedModel.problem_type`.

    Raises:
        ConfigurationError: the name is unknown, or the effect does not fit the outputs.
    """
    is_per_token = logits.ndim == 3
    if is_per_token and logits.shape[1] != real.shape[1]:
        raise ConfigurationError(
            f"`batch`: {real.shape[1]} tokens give {logits.shape[1]} outputs, and it is not known which of them "
            "belongs to which; only models with one output per token, or one per sequence, can be explained."
        )
    if name is None:
        name = "loss" if is_per_token else "label" if labels_of(batch) is not None else "kl"
    require_choice("effect", name, EffectName, optional=True)
    if name == "kl":
        return DivergenceEffect(logits, real, problem_type)
    if (name == "loss") != is_per_token:
        fits = "'loss' or 'kl'" if is_per_token else "'label' or 'kl'"
        raise ConfigurationError(f"`effect` {name!r} does not fit logits of shape {list(logits.shape)}: give {fits}.")
    return LossEffect(logits, batch, real) if is_per_token else LabelEffect(logits, labels_of(batch), problem_type)


def check_outputs(model: EvaluatedModel, effect: EffectName | None, *, are_per_token: bool = False) -> None:
    """Raise a `ConfigurationError` if the model is known to have outputs that the effect can't be measured by.

    Args:
        are_per_token: the outputs are known to be per token; a custom forward may return others than the model's.
    """
    name = type(model.base).__name__
    is_encoder_decoder = getattr(model.config, "is_encoder_decoder", False) and "Classification" not in name
    if is_encoder_decoder and not model.has_custom_forward:
        raise ConfigurationError(
            f"`model`: {name} is an encoder-decoder, whose outputs belong to the decoder's tokens and not to "
            "`input_ids`: give `forward`, a function of (model, batch) that returns logits [batch, classes], for "
            "instance those of the decoder's last token."
        )
    if effect not in (None, "loss") or (model.has_custom_forward and not are_per_token):
        return
    for kind, about in (("MaskedLM", "the hidden tokens"), ("TokenClassification", "the token itself")):
        if name.endswith(kind) or getattr(model.base, "loss_type", None) == f"For{kind}":
            raise ConfigurationError(
                f"`effect` 'loss' is of the next token, and the outputs of {name} are about {about}: give effect='kl'."
            )


def _check_classes(logits: Tensor, labels: Tensor) -> None:
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
