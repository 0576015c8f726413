"""Importance of input tokens, measured by hiding them.

Occlusion: Zeiler and Fergus 2014, arXiv 1311.2901. Erasure: Li et al. 2016, arXiv 1612.08220.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.attention import stratified_rows
from attnwatch.errors import ConfigurationError
from attnwatch.explain.batches import Batch
from attnwatch.explain.effects import EffectName
from attnwatch.explain.evaluated_model import EvaluatedModel, Forward
from attnwatch.explain.hiding import HidingName, HidingOptions
from attnwatch.explain.masked_forwards import MaskedForwards, Route
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
_HIDDEN, _PADDING, _SPECIAL, _NO_UNIT, _NOT_SAMPLED, _NOT_MEASURABLE, _NO_OUTPUT, _NOT_FINITE = range(len(REASONS))


@dataclass(frozen=True)
class Occlusion:
    """Changes of a model's output when each token is hidden, in nats.

    Attributes:
        importance: importance of each token, float [batch, tokens]; nan if the token was not hidden. For models with
            one output per token, it is the mean over the sequence's outputs.
        matrix: effect on each output, float [batch, hidden token, output], for models with one output per token. A
            prediction is at the token that makes it. In causal models, it is 0 before the hidden token. nan if the
            token was not hidden, if there is no output, and at removed tokens. None for models with one output per
            sequence.
        reasons: index into `REASONS`, int [batch, tokens].
        hide, effect: method of hiding, and measured effect.
        route: "cached_prefix" if only the tokens from the hidden one on were computed, otherwise "full".
        why_full: reason why the route is "full"; empty otherwise.
        num_forwards: number of forwards.
    """

    importance: Tensor
    matrix: Tensor | None
    reasons: Tensor
    hide: HidingName
    effect: EffectName
    route: Route
    why_full: str
    num_forwards: int

    def __str__(self) -> str:
        known = self.importance[self.importance.isfinite()]
        largest = f", largest importance {known.abs().max():.3g} nats" if len(known) else ""
        return (
            f"{len(known)} of {self.importance.numel()} tokens hidden by {self.hide!r}, effect {self.effect!r}, in "
            f"{self.num_forwards} forwards{largest}"
        )

    def why_not(self, sequence: int, token: int) -> str:
        """Return the reason why a token has no importance; "hidden" if it has one."""
        return REASONS[int(self.reasons[sequence, token])]


class OcclusionPlan:
    """Occlusion of one batch, with the number of forwards known in advance. Preparation takes up to five forwards.

    Args:
        model, batch, units, max_units, seed: see `occlude`.
        options: arguments of `occlude` that define how tokens are hidden and what is measured.

    Attributes:
        forwards: forwards of the batch with hidden tokens.
        num_forwards: number of forwards, including those of `run`.

    Raises:
        ConfigurationError: see `occlude`.

    Example:
        >>> model = nn.EmbeddingBag(10, 2, mode="sum")
        >>> call = lambda model, batch: model(batch["input_ids"], per_sample_weights=batch["attention_mask"].float())
        >>> batch = {"input_ids": torch.randint(10, (4, 100))}
        >>> plan = OcclusionPlan(EvaluatedModel(model, call), batch, HidingOptions(tokens_per_forward=1000))
        >>> plan.num_forwards  # 1 with nothing hidden, and 400 rows, 10 per forward
        41
        >>> plan.run().importance.shape
        torch.Size([4, 100])
    """

    def __init__(
        self,
        model: EvaluatedModel,
        batch: Batch,
        options: HidingOptions,
        *,
        units: Tensor | None = None,
        max_units: int | None = None,
        seed: int = 0,
    ):
        require_int("max_units", max_units, minimum=1, optional=True)
        require_int("seed", seed, minimum=0)
        self._hide = options.hide
        with model.evaluating():
            self.forwards = MaskedForwards(model, batch, options)
        self._choose_rows(units, max_units, torch.Generator().manual_seed(seed))
        self.num_forwards = self.forwards.num_preparing + len(self.forwards.chunks(self._sequences, self._hidden))

    def run(self, *, show_progress: bool = False) -> Occlusion:
        """Hide the tokens and return the effects."""
        forwards, real = self.forwards, self.forwards.batch.real
        importance = torch.full(real.shape, torch.nan, device=real.device)
        matrix = None if forwards.effect.outputs is None else importance[:, :, None].repeat(1, 1, real.shape[1])
        with forwards.batch.model.evaluating():
            effects = forwards.effects(self._sequences, self._hidden, show_progress=show_progress)
        self._fill(effects, importance, matrix)
        return Occlusion(
            importance,
            matrix,
            self._reasons,
            self._hide,
            forwards.effect.name,
            forwards.route,
            forwards.why_full,
            self.num_forwards,
        )

    def _choose_rows(self, units: Tensor | None, max_units: int | None, generator: torch.Generator) -> None:
        """Choose the units of each sequence, or one unit from each of `max_units` equal strata."""
        batch, effect = self.forwards.batch, self.forwards.effect
        reasons = torch.full(batch.real.shape, _HIDDEN, device=batch.real.device)
        units = torch.arange(batch.real.shape[1]).expand(batch.real.shape) if units is None else units
        if units.shape != batch.real.shape or units.is_floating_point() or units.dtype == torch.bool:
            raise ConfigurationError(
                f"`units` must be integers of shape {list(batch.real.shape)} like `input_ids`, -1 where nothing is "
                f"hidden; got {units.dtype} of shape {list(units.shape)}."
            )
        units = units.to(batch.real.device)
        reasons[units < 0] = _NO_UNIT
        reasons[~effect.measurable] = _NOT_MEASURABLE
        reasons[batch.special] = _SPECIAL
        reasons[~batch.real] = _PADDING
        sequences, rows = [], []
        for sequence, numbers in enumerate(units):
            candidates = batch.hideable[sequence] & (reasons[sequence] == _HIDDEN)
            members = (numbers[candidates].unique()[:, None] == numbers) & candidates  # [units, tokens]
            members = members[members.int().argmax(1).argsort(stable=True)]  # in text order
            if effect.outputs is not None:
                has_output = self._changeable(effect.outputs[sequence].expand_as(members), members).any(1)
                reasons[sequence][members[~has_output].any(0)] = _NO_OUTPUT
                members = members[has_output]
            chosen = members[stratified_rows(len(members), max_units, generator).to(members.device)]
            reasons[sequence][members.any(0)] = _NOT_SAMPLED
            reasons[sequence][chosen.any(0)] = _HIDDEN
            rows.append(chosen)
            sequences += [sequence] * len(chosen)
        self._sequences = torch.tensor(sequences, dtype=torch.int64, device=batch.real.device)
        self._hidden = torch.cat(rows)
        self._reasons = reasons

    def _changeable(self, outputs: Tensor, members: Tensor) -> Tensor:
        """Return a mask of the outputs that hiding these tokens can change, bool [rows, tokens]."""
        if self.forwards.batch.removes_outputs:
            outputs = outputs & ~members
        return outputs & members.cummax(1).values if self.forwards.effect.name == "loss" else outputs

    def _fill(self, effects: Tensor, importance: Tensor, matrix: Tensor | None) -> None:
        """Assign the effect of a unit to all its tokens."""
        outputs = self.forwards.effect.outputs
        if matrix is None or outputs is None:
            values = effects
        else:
            outputs = outputs[self._sequences]
            values = effects.masked_fill(~self._changeable(outputs, self._hidden), 0.0)
            undefined = ~outputs | (self._hidden & self.forwards.batch.removes_outputs)
            effects = values.masked_fill(undefined, torch.nan)
            values = values.sum(1) / outputs.sum(1)
        finite = values.isfinite()
        rows, tokens = self._hidden.nonzero(as_tuple=True)
        at = self._sequences[rows], tokens
        self._reasons[at] = torch.where(finite, _HIDDEN, _NOT_FINITE)[rows]
        importance[at] = values.masked_fill(~finite, torch.nan)[rows]
        if matrix is not None:
            matrix[at] = effects.masked_fill(~finite[:, None], torch.nan)[rows]


def occlude(
    model: nn.Module | EvaluatedModel,
    batch: Batch,
    *,
    hide: HidingName = "remove",
    effect: EffectName | None = None,
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
    """Hide each token in turn, and measure how the output changes.

    The importance of token j is log p(y | all) - log p(y | all but j) for a label y; for a language model, the mean of
    this difference over its predictions; or Σ_y p(y | all) · log(p(y | all) / p(y | all but j)).

    Special tokens and padding are never hidden. The model runs in eval mode and is restored afterwards.

    Args:
        model: a transformers model, or a module that contains one; with `forward`, any module.
        batch: arguments of the model by name: `input_ids` [batch, tokens], `attention_mask`, and labels if there are
            any.
        hide: "remove" masks the token's key in every layer, while other tokens keep their positions; "mask_token"
            replaces the token by the mask token; "mean" replaces its embedding by the mean of all embeddings.
        effect: "label" (drop of the label's log-probability), "loss" (rise of the next token's loss) or "kl"
            (divergence of the output from the output with nothing hidden), in nats. None means "loss" for language
            models, "label" for classifiers with labels and "kl" for classifiers without.
        units: number of the unit (word, span) of each token, int [batch, tokens]. Tokens of a unit are hidden together,
            and tokens with -1 are never hidden. None means that each token is a unit.
        max_units: maximum number of units per sequence; one is drawn from each of as many equal strata. None means
            all.
        tokenizer: source of the special tokens and the mask token; None means the model's config.
        mask_token_id, special_ids: ids that override those of the tokenizer.
        tokens_per_forward: approximate number of tokens per forward; None means 512 on a CPU and 16,384 elsewhere, or
            fewer for a large vocabulary.
        forward: see `EvaluatedModel`.
        seed: seed for drawing units.
        show_progress: show a progress bar if tqdm is installed and the forwards take more than two seconds.

    Raises:
        ConfigurationError: an argument is invalid, or hiding tokens of this model or batch can't be measured this way.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
        >>> batch = {"input_ids": torch.randint(3, 50, (2, 8)), "labels": torch.tensor([0, 1])}
        >>> print(str(occlude(BertForSequenceClassification(config), batch)).partition(", in")[0])
        16 of 16 tokens hidden by 'remove', effect 'label'
    """
    options = HidingOptions(hide, effect, tokenizer, mask_token_id, special_ids, tokens_per_forward)
    evaluated = EvaluatedModel.of(model, forward)
    plan = OcclusionPlan(evaluated, batch, options, units=units, max_units=max_units, seed=seed)
    return plan.run(show_progress=show_progress)
