"""Key inputs by hiding them (occlusion: Zeiler & Fergus 2014, arXiv 1311.2901; erasure: Li et al. 2016, 1612.08220)."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.attention import stratified_rows
from attnwatch.errors import ConfigurationError
from attnwatch.explain.ablations import Ablations
from attnwatch.explain.checks import check_batch
from attnwatch.explain.subject import Batch, Forward, Subject, token_mask
from attnwatch.utils.arguments import require_int

REASONS = (
    "hidden",
    "padding",
    "a special token",
    "in no unit",
    "not sampled",
    "nothing to measure by: no label, or nothing is predicted",
    "no prediction depends on it",
    "the output was not finite",
)
_HIDDEN, _PADDING, _SPECIAL, _NO_UNIT, _NOT_SAMPLED, _NO_ANSWER, _NO_OUTPUT, _NOT_FINITE = range(len(REASONS))


@dataclass(frozen=True)
class Occlusion:
    """What hiding each token changed, in nats.

    Attributes:
        importance: float [batch, tokens]; nan where the token was not hidden. With outputs at every token the mean over
            those of the sequence.
        matrix: float [batch, hidden token, output], where the model says something at every token: a prediction is at
            the token that makes it. Causal: 0 before the hidden token. nan: not hidden, no output, or, where tokens are
            removed, the hidden token's own output. None where the model says one thing about a sequence.
        reasons: int [batch, tokens], index into `REASONS`.
        hide, effect: how it was hidden, and what was measured.
        route: "suffixes" (only what comes after a hidden token was computed) or "whole".
        why_whole: why not "suffixes".
        num_forwards: that it took.
    """

    importance: Tensor
    matrix: Tensor | None
    reasons: Tensor
    hide: str
    effect: str
    route: str
    why_whole: str
    num_forwards: int

    def __str__(self) -> str:
        known = self.importance[self.importance.isfinite()]
        largest = f", largest importance {known.abs().max():.3g} nats" if len(known) else ""
        return (
            f"{len(known)} of {self.importance.numel()} tokens hidden by {self.hide!r}, effect {self.effect!r}, in "
            f"{self.num_forwards} forwards{largest}"
        )

    def why_not(self, sequence: int, token: int) -> str:
        """Why a token has no importance; "hidden" where it has."""
        return REASONS[int(self.reasons[sequence, token])]


class Occlusions:
    """Occlusion of one batch, prepared: the number of forwards is known. Used while `subject.asked()` is open.

    Args: see `occlude`; `options` are those of `Ablations`.
    """

    def __init__(
        self,
        subject: Subject,
        batch: Batch,
        *,
        units: Tensor | None = None,
        max_units: int | None = None,
        seed: int = 0,
        **options: Any,
    ):
        require_int("max_units", max_units, minimum=1, optional=True)
        require_int("seed", seed, minimum=0)
        check_batch(batch)
        self._hide = options.get("hide", "remove")
        shape = token_mask(batch).shape
        if units is not None and (units.shape != shape or units.is_floating_point() or units.dtype == torch.bool):
            raise ConfigurationError(
                f"`units` must be integers of shape {list(shape)} as `input_ids`, -1 where nothing is hidden; got "
                f"{units.dtype} of shape {list(units.shape)}."
            )
        self.ablations = Ablations(subject, batch, **options)
        self._choose(units, max_units, torch.Generator().manual_seed(seed))
        num_chunks = len(self.ablations.chunks(self._sequences, self._hidden)) if len(self._hidden) else 0
        self.num_forwards = self.ablations.num_preparing + num_chunks

    def run(self, *, show_progress: bool = False) -> Occlusion:
        ablations = self.ablations
        importance = torch.full(ablations.real.shape, torch.nan, device=ablations.real.device)
        outputs = ablations.effect.outputs
        matrix = None if outputs is None else importance[:, :, None].repeat(1, 1, importance.shape[1])
        if len(self._hidden):
            effects = ablations.effects(self._sequences, self._hidden, show_progress=show_progress)
            self._fill(effects, importance, matrix)
        return Occlusion(
            importance,
            matrix,
            self._reasons,
            self._hide,
            ablations.effect.name,
            ablations.route,
            ablations.why_whole,
            self.num_forwards,
        )

    def _choose(self, units: Tensor | None, max_units: int | None, generator: torch.Generator) -> None:
        """Rows to ask about: of each sequence its units, or some of them from equal strata."""
        ablations = self.ablations
        real, hideable = ablations.real, ablations.hideable
        reasons = torch.full(real.shape, _HIDDEN, device=real.device)
        units = torch.arange(real.shape[1], device=real.device).expand(real.shape) if units is None else units
        reasons[units.to(real.device) < 0] = _NO_UNIT
        reasons[~ablations.effect.has_answer] = _NO_ANSWER
        reasons[ablations.special] = _SPECIAL
        reasons[~real] = _PADDING
        sequences, rows = [], []
        for sequence in range(len(real)):
            candidates = hideable[sequence] & (reasons[sequence] == _HIDDEN)
            numbers = units[sequence].to(real.device)
            members = numbers[candidates].unique()[:, None] == numbers
            members &= candidates
            members = members[members.int().argmax(1).argsort(stable=True)]  # in the order of the text
            speaks = self._has_output(sequence, members)
            reasons[sequence][members[~speaks].any(0)] = _NO_OUTPUT
            members = members[speaks]
            chosen = stratified_rows(len(members), max_units, generator)
            left_out = torch.ones(len(members), dtype=torch.bool)
            left_out[chosen] = False
            reasons[sequence][members[left_out.to(real.device)].any(0)] = _NOT_SAMPLED
            rows.append(members[chosen.to(real.device)])
            sequences += [sequence] * len(chosen)
        self._sequences = torch.tensor(sequences, dtype=torch.int64, device=real.device)
        self._hidden = torch.cat(rows)
        self._reasons = reasons

    def _has_output(self, sequence: int, members: Tensor) -> Tensor:
        """bool [units]: whether the unit can change an output that counts."""
        outputs = self.ablations.effect.outputs
        if outputs is None:
            return torch.ones(len(members), dtype=torch.bool, device=members.device)
        return self._counts(outputs[sequence].expand_as(members), members).any(1)

    def _counts(self, outputs: Tensor, members: Tensor) -> Tensor:
        """bool [rows, tokens]: outputs that hiding these tokens can change."""
        if self.ablations.takes_away_outputs:
            outputs = outputs & ~members
        return outputs & (members.cummax(1).values if self.ablations.effect.name == "loss" else True)

    def _fill(self, effects: Tensor, importance: Tensor, matrix: Tensor | None) -> None:
        """Every token of a unit gets what the unit did."""
        if matrix is None:
            values = effects
        else:
            outputs = self.ablations.effect.outputs[self._sequences]
            values = effects.masked_fill(~self._counts(outputs, self._hidden), 0.0)
            undefined = ~outputs | (self._hidden & self.ablations.takes_away_outputs)
            effects = values.masked_fill(undefined, torch.nan)
            values = values.sum(1) / outputs.sum(1)
        for row, (sequence, members) in enumerate(zip(self._sequences.tolist(), self._hidden, strict=True)):
            if not values[row].isfinite():
                self._reasons[sequence][members] = _NOT_FINITE
                continue
            importance[sequence, members] = values[row]
            if matrix is not None:
                matrix[sequence, members] = effects[row]


def occlude(
    model: nn.Module | Subject,
    batch: Batch,
    *,
    hide: str = "remove",
    effect: str | None = None,
    units: Tensor | None = None,
    max_units: int | None = None,
    tokenizer: Any = None,
    mask_token_id: int | None = None,
    special_ids: Collection[int] | None = None,
    tokens_per_forward: int | None = None,
    forward: Forward | None = None,
    seed: int = 0,
    show_progress: bool = True,
) -> Occlusion:
    """Hides each token in turn, and says what that changes.

    importance_j = log p(y | all) - log p(y | all but j) for a label y; the mean over predictions of the same difference
    for a language model; or Σ_y p(y | all) · log(p(y | all) / p(y | all but j)).

    Special tokens and padding are never hidden. The model is asked in eval mode and is left as it was.

    Args:
        model: a transformers model, or a module around one; any module with `forward`.
        batch: what it takes by name: `input_ids` [batch, tokens], `attention_mask`, and labels where there are any.
        hide: "remove" masks the token's key out in every layer, others keep their positions; "mask_token" puts the mask
            token in its place; "mean" the mean of the embedding matrix.
        effect: "label" (drop of the label's log-probability), "loss" (rise of the next token's loss) or "kl"
            (divergence of the output from what it was), in nats; None means "loss" for language models,
            "label" for classifiers with labels and "kl" for those without.
        units: int [batch, tokens], tokens with one number are hidden together (words, spans), -1 is never hidden; None
            means each token for itself.
        max_units: per sequence; of more, one is drawn from each of as many equal strata.
        tokenizer: knows special tokens and the mask token; without one, those of the model's configuration.
        mask_token_id, special_ids: where the tokenizer does not know better.
        tokens_per_forward: about so many; None means 512 on a CPU and 16,384 elsewhere, or fewer where a
            vocabulary is large.
        forward: see `Subject`.
        seed: of the draw.
        show_progress: a bar, where tqdm is installed and it takes more than two seconds.

    Raises:
        ConfigurationError: the model or the batch can't be asked this way; the message says what can.
    """
    subject = model if isinstance(model, Subject) else Subject(model, forward)
    with subject.asked():
        prepared = Occlusions(
            subject,
            batch,
            hide=hide,
            effect=effect,
            units=units,
            max_units=max_units,
            tokenizer=tokenizer,
            mask_token_id=mask_token_id,
            special_ids=special_ids,
            tokens_per_forward=tokens_per_forward,
            seed=seed,
        )
        return prepared.run(show_progress=show_progress)


def num_forwards(model: nn.Module | Subject, batch: Batch, *, forward: Forward | None = None, **options: Any) -> int:
    """How many forwards `occlude` takes with the same arguments; up to four of them are made to find it out.

    Args:
        model, batch, forward, options: as of `occlude`.
    """
    subject = model if isinstance(model, Subject) else Subject(model, forward)
    with subject.asked():
        return Occlusions(subject, batch, **options).num_forwards
