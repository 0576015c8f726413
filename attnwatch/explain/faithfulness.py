"""Faithfulness of a score, measured by hiding the tokens with the highest scores first."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.errors import ConfigurationError
from attnwatch.explain.agreement import MeanOverSequences
from attnwatch.explain.batches import Batch
from attnwatch.explain.effects import EffectName
from attnwatch.explain.evaluated_model import EvaluatedModel, Forward
from attnwatch.explain.hiding import HidingName, HidingOptions
from attnwatch.explain.masked_forwards import MaskedForwards
from attnwatch.utils.arguments import require_int

TENTHS = tuple(tenth / 10 for tenth in range(11))


@dataclass(frozen=True)
class FaithfulnessCurve:
    """Effect of hiding tokens in the order of a score, compared with random orders.

    Attributes:
        fractions: fractions of the tokens that can be hidden, float [points].
        effects: effects in nats, as in `Occlusion.importance`, float [batch, points]; nan if nothing could be
            measured.
        random_effects: effects of the random orders, float [orders, batch, points].
        is_deletion: True if the fraction of tokens with the highest scores is hidden; False if all other tokens are.
        num_forwards: number of forwards, including those of all curves computed together.
    """

    fractions: Tensor
    effects: Tensor
    random_effects: Tensor
    is_deletion: bool
    num_forwards: int

    def __str__(self) -> str:
        kind = "deletion" if self.is_deletion else "insertion"
        return f"{kind}: area {self.area} nats, at random {self.random_area}, difference {self.more_than_random}"

    @property
    def areas(self) -> Tensor:
        """Mean effect over the fractions (trapezoids), float [batch]."""
        return area(self.fractions, self.effects)

    @property
    def random_areas(self) -> Tensor:
        """Areas of the random orders, float [orders, batch]."""
        return area(self.fractions, self.random_effects)

    @property
    def area(self) -> MeanOverSequences:
        """Mean of `areas`."""
        return MeanOverSequences.of(self.areas)

    @property
    def random_area(self) -> MeanOverSequences:
        """Mean of `random_areas`."""
        return MeanOverSequences.of(self.random_areas.mean(0))

    @property
    def more_than_random(self) -> MeanOverSequences:
        """Area minus the mean area of the random orders, paired by sequence.

        For a faithful score, it is above 0 in the deletion curve, where hiding hurts more, and below 0 in the insertion
        curve, where the output recovers sooner.
        """
        return MeanOverSequences.of(self.areas - self.random_areas.mean(0))


def area(fractions: Tensor, effects: Tensor) -> Tensor:
    """Return the mean of effects [..., points] over the fractions with known effects; nan if none is known.

    >>> area(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 2.0, 2.0])).item()
    1.5
    """
    widths = fractions.diff()
    heights = (effects[..., 1:] + effects[..., :-1]) / 2
    known = ~heights.isnan()
    return (heights.nan_to_num() * widths).sum(-1) / (known * widths).sum(-1)


def deletion_curve(
    model: nn.Module | EvaluatedModel,
    batch: Batch,
    scores: Tensor,
    *,
    fractions: Sequence[float] = TENTHS,
    num_random: int = 3,
    seed: int = 0,
    hide: HidingName = "remove",
    effect: EffectName | None = None,
    tokenizer: Any = None,
    mask_token_id: int | None = None,
    special_ids: Collection[int] | None = None,
    tokens_per_forward: int | None = None,
    forward: Forward | None = None,
    insertion: bool = False,
) -> FaithfulnessCurve:
    """Measure the effect of hiding more and more tokens, highest scores first.

    Args:
        model, batch: see `occlude`.
        scores: scores [batch, tokens], higher for more important tokens; nan counts as the least important.
        fractions: ascending fractions between 0 and 1 of the tokens that can be hidden.
        num_random: number of random orders to compare with.
        seed: seed of the random orders.
        hide, effect, tokenizer, mask_token_id, special_ids, tokens_per_forward, forward: see `occlude`.
        insertion: return the insertion curve instead, for which all tokens except those with the highest scores are
            hidden.

    Returns:
        The curve. The effect of a language model is the mean over its predictions, except those at special tokens and,
        with hide="remove", those at hidden tokens.

    Raises:
        ConfigurationError: see `occlude`; or `scores`, `fractions` or `num_random` is invalid.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
        >>> batch = {"input_ids": torch.randint(3, 50, (2, 8)), "labels": torch.tensor([0, 1])}
        >>> deletion_curve(BertForSequenceClassification(config), batch, torch.rand(2, 8)).effects.shape
        torch.Size([2, 11])
    """
    options = HidingOptions(hide, effect, tokenizer, mask_token_id, special_ids, tokens_per_forward)
    evaluated = EvaluatedModel.of(model, forward)
    with evaluated.evaluating():
        return FaithfulnessPlan(
            MaskedForwards(evaluated, batch, options),
            {"": scores},
            is_deletion=not insertion,
            fractions=fractions,
            num_random=num_random,
            seed=seed,
        ).run()[""]


class FaithfulnessPlan:
    """Curves of several scores for one batch, with the number of forwards known in advance.

    The model must be in `EvaluatedModel.evaluating`.

    Args:
        forwards: forwards of the batch with hidden tokens.
        scores: scores by name; all curves share the random orders.
        is_deletion: True to compute deletion curves, False for insertion curves.
        fractions, num_random, seed: see `deletion_curve`.

    Attributes:
        num_forwards: number of forwards that `run` will take.
    """

    def __init__(
        self,
        forwards: MaskedForwards,
        scores: Mapping[str, Tensor],
        *,
        is_deletion: bool = True,
        fractions: Sequence[float] = TENTHS,
        num_random: int = 3,
        seed: int = 0,
    ):
        self._forwards, self._names, self._is_deletion = forwards, list(scores), is_deletion
        batch = forwards.batch
        self._points = _checked_fractions(fractions).to(batch.real.device)
        orders = batch.model.broadcast(_orders(batch.real, scores.values(), num_random, seed).cpu())
        hidden = hidden_by_orders(batch.hideable, orders.to(batch.real.device), self._points, is_deletion)
        sequences = torch.arange(hidden.shape[1], device=hidden.device)[None, :, None].expand(hidden.shape[:-1])
        self._hides = hidden.any(-1) & forwards.effect.measurable[:, None]
        self._rows, self._sequences = hidden[self._hides], sequences[self._hides]
        self.num_forwards = len(forwards.chunks(self._sequences, self._rows))

    def run(self) -> dict[str, FaithfulnessCurve]:
        """Return the curve of each score."""
        forwards = self._forwards
        effects = torch.zeros(self._hides.shape, device=self._hides.device)
        found = forwards.effects(self._sequences, self._rows)
        effects[self._hides] = _mean_over_outputs(forwards, found, self._sequences, self._rows)
        unknown = ~(forwards.effect.measurable & forwards.batch.hideable.any(1))
        effects.masked_fill_(unknown[:, None], torch.nan)
        num_forwards = forwards.num_preparing + self.num_forwards
        given, by_chance = effects[: len(self._names)], effects[len(self._names) :]
        return {
            name: FaithfulnessCurve(self._points.float(), each, by_chance, self._is_deletion, num_forwards)
            for name, each in zip(self._names, given, strict=True)
        }


def hidden_by_orders(hideable: Tensor, orders: Tensor, fractions: Tensor, is_deletion: bool) -> Tensor:
    """Return a mask of the tokens hidden at each fraction, bool [orders, batch, points, tokens].

    Args:
        hideable: mask of the tokens that can be hidden, bool [batch, tokens].
        orders: scores [orders, batch, tokens]; the highest come first, equal scores in text order.
        fractions: fractions of the tokens that can be hidden, [points].
    """
    known = orders.masked_fill(~hideable, -torch.inf)
    ranks = known.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    numbers = (hideable.sum(1, keepdim=True).double() * fractions.double()).round()  # [batch, points]
    among_first = ranks[:, :, None, :] < numbers[:, :, None]
    return (among_first if is_deletion else ~among_first) & hideable[:, None, :]


def _mean_over_outputs(forwards: MaskedForwards, effects: Tensor, sequences: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean effect over the remaining outputs, [rows]; nan if none remains."""
    if forwards.effect.outputs is None:
        return effects
    remain = (forwards.effect.outputs & forwards.batch.hideable)[sequences]
    if forwards.batch.removes_outputs:
        remain = remain & ~hidden
    return effects.masked_fill(~remain, 0.0).sum(1) / remain.sum(1)


def _orders(real: Tensor, scores: Iterable[Tensor], num_random: int, seed: int) -> Tensor:
    """Return the scores [orders, batch, tokens], random ones last."""
    require_int("num_random", num_random, minimum=1)
    require_int("seed", seed, minimum=0)
    orders = []
    for each in scores:
        if not isinstance(each, Tensor) or each.shape != real.shape:
            got = list(each.shape) if isinstance(each, Tensor) else type(each).__name__
            raise ConfigurationError(
                f"`scores` must be a tensor of shape {list(real.shape)} like `input_ids`, got {got}."
            )
        orders.append(each.to(real.device).double().nan_to_num(nan=torch.finfo(torch.float64).min))
    generator = torch.Generator().manual_seed(seed)
    by_chance = torch.rand(num_random, *real.shape, generator=generator, dtype=torch.float64)
    return torch.cat([torch.stack(orders), by_chance.to(real.device)])


def _checked_fractions(fractions: Sequence[float]) -> Tensor:
    points = torch.tensor(fractions, dtype=torch.float64)
    if len(points) < 2 or points[0] < 0 or points[-1] > 1 or bool((points.diff() <= 0).any()):
        raise ConfigurationError(
            f"`fractions` must be at least two ascending numbers between 0 and 1; got {fractions!r}."
        )
    return points
