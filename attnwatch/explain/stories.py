"""What attention and gradients say about the tokens of a batch, to be held against what hiding them does."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnwatch.attention import AttentionInputs, attention_received, attention_weights
from attnwatch.capture import Capture, ForwardPass, TensorParallelGroup
from attnwatch.errors import ConfigurationError, NoAttentionError
from attnwatch.explain.effects import make_effect
from attnwatch.explain.hiding import embedding_of
from attnwatch.explain.subject import Batch, Forward, Subject, token_mask

READOUTS = ("first", "last", "mean")


@dataclass(frozen=True)
class AttentionStories:
    """What attention says, per layer.

    Attributes:
        sites: names of the attention layers that were observed, in the order in which they were called.
        received: float [layers, batch, tokens], relative to uniform attention; see
            `attnwatch.attention.attention_received`.
        rollout: float [layers, batch, tokens], what flows from the token to where the model reads out, through the
            layers up to this one.
        readout: from which rows of the rollout.
    """

    sites: tuple[str, ...]
    received: Tensor
    rollout: Tensor
    readout: str


def attention_stories(
    model: nn.Module | Subject, batch: Batch, *, readout: str | None = None, forward: Forward | None = None
) -> AttentionStories:
    """Attention received, and attention rollout, from all query rows of one forward.

    Rollout (Abnar & Zuidema 2020, arXiv 2005.00928): R_l = (A_l / 2 + I / 2) · R_(l-1), A_l the mean of the attention
    weights over heads, R_0 = I.

    Args:
        model, batch, forward: see `occlude`.
        readout: which rows of R_l: those of the "first" or the "last" token, or the "mean" over all tokens; None means
            "mean" where the model says something at each token or a `forward` calls it, else "last" with causal
            attention and "first" without.

    Raises:
        NoAttentionError: the model has no self-attention over the tokens of the batch that can be observed.
        ConfigurationError: `readout` is unknown.
    """
    if readout not in (None, *READOUTS):
        raise ConfigurationError(f"`readout` must be one of {', '.join(map(repr, READOUTS))} or None, got {readout!r}.")
    subject = model if isinstance(model, Subject) else Subject(model, forward)
    real = token_mask(batch)
    rolled = torch.eye(real.shape[1], device=real.device).expand(*real.shape, -1)
    sites, received, rollouts, causal = [], [], [], []

    @torch.no_grad()
    def see(site: str, inputs: AttentionInputs, of: ForwardPass) -> None:
        nonlocal rolled
        if not inputs.has_positions or (inputs.batch_size, inputs.num_keys) != real.shape:
            return
        weights, visible = attention_weights(inputs, torch.arange(inputs.num_queries))
        of_keys = attention_received(inputs, None, None).float()  # what may fail comes before peers wait for it
        rolled = peers[site].mean(weights.float().mean(1)).matmul(rolled).add(rolled) / 2
        sites.append(site)
        received.append(peers[site].mean(of_keys))
        rollouts.append(rolled)
        causal.append(not bool(visible.triu(1).any()))

    capture = Capture(subject.model, see)
    peers = {site: TensorParallelGroup(subject.model, capture.module(site)) for site in capture.sites}
    with subject.asked():
        capture.attach()
        try:
            with capture.arm():
                logits = subject.logits(batch)
        finally:
            capture.detach()
    if not sites:
        reasons = "; ".join(f"{site}: {reason}" for site, reason in capture.coverage().items())
        raise NoAttentionError(f"`model` has no self-attention over the tokens of the batch ({reasons}).")
    if readout is None:
        says_one_thing = logits.ndim == 2 and not subject.has_own_forward
        readout = ("last" if all(causal) else "first") if says_one_thing else "mean"
    rows = torch.stack(rollouts)
    return AttentionStories(tuple(sites), torch.stack(received), _read_out(rows, real, readout), readout)


def _read_out(rolled: Tensor, real: Tensor, readout: str) -> Tensor:
    """[layers, batch, tokens] of [layers, batch, rows, tokens]."""
    if readout == "mean":
        weights = real / real.sum(1, keepdim=True).clamp(min=1)
        return torch.einsum("lbrt,br->lbt", rolled, weights.to(rolled.dtype))
    positions = torch.arange(real.shape[1], device=real.device)
    row = real.int().argmax(1) if readout == "first" else (real * positions).argmax(1)
    return rolled[:, torch.arange(len(real), device=real.device), row]


def gradient_times_input(
    model: nn.Module | Subject,
    batch: Batch,
    *,
    effect: str | None = None,
    reduce: str = "sum",
    forward: Forward | None = None,
) -> Tensor:
    """|Σ_d g_d · e_d| of each token's embedding e, g the gradient with respect to it: float [batch, tokens].

    The gradient is of the label's log-probability, of the mean loss of a language model's predictions, or for "kl",
    whose own gradient is zero, of the log-probability of what the model says now. One forward and one backward; the
    parameters' gradients stay as they are.

    Args:
        model, batch, effect, forward: see `occlude`.
        reduce: "sum" (first-order effect of an embedding of zeros), or "l1" for Σ_d |g_d · e_d|.

    Returns:
        nan at padding, and where there is nothing to measure by.

    Raises:
        ConfigurationError: an argument is wrong, or the model's embedding of `input_ids` is not known.
    """
    if reduce not in ("sum", "l1"):
        raise ConfigurationError(f"`reduce` must be 'sum' or 'l1', got {reduce!r}.")
    subject = model if isinstance(model, Subject) else Subject(model, forward)
    real = token_mask(batch)
    embedded: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    handle = embedding_of(subject, "gradient × input").register_forward_hook(keep)
    try:
        with subject.asked(gradients=True):
            logits = subject.logits(batch)
            asked, has_answer = _objective(logits, effect, batch, real, subject.problem_type)
            (gradient,) = torch.autograd.grad(asked, embedded[0])
    finally:
        handle.remove()
    products = gradient.float() * embedded[0].detach().float()
    scores = products.sum(-1).abs() if reduce == "sum" else products.abs().sum(-1)
    return scores.masked_fill(~(real & has_answer[:, None]), torch.nan)


def _objective(
    logits: Tensor, effect: str | None, batch: Batch, real: Tensor, problem_type: str | None
) -> tuple[Tensor, Tensor]:
    """(the sum over sequences of what is asked about, which sequences have it)."""
    measured = make_effect(effect, logits.detach(), batch, real, problem_type)
    if measured.name == "kl" and problem_type == "multi_label_classification" and logits.ndim == 2:
        values = F.logsigmoid(logits.abs()).sum(-1)
    elif measured.name == "kl":
        likely = logits.detach().argmax(-1)
        values = -F.cross_entropy(logits.flatten(0, -2), likely.flatten(), reduction="none").view(likely.shape)
    else:
        # At nothing hidden, the effect is zero and its gradient the one that is asked for.
        values = measured.of(logits, torch.arange(len(logits), device=logits.device), 0)
    if measured.outputs is not None:
        outputs = measured.outputs
        values = values.masked_fill(~outputs, 0.0).sum(1) / outputs.sum(1).clamp(min=1)
    return values[measured.has_answer].sum(), measured.has_answer
