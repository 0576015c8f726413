"""Running mean of the loss of each vocabulary id, learned while training a language model."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from attnwatch.errors import ConfigurationError
from attnwatch.models import TokenPredictions
from attnwatch.tokens.batch import TokenBatch
from attnwatch.utils.messages import warn
from attnwatch.utils.processes import has_other_processes

# Number of tokens of a batch whose loss is recomputed, to learn which vocabulary ids are hard.
_SAMPLED_TOKENS = 1024
# Share of the running mean that a new loss replaces, per token of the id that was seen.
_MOMENTUM = 0.05
# Number of forward passes without any loss before the warning.
_BLIND_FORWARDS = 10


class TokenLosses:
    """Running mean of the loss of each vocabulary id.

    Args:
        criterion: name of the criterion that reads the losses.
    """

    def __init__(self, criterion: str):
        self._criterion = criterion
        self._means: Tensor | None = None  # float [vocabulary], nan where an id was not seen
        self._sums: Tensor | None = None  # float [2, vocabulary]: losses and counts since the last synchronization
        self._num_blind = 0
        self._vocabulary: int | None = None  # size agreed on by all processes

    def of(self, batch: TokenBatch) -> Tensor:
        """Return the mean loss of each token's id: float [batch, tokens], nan for unseen ids.

        Raises:
            ConfigurationError: the ids of the tokens are unknown.
        """
        if batch.input_ids is None:
            raise ConfigurationError(
                f"`criterion` {self._criterion!r} needs `input_ids`, but the model received none of that length."
            )
        if self._means is None:
            self._warn_of_blindness()
            return torch.full(batch.input_ids.shape, torch.nan, device=batch.states.device)
        means = self._means.to(batch.states.device)
        ids = batch.input_ids.clamp(max=len(means) - 1)
        return means[ids].masked_fill(ids != batch.input_ids, torch.nan)

    def learn(self, predictions: TokenPredictions, generator: torch.Generator) -> None:
        """Record the losses of some tokens of a training forward pass."""
        ids, losses = sampled_losses(predictions, generator)
        self.record(ids, losses, predictions.logits.shape[-1])

    @torch.no_grad()
    def record(self, ids: Tensor, losses: Tensor, vocabulary: int) -> None:
        """Record losses of tokens with these vocabulary ids, both of the same shape."""
        if self._sums is None or self._sums.shape[1] != vocabulary or self._sums.device != losses.device:
            self._sums = torch.zeros(2, vocabulary, device=losses.device)
        losses = losses.float().flatten()
        both = torch.stack([losses, torch.ones_like(losses)])
        self._sums.index_add_(1, ids.flatten(), both)
        if not has_other_processes():
            self._take_in(self._sums)

    def synchronize(self, num_peers: int, device: torch.device) -> None:
        """Merge the losses of all processes, so that they score alike. All must call it.

        Args:
            num_peers: number of processes that saw the same tokens.
            device: device of the model.
        """
        if not has_other_processes():
            return
        vocabulary = self._shared_vocabulary(device)
        if vocabulary is None:
            return
        self._sums = _of_length(self._sums, vocabulary, device)  # same size on all processes
        dist.all_reduce(self._sums)
        self._sums /= num_peers
        self._take_in(self._sums)

    def state_dict(self) -> dict[str, Any]:
        """Return the means: float [vocabulary], nan for unseen ids; None before the first loss."""
        return {"means": None if self._means is None else self._means.cpu().clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._means, self._sums, self._vocabulary = state.get("means"), None, None

    def _warn_of_blindness(self) -> None:
        self._num_blind += 1
        if self._num_blind == _BLIND_FORWARDS:
            warn(
                f"the criterion {self._criterion!r} has seen no loss in {_BLIND_FORWARDS} forward passes, so tokens "
                "are chosen at random. It learns from a transformers language model that receives `labels` and "
                "returns logits, or whose ModelFamily has `token_predictions`; compile it with model.compile()."
            )

    def _shared_vocabulary(self, device: torch.device) -> int | None:
        """Return the vocabulary size once any process has seen a loss. Until then, each call asks all processes."""
        if self._vocabulary is None:
            largest = torch.tensor(0 if self._sums is None else self._sums.shape[1], device=device)
            dist.all_reduce(largest, dist.ReduceOp.MAX)
            self._vocabulary = int(largest) or None
        return self._vocabulary

    def _take_in(self, sums: Tensor) -> None:
        losses, counts = sums
        new = losses / counts
        old = torch.full_like(new, torch.nan)
        if self._means is not None:
            known = min(len(self._means), len(old))
            old[:known] = self._means[:known].to(new.device)
        share = 1 - (1 - _MOMENTUM) ** counts
        mixed = torch.where(old.isnan(), new, old + share * (new - old))
        self._means = torch.where(counts > 0, mixed, old)
        sums.zero_()


def _of_length(sums: Tensor | None, length: int, device: torch.device) -> Tensor:
    """Return sums [2, length], the existing ones padded with 0."""
    if sums is not None and sums.shape[1] == length:
        return sums
    resized = torch.zeros(2, length, device=device if sums is None else sums.device)
    if sums is not None:
        known = min(length, sums.shape[1])
        resized[:, :known] = sums[:, :known]
    return resized


@torch.no_grad()
def sampled_losses(predictions: TokenPredictions, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return (vocabulary ids, losses) of some of the tokens that have a label."""
    logits, labels, is_shifted = predictions
    if is_shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    labels = labels.to(logits.device).flatten()
    if not len(labels):
        return labels, labels.new_zeros(0, dtype=torch.float32)
    places = torch.randint(len(labels), (min(_SAMPLED_TOKENS, len(labels)),), generator=generator).to(labels.device)
    chosen, labels = logits.detach().flatten(0, 1)[places], labels[places]
    has_label = labels >= 0
    losses = nn.functional.cross_entropy(chosen[has_label].float(), labels[has_label], reduction="none")
    return labels[has_label], losses
