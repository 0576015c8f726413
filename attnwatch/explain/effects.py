"""Effects of hiding tokens on a model's output, in nats."""

import functools
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attnwatch.errors import ConfigurationError
from attnwatch.explain.batches import Batch, labels_of
from attnwatch.explain.evaluated_model import EvaluatedModel
from attnwatch.utils.arguments import require_choice

EffectName = Literal["label", "loss", "kl"]

Loss = Callable[[Tensor, Tensor], Tensor]


class Effect:
    """Rise of the loss of rows compared with the same sequences with nothing hidden.

    Args:
        name: one of `EffectName`.
        loss: function of (logits, targets) that returns [rows], or [rows, tokens] for one output per token.
        logits: logits of the batch with nothing hidden.
        targets: targets of the batch, [batch, ...] or [batch, tokens, ...].
        outputs: outputs that count, bool [batch, tokens]; None if the model has one output per sequence.
        measurable: False for sequences without a label or a prediction, bool [batch].
    """

    def __init__(
        self, name: EffectName, loss: Loss, logits: Tensor, targets: Tensor, outputs: Tensor | None, measurable: Tensor
    ):
        self.name, self.outputs, self.measurable = name, outputs, measurable
        self._loss, self._targets = loss, targets
        self._base = loss(logits, targets)

    def measure(self, logits: Tensor, sequences: Tensor, start: int) -> Tensor:
        """Return the effects [rows], or [rows, tokens] from the token `start` on.

        Args:
            logits: logits of the rows, [rows, classes] or [rows, tokens, vocabulary].
            sequences: index of the batch's sequence that each row comes from, int64 [rows].
        """
        here = (sequences,) if self.outputs is None else (sequences, slice(start, start + logits.shape[1]))
        return self._loss(logits, self._targets[here]) - self._base[here]

    @property
    def largest_loss(self) -> float:
        """Largest loss over all outputs with nothing hidden."""
        return float(self._base[self.outputs].max())


def cross_entropies(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the negative log-probability of each id, with the shape of the ids."""
    # Faster than a log-sum-exp minus the logit of the target.
    return F.cross_entropy(logits.flatten(0, -2), ids.flatten(), reduction="none").view(ids.shape)


def _multi_label_losses(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1)


def _yes_and_no(logits: Tensor) -> Tensor:
    """Return the log-probabilities of yes and no for each class, [rows, 2 · classes]."""
    return torch.cat([F.logsigmoid(logits), F.logsigmoid(-logits)], -1)


def is_multi_label(logits: Tensor, labels: Tensor, problem_type: str | None) -> bool:
    """Return whether each class has its own label, 0.0 or 1.0; transformers recognizes regression by the same rule."""
    may_be = problem_type == "multi_label_classification" or (problem_type is None and logits.shape[1] > 1)
    is_per_class = labels.is_floating_point() and labels.shape == logits.shape
    return may_be and is_per_class and bool(((labels == 0) | (labels == 1)).all())


def make_effect(
    name: EffectName | None, logits: Tensor, batch: Batch, real: Tensor, problem_type: str | None
) -> Effect:
    """Return the effect with this name, or for None the one that fits the outputs.

    Args:
        logits: logits of the batch with nothing hidden.
        real: bool [batch, tokens], False at padding.
        problem_type: see `EvaluatedModel.problem_type`.

    Raises:
        ConfigurationError: the name is unknown, or the effect does not fit the outputs.
    """
    is_per_token = logits.ndim == 3
    if is_per_token and logits.shape[1] != real.shape[1]:
        raise ConfigurationError(
            f"`batch`: {real.shape[1]} tokens give {logits.shape[1]} outputs, and it is unknown which output "
            "belongs to which token; only models with one output per token or per sequence can be explained."
        )
    labels = labels_of(batch)
    if name is None:
        name = "loss" if is_per_token else "label" if labels is not None else "kl"
    require_choice("effect", name, EffectName, optional=True)
    if name == "kl":
        return _divergence(logits, real, problem_type)
    if (name == "loss") != is_per_token:
        fits = "'loss' or 'kl'" if is_per_token else "'label' or 'kl'"
        raise ConfigurationError(f"`effect` {name!r} does not fit logits of shape {list(logits.shape)}: give {fits}.")
    return _next_token_loss(logits, batch, real) if is_per_token else _label_loss(logits, labels, problem_type)


def _divergence(logits: Tensor, real: Tensor, problem_type: str | None) -> Effect:
    """Return the effect Σ_y p(y | all) · (log p(y | all) - log p(y | hidden)), summed for multi-label models."""
    is_multi_label = problem_type == "multi_label_classification" and logits.ndim == 2
    if logits.shape[-1] < 2 and not is_multi_label:
        raise ConfigurationError(
            f"`effect` 'kl' compares distributions over classes, but the model has {logits.shape[-1]} output: "
            "pass `forward`, a function of (model, batch) that returns class logits."
        )
    log_probabilities = _yes_and_no if is_multi_label else functools.partial(torch.log_softmax, dim=-1)

    def divergences(logits: Tensor, base: Tensor) -> Tensor:
        return F.kl_div(log_probabilities(logits), base, reduction="none", log_target=True).sum(-1)

    outputs = real if logits.ndim == 3 else None
    return Effect("kl", divergences, logits, log_probabilities(logits), outputs, real.any(1))


def _next_token_loss(logits: Tensor, batch: Batch, real: Tensor) -> Effect:
    """Return the effect log p(next | all) - log p(next | hidden), at the token that predicts."""
    given, ids = labels_of(batch), batch["input_ids"]
    next_ids = (ids if given is None or given.shape != ids.shape else given)[:, 1:]
    if next_ids.numel() and int(next_ids.max()) >= logits.shape[2]:
        raise ConfigurationError(
            f"`effect` 'loss' needs next-token predictions, but `input_ids` are not among the {logits.shape[2]} "
            "outputs: pass effect='kl'."
        )
    next_ids = F.pad(next_ids, (0, 1), value=-1)
    outputs = (next_ids >= 0) & real & F.pad(real[:, 1:], (0, 1), value=False)
    return Effect("loss", cross_entropies, logits, next_ids.clamp(min=0), outputs, outputs.any(1))


def _label_loss(logits: Tensor, labels: Tensor | None, problem_type: str | None) -> Effect:
    """Return the effect log p(y | all) - log p(y | hidden) for a label y, summed for multi-label models."""
    if labels is None:
        raise ConfigurationError("`effect` 'label' needs `labels` in the batch: pass them, or effect='kl'.")
    if is_multi_label(logits, labels, problem_type):
        everything = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        return Effect("label", _multi_label_losses, logits, labels.float(), None, everything)
    if logits.shape[1] < 2:
        raise ConfigurationError(
            f"`effect` 'label' needs probabilities of classes, but the model has {logits.shape[1]} output: pass "
            "`forward`, a function of (model, batch) that returns class logits [batch, classes]."
        )
    if labels.shape != logits.shape[:1] or labels.is_floating_point() or int(labels.max()) >= logits.shape[1]:
        raise ConfigurationError(
            f"`effect` 'label' needs one class of {logits.shape[1]} per sequence as `labels`, integers of shape "
            f"{list(logits.shape[:1])}, or for multi-label models 0.0 and 1.0 of shape {list(logits.shape)}; got "
            f"{labels.dtype} of shape {list(labels.shape)}: effect='kl' needs none."
        )
    return Effect("label", cross_entropies, logits, labels.clamp(min=0).long(), None, labels >= 0)


def check_outputs(model: EvaluatedModel, effect: EffectName | None, *, are_per_token: bool = False) -> None:
    """Raise a `ConfigurationError` if the effect can't be measured with the model's known outputs.

    Args:
        are_per_token: True if the outputs are known to be per token, even with a custom forward.
    """
    name = type(model.base).__name__
    is_encoder_decoder = getattr(model.config, "is_encoder_decoder", False) and "Classification" not in name
    if is_encoder_decoder and not model.has_custom_forward:
        raise ConfigurationError(
            f"`model`: {name} is an encoder-decoder, whose outputs belong to the decoder's tokens and not to "
            "`input_ids`: pass `forward`, a function of (model, batch) that returns logits [batch, classes], for "
            "instance those of the decoder's last token."
        )
    if effect not in (None, "loss") or (model.has_custom_forward and not are_per_token):
        return
    for kind, about in (("MaskedLM", "the hidden tokens"), ("TokenClassification", "the token itself")):
        if name.endswith(kind) or getattr(model.base, "loss_type", None) == f"For{kind}":
            raise ConfigurationError(
                f"`effect` 'loss' needs next-token predictions, but the outputs of {name} are about {about}: pass "
                "effect='kl'."
            )
