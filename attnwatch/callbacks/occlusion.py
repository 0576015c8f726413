"""Comparison of attention with the effects of hiding inputs, during training."""

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnwatch.callbacks.audit import MOST_LAYER_CURVES, Audit
from attnwatch.explain.agreement import MeanOverSequences
from attnwatch.explain.attributions import Readout
from attnwatch.explain.batches import Batch
from attnwatch.explain.comparison import DISAGREEMENT, agrees, compare
from attnwatch.explain.effects import EffectName, check_outputs
from attnwatch.explain.evaluated_model import EvaluatedModel, Forward
from attnwatch.explain.faithfulness import FaithfulnessPlan
from attnwatch.explain.hiding import HidingName, HidingOptions, make_hiding
from attnwatch.explain.occlusion import OcclusionPlan
from attnwatch.trainers.base import TrainerRun
from attnwatch.utils.arguments import require_between, require_choice, require_int
from attnwatch.utils.labels import evenly_spaced, site_labels

# Removed shares of the deletion curves: few, since each takes a row per sequence, and denser where the curves differ.
_FRACTIONS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
_NUM_RANDOM = 2
# One forward to observe attention, and one to differentiate.
_ATTRIBUTION_FORWARDS = 2


@dataclasses.dataclass
class OcclusionFindings:
    """Result of an audit, over the sequences of its batches.

    Attributes:
        sites: attention layers that were observed.
        attention, rollout: rank correlations with |importance|, float64 [layers, sequences].
        gradient: rank correlations with |importance|, float64 [sequences].
        deletion: areas of the deletion curves, nats, float [sequences] by score: "occlusion", "attention", "rollout",
            "gradient", and "random" (the mean of the random orders).
        importance: importance of the first sequence's tokens, nats, float [tokens]; nan if a token was not hidden.
        tokens: tokens of the first sequence.
        num_forwards: number of forwards of the audit.
    """

    sites: list[str]
    attention: Tensor
    rollout: Tensor
    gradient: Tensor
    deletion: dict[str, Tensor]
    importance: Tensor
    tokens: list[str]
    num_forwards: int


class OcclusionAudit(Audit[OcclusionFindings]):
    """Compare attention with the effects of hiding inputs while a model trains.

    The callback logs `occlusion/attention_agreement`, `occlusion/rollout_agreement` and `occlusion/gradient_agreement`
    (mean rank correlation with the importance measured by hiding; the first two as means over all layers, and for each
    of up to 12 layers), `occlusion/deletion_area/…` (nats, by score; the higher above `random`, the more faithful) and
    `occlusion/forwards`, and pictures. If attention disagrees and the trainer has a callback that chooses heads or
    tokens by attention, one warning says so. Training does not change.

    Args:
        every_n_steps: interval in optimizer steps: an audit follows the first step at or after each multiple of it, and
            the end. None means at the end only.
        batches: batches whose tokens are hidden, each with the model's arguments by name; None means the first
            validation batches.
        num_batches: maximum number of batches.
        forward: see `attnwatch.explain.EvaluatedModel`.
        hide, effect, max_units, tokenizer, mask_token_id, special_ids, tokens_per_forward: see
            `attnwatch.explain.occlude`.
        readout: see `attnwatch.explain.attention_attribution`.
        disagreement: threshold of the mean rank correlation. Attention disagrees if the correlation is below it, or
            not above 0 by 1.96 standard errors over the sequences.
        seed: seed for drawing the tokens to hide, if there are more than `max_units`, and the random orders.

    Attributes:
        results: (global step, `OcclusionFindings`) of each audit.

    Raises:
        ConfigurationError: an argument is invalid, or the model can't be measured this way (raised when training
            starts).
    """

    example = "OcclusionAudit(every_n_steps=500)"
    _Result = OcclusionFindings

    def __init__(
        self,
        every_n_steps: int | None = None,
        *,
        batches: Iterable[Batch] | None = None,
        num_batches: int = 1,
        hide: HidingName = "remove",
        effect: EffectName | None = None,
        max_units: int | None = 64,
        tokenizer: Any = None,
        mask_token_id: int | None = None,
        special_ids: Collection[int] | None = None,
        readout: Readout | None = None,
        tokens_per_forward: int | None = None,
        disagreement: float = DISAGREEMENT,
        forward: Forward | None = None,
        seed: int = 0,
    ):
        super().__init__(every_n_steps, batches, num_batches, forward, tokenizer)
        require_int("max_units", max_units, minimum=1, optional=True)
        require_int("seed", seed, minimum=0)
        require_choice("readout", readout, Readout, optional=True)
        require_between("disagreement", disagreement, -1, 1, kind="a correlation,")
        self._options = HidingOptions(hide, effect, tokenizer, mask_token_id, special_ids, tokens_per_forward)
        self._max_units, self._readout, self._disagreement, self._seed = max_units, readout, disagreement, seed

    def start(self, run: TrainerRun) -> None:
        super().start(run)
        self._options = dataclasses.replace(self._options, tokenizer=self._tokenizer)
        check_outputs(self._subject, self._options.effect)
        with self._subject.evaluating():
            make_hiding(self._options, self._subject)

    def _audit(self, run: TrainerRun, subject: EvaluatedModel, batches: list[Batch]) -> OcclusionFindings:
        each = [self._of_batch(run, subject, batch) for batch in batches]
        result = dataclasses.replace(
            each[0],
            attention=torch.cat([found.attention for found in each], -1),
            rollout=torch.cat([found.rollout for found in each], -1),
            gradient=torch.cat([found.gradient for found in each], -1),
            deletion={name: torch.cat([found.deletion[name] for found in each]) for name in each[0].deletion},
            num_forwards=sum(found.num_forwards for found in each),
        )
        self._warn_of_choices(run, MeanOverSequences.of(result.attention))
        return result

    def _of_batch(self, run: TrainerRun, subject: EvaluatedModel, batch: Batch) -> OcclusionFindings:
        with subject.evaluating():
            plan = OcclusionPlan(subject, batch, self._options, max_units=self._max_units, seed=self._seed)
            if not self.results:
                run.inform(f"hiding tokens takes {plan.num_forwards} forwards, attention and gradient 2 more")
            occlusion = plan.run()
            comparison = compare(subject, batch, occlusion, readout=self._readout)
            scores = {"occlusion": occlusion.importance, **comparison.scores()}
            curves = FaithfulnessPlan(
                plan.forwards, scores, fractions=_FRACTIONS, num_random=_NUM_RANDOM, seed=self._seed
            )
            if not self.results:
                run.inform(f"the deletion curves take {curves.num_forwards} forwards")
            deletion = curves.run()
        if comparison.why_no_attention:
            self._warn_once(comparison.why_no_attention, once_for_all=True)
        areas = {name: curve.areas for name, curve in deletion.items()}
        areas["random"] = deletion["occlusion"].random_areas.mean(0)
        return OcclusionFindings(
            sites=list(comparison.sites),
            attention=comparison.attention.cpu(),
            rollout=comparison.rollout.cpu(),
            gradient=comparison.gradient.cpu(),
            deletion={name: area.cpu() for name, area in areas.items()},
            importance=occlusion.importance[0].cpu(),
            tokens=self._tokens(batch),
            num_forwards=plan.num_forwards + _ATTRIBUTION_FORWARDS + curves.num_forwards,
        )

    def _tokens(self, batch: Batch) -> list[str]:
        """Return the tokens of the first sequence."""
        ids = batch["input_ids"][0].tolist()
        return list(map(str, ids if self._tokenizer is None else self._tokenizer.convert_ids_to_tokens(ids)))

    def _numbers(self, result: OcclusionFindings) -> dict[str, float]:
        numbers = {
            "occlusion/gradient_agreement": MeanOverSequences.of(result.gradient).mean,
            "occlusion/forwards": float(result.num_forwards),
        }
        labels = site_labels(result.sites)
        for name in ("attention", "rollout"):
            of_layers = getattr(result, name)
            if len(of_layers):
                numbers[f"occlusion/{name}_agreement"] = MeanOverSequences.of(of_layers).mean
            for layer in evenly_spaced(len(of_layers), MOST_LAYER_CURVES):
                numbers[f"occlusion_{name}_agreement/{labels[layer]}"] = MeanOverSequences.of(of_layers[layer]).mean
        for name, areas in result.deletion.items():
            numbers[f"occlusion/deletion_area/{name}"] = MeanOverSequences.of(areas).mean
        return numbers

    def _draw(self) -> dict[str, np.ndarray]:
        from attnwatch.dashboard.heatmaps import layers_over_steps, pixels
        from attnwatch.dashboard.tokens import token_figure

        found = self.results[-1][1]
        steps = [step for step, _ in self.results]
        pictures = {"occlusion/tokens": token_figure(found.tokens, found.importance.numpy(), steps[-1])}
        for name in ("attention", "rollout"):
            series = [getattr(each, name).nanmean(1).numpy() for _, each in self.results]
            if len(series[-1]) and all(len(each) == len(series[-1]) for each in series):
                pictures[f"occlusion/{name}_agreement"] = layers_over_steps(
                    np.stack(series),
                    steps,
                    f"{name}: agreement with hiding",
                    labels=site_labels(found.sites),
                    limits=(-1, 1),
                    colours="RdBu",
                )
        return {tag: pixels(figure) for tag, figure in pictures.items()}

    def _warn_of_choices(self, run: TrainerRun, agreement: MeanOverSequences) -> None:
        """Warn of parts that choose by attention if attention disagrees with the effects of hiding inputs."""
        if agrees(agreement, self._disagreement):
            return
        for part in run.parts:
            if part.choice_by_attention is not None:
                what, instead = part.choice_by_attention
                self._warn_once(
                    f"{type(part).__name__} chooses {what}, but attention disagrees with the effects of hiding inputs: "
                    f"use {instead}",
                    f" (mean rank correlation {agreement.mean:.2f} ± {agreement.stderr:.2f} over "
                    f"{agreement.num_sequences} sequences, after step {run.global_step})",
                    once_for_all=True,
                )
