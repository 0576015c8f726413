"""Whether a score finds the tokens that matter: hide the highest first, and see what it does."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.errors import ConfigurationError
from attnwatch.explain.ablations import Ablations
from attnwatch.explain.agreement import MeanOverSequences
from attnwatch.explain.subject import Batch, Forward, Subject
from attnwatch.utils.arguments import require_int

TENTHS = tuple(tenth / 10 for tenth in range(11))


@dataclass(frozen=True)
class FaithfulnessCurve:
    """What hiding tokens in the order of a score does, beside random orders.

    Attributes:
        fractions: float [points], of the tokens that can be hidden.
        effects: float [batch, points], in nats, as `Occlusion.importance`; nan where nothing could be measured.
        random_effects: float [orders, batch, points].
        is_deletion: the tokens with the highest scores are hidden, up to the fraction; otherwise only they are not.
        num_forwards: that it took, with all curves that were made together.
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
        """float [orders, batch]."""
        return area(self.fractions, self.random_effects)

    @property
    def area(self) -> MeanOverSequences:
        return MeanOverSequences.of(self.areas)

    @property
    def random_area(self) -> MeanOverSequences:
        return MeanOverSequences.of(self.random_areas.mean(0))

    @property
    def more_than_random(self) -> MeanOverSequences:
        """Area minus the mean of the random orders', paired by sequence.

        A faithful score is above 0 in a deletion (it hurts more) and below 0 in an insertion (it heals sooner).
        """
        return MeanOverSequences.of(self.areas - self.random_areas.mean(0))


def area(fractions: Tensor, effects: Tensor) -> Tensor:
    """Trapezoids under [..., points] where they are known, divided by the width of that part; nan where there is none.

    >>> area(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 2.0, 2.0])).item()
    1.5
    """
    widths = fractions.diff()
    heights = (effects[..., 1:] + effects[..., :-1]) / 2
    known = ~heights.isnan()
    return (heights.nan_to_num() * widths).sum(-1) / (known * widths).sum(-1)


def deletion_curve(model: nn.Module | Subject, batch: Batch, scores: Tensor, **options: Any) -> FaithfulnessCurve:
    """Hides the tokens with the highest scores, more and more of them.

    Args:
        model, batch: see `occlude`.
        scores: [batch, tokens], the higher the more important; what is nan counts as the least important.
        options: `fractions` (ascending, from 0 to 1; default tenths), `num_random` orders to compare with (default 3),
            `seed` of them, and `hide`, `effect`, `tokenizer`, `mask_token_id`, `special_ids`, `tokens_per_forward` and
            `forward` of `occlude`.

    Returns:
        The effect of a language model is the mean over the predictions that remain: with hide="remove" those made at
        tokens that are not hidden, and in any case not those made at special tokens.

    Raises:
        ConfigurationError: see `occlude`; or `scores` or an option is wrong.
    """
    return _curve(model, batch, scores, is_deletion=True, **options)


def insertion_curve(model: nn.Module | Subject, batch: Batch, scores: Tensor, **options: Any) -> FaithfulnessCurve:
    """Hide all tokens but those with the highest scores, fewer and fewer of them.

    Args:
        model, batch, scores, options: see `deletion_curve`.
    """
    return _curve(model, batch, scores, is_deletion=False, **options)


def _curve(
    model: nn.Module | Subject,
    batch: Batch,
    scores: Tensor,
    *,
    is_deletion: bool,
    fractions: Sequence[float] = TENTHS,
    num_random: int = 3,
    seed: int = 0,
    forward: Forward | None = None,
    **options: Any,
) -> FaithfulnessCurve:
    subject = model if isinstance(model, Subject) else Subject(model, forward)
    with subject.asked():
        curves = Curves(
            Ablations(subject, batch, **options),
            {"": scores},
            is_deletion=is_deletion,
            fractions=fractions,
            num_random=num_random,
            seed=seed,
        )
        return curves.run()[""]


class Curves:
    """Curves of several scores over one batch, prepared; the random orders are shared. Used while the subject is asked.

    Attributes:
        num_forwards: that `run` will take.
    """

    def __init__(
        self,
        ablations: Ablations,
        scores: Mapping[str, Tensor],
        *,
        is_deletion: bool = True,
        fractions: Sequence[float] = TENTHS,
        num_random: int = 3,
        seed: int = 0,
    ):
        self._ablations, self._names, self._is_deletion = ablations, list(scores), is_deletion
        self._points = _checked_fractions(fractions).to(ablations.real.device)
        orders = ablations.subject.agreed(_orders(ablations.real, scores.values(), num_random, seed).cpu())
        hidden = hidden_by_orders(ablations.hideable, orders.to(ablations.real.device), self._points, is_deletion)
        sequences = torch.arange(hidden.shape[1], device=hidden.device)[None, :, None].expand(hidden.shape[:-1])
        self._hides = hidden.any(-1) & ablations.effect.has_answer[:, None]
        self._rows, self._sequences = hidden[self._hides], sequences[self._hides]
        self.num_forwards = len(ablations.chunks(self._sequences, self._rows)) if len(self._rows) else 0

    def run(self) -> dict[str, FaithfulnessCurve]:
        ablations = self._ablations
        effects = torch.zeros(self._hides.shape, device=self._hides.device)
        if len(self._rows):
            found = ablations.effects(self._sequences, self._rows)
            effects[self._hides] = _over_outputs(ablations, found, self._sequences, self._rows)
        unknown = ~(ablations.effect.has_answer & ablations.hideable.any(1))
        effects.masked_fill_(unknown[:, None], torch.nan)
        num_forwards = ablations.num_preparing + self.num_forwards
        given, by_chance = effects[: len(self._names)], effects[len(self._names) :]
        return {
            name: FaithfulnessCurve(self._points.float(), each, by_chance, self._is_deletion, num_forwards)
            for name, each in zip(self._names, given, strict=True)
        }


def hidden_by_orders(hideable: Tensor, orders: Tensor, fractions: Tensor, is_deletion: bool) -> Tensor:
    """bool [orders, batch, points, tokens]: what is hidden at each fraction of what can be hidden.

    Args:
        hideable: bool [batch, tokens].
        orders: [orders, batch, tokens], scores, the higher the sooner; equal ones in the order of the text.
        fractions: [points].
    """
    known = orders.masked_fill(~hideable, -torch.inf)
    ranks = known.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    numbers = (hideable.sum(1, keepdim=True).double() * fractions.double()).round()  # [batch, points]
    among_first = ranks[:, :, None, :] < numbers[:, :, None]
    return (among_first if is_deletion else ~among_first) & hideable[:, None, :]


def _over_outputs(ablations: Ablations, effects: Tensor, sequences: Tensor, hidden: Tensor) -> Tensor:
    """[rows]: the mean over the outputs that remain; nan where none does."""
    if ablations.effect.outputs is None:
        return effects
    remain = (ablations.effect.outputs & ablations.hideable)[sequences]
    if ablations.takes_away_outputs:
        remain = remain & ~hidden
    return effects.masked_fill(~remain, 0.0).sum(1) / remain.sum(1)


def _orders(real: Tensor, scores: Iterable[Tensor], num_random: int, seed: int) -> Tensor:
    """Scores [orders, batch, tokens], the random ones last."""
    require_int("num_random", num_random, minimum=1)
    require_int("seed", seed, minimum=0)
    orders = []
    for each in scores:
        if not isinstance(each, Tensor) or each.shape != real.shape:
            got = list(each.shape) if isinstance(each, Tensor) else type(each).__name__
            raise ConfigurationError(
                f"`scores` must be a tensor of shape {list(real.shape)} as `input_ids`, got {got}."
            )
        orders.append(each.to(real.device).double().nan_to_num(nan=torch.finfo(torch.float64).min))
    generator = torch.Generator().manual_seed(seed)
    by_chance = torch.rand(num_random, *real.shape, generator=generator, dtype=torch.float64)
    return torch.cat([torch.stack(orders), by_chance.to(real.device)])


def _checked_fractions(fractions: Sequence[float]) -> Tensor:
    points = torch.tensor(fractions, dtype=torch.float64)
    if len(points) < 2 or points[0] < 0 or points[-1] > 1 or bool((points.diff() <= 0).any()):
        raise ConfigurationError(f"`fractions` must ascend between 0 and 1, at least two of them; got {fractions!r}.")
    return points
