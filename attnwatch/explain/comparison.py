"""Comparison of attributions from attention and gradients with the importance of hidden tokens."""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from attnwatch.errors import ConfigurationError, NoAttentionError
from attnwatch.explain.agreement import MeanOverSequences, rank_correlation
from attnwatch.explain.attributions import AttentionAttribution, Readout, attention_attribution, gradient_times_input
from attnwatch.explain.batches import Batch
from attnwatch.explain.evaluated_model import EvaluatedModel, Forward
from attnwatch.explain.occlusion import Occlusion

# Below this mean rank correlation, attention should not be taken for importance: 0.2 explains 4% of the variance of
# the ranks. In work that rejects attention as an explanation, its correlations with leave-one-out and gradients are
# about 0.2 to 0.5 (Kendall's tau; Jain and Wallace 2019, arXiv 1902.10186, table 2).
DISAGREEMENT = 0.2
# Number of standard errors by which a mean must exceed zero (one-sided 97.5%).
_STANDARD_ERRORS = 1.96


@dataclass(frozen=True)
class Comparison:
    """Spearman's rank correlations with |importance|, for each sequence over the hidden tokens.

    Attributes:
        sites: observed attention layers.
        attention: correlation of the attention received, float64 [layers, batch].
        rollout: correlation of the attention rollout up to each layer, float64 [layers, batch].
        gradient: correlation of gradient × input, float64 [batch].
        attribution: attribution of attention; None if attention could not be observed.
        gradient_scores: gradient × input, float [batch, tokens].
        why_no_attention: reason why attention could not be observed; empty if it was.
    """

    sites: tuple[str, ...]
    attention: Tensor
    rollout: Tensor
    gradient: Tensor
    attribution: AttentionAttribution | None
    gradient_scores: Tensor
    why_no_attention: str = ""

    def __str__(self) -> str:
        """Return the means over sequences, for attention also over its layers."""
        means = self.means()
        named = {"attention received": "attention", "rollout": "rollout", "gradient × input": "gradient"}
        parts = [f"{name} {means.get(key, 'not observed')}" for name, key in named.items()]
        return "rank correlation with |importance|: " + "; ".join(parts)

    def means(self) -> dict[str, MeanOverSequences]:
        """Return the mean correlation of each observed score, by name as in `scores`."""
        values = {"attention": self.attention, "rollout": self.rollout, "gradient": self.gradient}
        return {name: MeanOverSequences.of(each) for name, each in values.items() if each.numel()}

    def scores(self) -> dict[str, Tensor]:
        """Return scores [batch, tokens]: mean attention received over layers, last rollout, and gradient × input."""
        gradient = {"gradient": self.gradient_scores}
        if self.attribution is None:
            return gradient
        return {"attention": self.attribution.received.mean(0), "rollout": self.attribution.rollout[-1], **gradient}


def compare(
    model: nn.Module | EvaluatedModel,
    batch: Batch,
    occlusion: Occlusion,
    *,
    readout: Readout | None = None,
    forward: Forward | None = None,
) -> Comparison:
    """Compare the importance of hidden tokens with the scores from attention and gradients.

    This runs one forward with observed attention, and one forward with a backward. Magnitudes are compared, because
    attention has no sign.

    Args:
        model, batch, forward: arguments passed to `occlude`.
        occlusion: result of `occlude`.
        readout: see `attention_attribution`.

    Raises:
        ConfigurationError: `occlusion` belongs to a batch with another shape, or `readout` is unknown.

    Example:
        >>> import torch
        >>> from attnwatch.explain import occlude
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.randint(3, 50, (4, 8)), "labels": torch.tensor([0, 1, 1, 0])}
        >>> compare(model, batch, occlude(model, batch)).attention.shape  # [layers, batch]
        torch.Size([2, 4])
    """
    evaluated = EvaluatedModel.of(model, forward)
    if occlusion.importance.shape != batch["input_ids"].shape:
        raise ConfigurationError(
            f"`occlusion` is from a batch of shape {list(occlusion.importance.shape)}, but `input_ids` has shape "
            f"{list(batch['input_ids'].shape)}: pass the batch that was occluded."
        )
    magnitude = occlusion.importance.abs()
    sites: tuple[str, ...] = ()
    attribution, why_not = None, ""
    received = rollout = magnitude[None][:0]
    try:
        attribution = attention_attribution(evaluated, batch, readout=readout)
        sites, received, rollout = attribution.sites, attribution.received, attribution.rollout
    except NoAttentionError as error:
        why_not = str(error)
    gradient = gradient_times_input(evaluated, batch, effect=occlusion.effect)
    by_attention, by_rollout, by_gradient = (
        rank_correlation(each, magnitude) for each in (received, rollout, gradient)
    )
    return Comparison(sites, by_attention, by_rollout, by_gradient, attribution, gradient, why_not)


def agrees(correlation: MeanOverSequences, threshold: float = DISAGREEMENT) -> bool:
    """Return whether a mean rank correlation is at least the threshold and significantly above 0; True if unknown."""
    if math.isnan(correlation.mean):
        return True
    is_certain = math.isnan(correlation.stderr) or correlation.mean > _STANDARD_ERRORS * correlation.stderr
    return correlation.mean >= threshold and is_certain
