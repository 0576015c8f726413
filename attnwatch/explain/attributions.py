"""Attributions to tokens from attention and gradients, for comparison with occlusion."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnwatch.attention import AttentionInputs, attention_received, attention_weights
from attnwatch.capture import Capture, ForwardPass, TensorParallelGroup
from attnwatch.errors import NoAttentionError
from attnwatch.explain.batches import Batch, token_mask
from attnwatch.explain.effects import EffectName, cross_entropies, make_effect
from attnwatch.explain.evaluated_model import EvaluatedModel, Forward
from attnwatch.utils.arguments import require_choice

Readout = Literal["first", "last", "mean"]
Reduction = Literal["sum", "l1"]


@dataclass(frozen=True)
class AttentionAttribution:
    """Attribution of each token by each attention layer.

    Attributes:
        sites: names of the observed attention layers, in the order of their calls.
        received: attention that each token receives, relative to uniform attention, float [layers, batch, tokens]; see
            `attnwatch.attention.attention_received`.
        rollout: attention rollout from each token to the readout through the layers up to this one, float [layers,
            batch, tokens].
        readout: rows of the rollout that were read.
    """

    sites: tuple[str, ...]
    received: Tensor
    rollout: Tensor
    readout: Readout


def attention_attribution(
    model: nn.Module | EvaluatedModel,
    batch: Batch,
    *,
    readout: Readout | None = None,
    forward: Forward | None = None,
) -> AttentionAttribution:
    """Return the attention that each token receives and its attention rollout, from all query rows of one forward.

    Rollout (Abnar and Zuidema 2020, arXiv 2005.00928): R_l = (A_l / 2 + I / 2) · R_(l-1), where A_l is the mean of
    the attention weights over heads and R_0 = I.

    Args:
        model, batch, forward: see `occlude`.
        readout: row of R_l: that of the "first" or "last" token, or the "mean" over all rows. None means "mean" for
            models with one output per token or with a custom `forward`; otherwise "last" for causal attention and
            "first" for bidirectional attention.

    Raises:
        NoAttentionError: the model has no self-attention over the tokens of the batch that can be observed.
        ConfigurationError: `readout` is unknown.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2))
        >>> call = lambda model, batch: model(**batch).last_hidden_state
        >>> attention_attribution(model, {"input_ids": torch.randint(50, (3, 8))}, forward=call).rollout.shape
        torch.Size([2, 3, 8])
    """
    require_choice("readout", readout, Readout, optional=True)
    evaluated = EvaluatedModel.of(model, forward)
    real = token_mask(batch)
    rolled = torch.eye(real.shape[1], device=real.device).expand(*real.shape, -1)
    observed: list[tuple[str, Tensor, Tensor, bool]] = []

    @torch.no_grad()
    def observe(site: str, inputs: AttentionInputs, of: ForwardPass) -> None:
        nonlocal rolled
        if not inputs.has_positions or (inputs.batch_size, inputs.num_keys) != real.shape:
            return
        weights, visible = attention_weights(inputs, torch.arange(inputs.num_queries))
        of_keys = attention_received(inputs, None, None).float()  # may fail, so it runs before other processes wait
        rolled = peers[site].mean(weights.float().mean(1)).matmul(rolled).add(rolled) / 2
        observed.append((site, peers[site].mean(of_keys), rolled, not bool(visible.triu(1).any())))

    capture = Capture(evaluated.model, observe)
    peers = {site: TensorParallelGroup(evaluated.model, capture.module(site)) for site in capture.sites}
    with evaluated.evaluating(), ExitStack() as stack:
        stack.callback(capture.detach)
        capture.attach()
        with capture.arm():
            logits = evaluated.logits(batch)
    if not observed:
        reasons = "; ".join(f"{site}: {reason}" for site, reason in capture.coverage().items())
        raise NoAttentionError(f"`model` has no self-attention over the tokens of the batch ({reasons}).")
    sites, received, rollouts, are_causal = zip(*observed, strict=True)
    if readout is None and logits.ndim == 2 and not evaluated.has_custom_forward:
        readout = "last" if all(are_causal) else "first"
    readout = readout or "mean"
    return AttentionAttribution(sites, torch.stack(received), _read_out(torch.stack(rollouts), real, readout), readout)


def _read_out(rolled: Tensor, real: Tensor, readout: Readout) -> Tensor:
    """Reduce [layers, batch, rows, tokens] to [layers, batch, tokens]."""
    if readout == "mean":
        weights = real / real.sum(1, keepdim=True).clamp(min=1)
        return torch.einsum("lbrt,br->lbt", rolled, weights.to(rolled.dtype))
    positions = torch.arange(real.shape[1], device=real.device)
    row = real.int().argmax(1) if readout == "first" else (real * positions).argmax(1)
    return rolled[:, torch.arange(len(real), device=real.device), row]


def gradient_times_input(
    model: nn.Module | EvaluatedModel,
    batch: Batch,
    *,
    effect: EffectName | None = None,
    reduce: Reduction = "sum",
    forward: Forward | None = None,
) -> Tensor:
    """Return |Σ_d g_d · e_d| of each token's embedding e with gradient g, float [batch, tokens].

    The gradient is that of the label's log-probability ("label"), of the mean loss of the predictions ("loss"), or of
    the log-probability of the model's own prediction ("kl", whose gradient is zero with nothing hidden). The function
    runs one forward and one backward, and leaves the gradients of the parameters unchanged.

    Args:
        model, batch, effect, forward: see `occlude`.
        reduce: "sum" for the first-order effect of setting the embedding to zero, "l1" for Σ_d |g_d · e_d|.

    Returns:
        Scores, with nan at padding and in sequences without a label or a prediction.

    Raises:
        ConfigurationError: an argument is invalid, or the model's embedding of `input_ids` is unknown.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
        >>> batch = {"input_ids": torch.randint(50, (3, 8)), "labels": torch.tensor([0, 1, 1])}
        >>> gradient_times_input(BertForSequenceClassification(config), batch).shape
        torch.Size([3, 8])
    """
    require_choice("reduce", reduce, Reduction)
    evaluated = EvaluatedModel.of(model, forward)
    real = token_mask(batch)
    embedded: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    handle = evaluated.require_input_embeddings("gradient × input").register_forward_hook(keep)
    try:
        with evaluated.evaluating(gradients=True):
            logits = evaluated.logits(batch)
            objective, measurable = _objective(logits, effect, batch, real, evaluated.problem_type)
            (gradient,) = torch.autograd.grad(objective, embedded[0])
    finally:
        handle.remove()
    products = gradient.float() * embedded[0].detach().float()
    scores = products.sum(-1).abs() if reduce == "sum" else products.abs().sum(-1)
    return scores.masked_fill(~(real & measurable[:, None]), torch.nan)


def _objective(
    logits: Tensor, effect: EffectName | None, batch: Batch, real: Tensor, problem_type: str | None
) -> tuple[Tensor, Tensor]:
    """Return the scalar to differentiate, and the sequences that contribute to it, bool [batch]."""
    measured = make_effect(effect, logits.detach(), batch, real, problem_type)
    if measured.name == "kl" and problem_type == "multi_label_classification" and logits.ndim == 2:
        values = F.logsigmoid(logits.abs()).sum(-1)
    elif measured.name == "kl":
        values = -cross_entropies(logits, logits.detach().argmax(-1))
    else:
        # With nothing hidden, the effect is zero, but its gradient is that of the loss.
        values = measured.measure(logits, torch.arange(len(logits), device=logits.device), 0)
    outputs = measured.outputs
    if outputs is not None:
        values = values.masked_fill(~outputs, 0.0).sum(1) / outputs.sum(1).clamp(min=1)
    return values[measured.measurable].sum(), measured.measurable
