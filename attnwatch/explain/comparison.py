"""Attention's and the gradient's stories, held against what hiding tokens does."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnwatch.errors import ConfigurationError, NoAttentionError
from attnwatch.explain.agreement import MeanOverSequences, rank_correlation
from attnwatch.explain.occlusion import Occlusion
from attnwatch.explain.stories import AttentionStories, attention_stories, gradient_times_input
from attnwatch.explain.subject import Batch, Forward, Subject

# Below this mean rank correlation attention is not taken for importance: 0.2 explains 4% of the variance of the ranks.
# Published correlations with leave-one-out and gradients, where attention was called no explanation, are about
# 0.2 to 0.5 (Kendall's tau; Jain & Wallace 2019, arXiv 1902.10186, table 2).
DISAGREEMENT = 0.2
# A mean of so many standard errors is above zero for certain enough (one-sided 97.5%).
_STANDARD_ERRORS = 1.96


@dataclass(frozen=True)
class Comparison:
    """Spearman's rank correlations with |importance|, per sequence and over its tokens that were hidden.

    Attributes:
        sites: attention layers that were observed.
        attention: of attention received, float64 [layers, batch].
        rollout: of attention rollout up to the layer, float64 [layers, batch].
        gradient: of gradient × input, float64 [batch].
        stories: what attention said; None where it could not be observed.
        gradient_scores: float [batch, tokens].
        why_no_attention: why it could not be observed; empty where it was.
    """

    sites: tuple[str, ...]
    attention: Tensor
    rollout: Tensor
    gradient: Tensor
    stories: AttentionStories | None
    gradient_scores: Tensor
    why_no_attention: str = ""

    def __str__(self) -> str:
        """Means over sequences; attention's over its layers too."""
        told = {"attention received": self.attention, "rollout": self.rollout, "gradient × input": self.gradient}
        parts = [f"{name} {summary(values) if values.numel() else 'not observed'}" for name, values in told.items()]
        return "rank correlation with |importance|: " + "; ".join(parts)

    def scores(self) -> dict[str, Tensor]:
        """[batch, tokens] by name: attention received, the mean over layers; rollout through all; gradient × input."""
        gradient = {"gradient": self.gradient_scores}
        if self.stories is None:
            return gradient
        return {"attention": self.stories.received.mean(0), "rollout": self.stories.rollout[-1], **gradient}


def compare(
    model: nn.Module | Subject,
    batch: Batch,
    occlusion: Occlusion,
    *,
    readout: str | None = None,
    forward: Forward | None = None,
) -> Comparison:
    """Compare what hiding tokens has shown with what attention and gradients say of them.

    Takes one forward whose attention is observed, and one forward with a backward. Magnitudes are compared: attention
    can't say that a token speaks against the label.

    Args:
        model, batch, forward: as they were given to `occlude`.
        occlusion: what `occlude` has returned.
        readout: see `attention_stories`.
    """
    subject = model if isinstance(model, Subject) else Subject(model, forward)
    if occlusion.importance.shape != batch["input_ids"].shape:
        raise ConfigurationError(
            f"`occlusion` is of a batch of shape {list(occlusion.importance.shape)}, and `input_ids` are "
            f"{list(batch['input_ids'].shape)}: give the batch that it is of."
        )
    stories, why_not = None, ""
    try:
        stories = attention_stories(subject, batch, readout=readout)
    except NoAttentionError as error:
        why_not = str(error)
    gradient = gradient_times_input(subject, batch, effect=occlusion.effect)
    size = occlusion.importance.abs()
    return Comparison(
        () if stories is None else stories.sites,
        _correlations(None if stories is None else stories.received, size),
        _correlations(None if stories is None else stories.rollout, size),
        rank_correlation(gradient, size),
        stories,
        gradient,
        why_not,
    )


def _correlations(layers: Tensor | None, size: Tensor) -> Tensor:
    """[layers, batch]."""
    if layers is None:
        return torch.empty(0, len(size), dtype=torch.float64, device=size.device)
    return torch.stack([rank_correlation(each, size) for each in layers])


def agrees(correlation: MeanOverSequences, threshold: float = DISAGREEMENT) -> bool:
    """Whether a mean rank correlation is at least the threshold and above zero for certain; so where it is unknown."""
    if correlation.mean != correlation.mean:
        return True
    is_certain = not correlation.mean <= _STANDARD_ERRORS * correlation.stderr  # nan: of one sequence, nobody knows
    return correlation.mean >= threshold and is_certain


def summary(values: Tensor) -> MeanOverSequences:
    """Over sequences, of [batch] or of the mean over layers of [layers, batch]."""
    return MeanOverSequences.of(values if values.ndim == 1 else values.nanmean(0))
