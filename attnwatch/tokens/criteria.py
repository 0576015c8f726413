"""Which tokens are worth computing: scores [batch, tokens], the higher the sooner kept."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from attnwatch.attention import AttentionInputs, attention_received
from attnwatch.capture import Capture, ForwardPass, has_processes
from attnwatch.errors import ConfigurationError, NoAttentionError
from attnwatch.tokens.batch import TokenBatch
from attnwatch.utils.messages import warn

CRITERIA = ("random", "attention", "loss")
Criterion = str | Callable[[TokenBatch], Tensor]

# Query rows from which the attention that a key receives is estimated.
_QUERY_ROWS = 16
# Tokens of a batch whose loss is computed once more, to learn which vocabulary ids are hard.
_LOSS_TOKENS = 1024
# Share of the running mean that a new loss replaces, per token of the id that was seen.
_LOSS_MOMENTUM = 0.05
_LANGUAGE_LOSSES = ("ForCausalLM", "ForMaskedLM")
# So many forwards without any loss are no start, but a mistake.
_BLIND_FORWARDS = 10
# Score of an id that was not seen yet, above all losses; and what decides between equal losses.
_UNSEEN, _TIES = 1e6, 1e-6


def _noise(batch: TokenBatch, generator: torch.Generator) -> Tensor:
    """Drawn on the CPU, so that every device chooses the same tokens."""
    return torch.rand(batch.states.shape[:2], generator=generator).to(batch.states.device)


def make_criterion(criterion: Criterion, layer_before: nn.Module | None) -> "Scorer":
    """From its name, or the user's function.

    Raises:
        ConfigurationError: it is unknown, or "attention" has no layer to look at.
    """
    if callable(criterion):
        return OwnFunction(criterion)
    if criterion == "random":
        return Random()
    if criterion == "loss":
        return TokenLoss()
    if criterion != "attention":
        raise ConfigurationError(
            f"`criterion` must be one of {', '.join(map(repr, CRITERIA))}, or a function of a TokenBatch; "
            f"got {criterion!r}."
        )
    if layer_before is None:
        raise ConfigurationError(
            "`criterion` 'attention' looks at the layer before `first_layer`, which must be at least 1."
        )
    return AttentionReceived(layer_before)


class Scorer:
    """A criterion. Only some need more than `scores`."""

    def scores(self, batch: TokenBatch, generator: torch.Generator) -> Tensor:
        """[batch, tokens], the higher the sooner kept."""
        raise NotImplementedError

    @contextlib.contextmanager
    def attached(self, is_dropping: Callable[[], bool], generator: Callable[[], torch.Generator]) -> Iterator[None]:
        """While it is open, the criterion may watch the model, where `is_dropping`."""
        yield

    def learn(self, module: nn.Module, given: Mapping[str, Any], output: Any, generator: torch.Generator) -> None:
        """After a forward in training: what the model was given by name, and what it returned."""

    def synchronize(self, num_peers: int, device: torch.device) -> None:
        """Share between processes what was learned; always so many have seen the same tokens."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class Random(Scorer):
    """The null hypothesis."""

    def scores(self, batch: TokenBatch, generator: torch.Generator) -> Tensor:
        return _noise(batch, generator)


class OwnFunction(Scorer):
    def __init__(self, function: Callable[[TokenBatch], Tensor]):
        self._function = function

    def scores(self, batch: TokenBatch, generator: torch.Generator) -> Tensor:
        scores, expected = self._function(batch), batch.states.shape[:2]
        if not isinstance(scores, Tensor) or scores.shape != expected:
            got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ConfigurationError(f"`criterion` must return scores of shape {list(expected)}, got {got}.")
        return scores.to(batch.states.device)


class AttentionReceived(Scorer):
    """Attention that a token receives from the queries of the layer before, relative to uniform attention.

    Estimated from a few query rows, see `attnwatch.attention.attention_received`.
    """

    def __init__(self, layer: nn.Module):
        self._received: Tensor | None = None
        try:
            self._capture = Capture(layer, self._see)
        except NoAttentionError as error:
            raise ConfigurationError(f"`criterion` 'attention' can't see the layer before the first: {error}") from None

    def scores(self, batch: TokenBatch, generator: torch.Generator) -> Tensor:
        received, self._received = self._received, None
        if received is None or received.shape != batch.states.shape[:2]:
            reasons = "; ".join(f"{site}: {reason}" for site, reason in self._capture.coverage().items())
            raise ConfigurationError(f"`criterion` 'attention' has seen no attention in the layer before ({reasons}).")
        return received

    @contextlib.contextmanager
    def attached(self, is_dropping: Callable[[], bool], generator: Callable[[], torch.Generator]) -> Iterator[None]:
        self._is_dropping, self._generator = is_dropping, generator
        self._capture.attach()
        try:
            with self._capture.arm():  # all the time: what compiled code does, it does not do step by step
                yield
        finally:
            self._capture.detach()

    @torch.no_grad()
    def _see(self, site: str, inputs: AttentionInputs, of: ForwardPass) -> None:
        if self._is_dropping() and inputs.has_positions:
            self._received = attention_received(inputs, _QUERY_ROWS, self._generator())


class TokenLoss(Scorer):
    """Running mean of the loss of each vocabulary id (Hou et al. 2022, arXiv 2203.13240): easy tokens go first.

    Ids that were not seen yet are kept first, and equal scores go by chance.
    """

    def __init__(self):
        self._means: Tensor | None = None  # float [vocabulary], nan where an id was not seen
        self._sums: Tensor | None = None  # float [2, vocabulary]: losses and how many, since the last synchronization
        self._num_blind = 0
        self._vocabulary: int | None = None  # that all processes know of

    def scores(self, batch: TokenBatch, generator: torch.Generator) -> Tensor:
        if batch.input_ids is None:
            raise ConfigurationError(
                "`criterion` 'loss' needs `input_ids`, and the model was given none of that length."
            )
        noise = _noise(batch, generator)
        if self._means is None:
            self._num_blind += 1
            if self._num_blind == _BLIND_FORWARDS:
                warn(
                    f"the criterion 'loss' has seen no loss in {_BLIND_FORWARDS} forwards, so that tokens "
                    "go by chance. It learns from a language model of transformers that is given its `labels` and "
                    "returns its logits; compile it by model.compile()."
                )
            return noise
        known = len(self._means)
        means = self._means.to(noise.device)[batch.input_ids.clamp(max=known - 1)]
        unseen = means.isnan() | (batch.input_ids >= known)
        return torch.where(unseen, _UNSEEN + noise, means + _TIES * noise)

    def learn(self, module: nn.Module, given: Mapping[str, Any], output: Any, generator: torch.Generator) -> None:
        labels, logits = given.get("labels"), getattr(output, "logits", None)
        loss_type = getattr(module, "loss_type", None)
        has_both = isinstance(labels, Tensor) and isinstance(logits, Tensor)
        if loss_type in _LANGUAGE_LOSSES and has_both and logits.shape[:-1] == labels.shape:
            is_shifted = loss_type == "ForCausalLM"
            ids, losses = sampled_losses(logits.detach(), labels, is_shifted=is_shifted, generator=generator)
            self.record(ids, losses, logits.shape[-1])

    @torch.no_grad()
    def record(self, ids: Tensor, losses: Tensor, vocabulary: int) -> None:
        """Losses of tokens with these vocabulary ids, both of one shape."""
        if self._sums is None or self._sums.shape[1] != vocabulary or self._sums.device != losses.device:
            self._sums = torch.zeros(2, vocabulary, device=losses.device)
        losses = losses.float().flatten()
        both = torch.stack([losses, torch.ones_like(losses)])
        self._sums.index_add_(1, ids.flatten(), both)
        if not has_processes():
            self._take_in()

    def synchronize(self, num_peers: int, device: torch.device) -> None:
        """Take in what all processes have seen, so that they score alike."""
        if not has_processes() or not self._know_the_vocabulary(device):
            return
        self._sums = _of_length(self._sums, self._vocabulary, device)  # as large on all, whatever each has seen
        dist.all_reduce(self._sums)
        self._sums /= num_peers
        self._take_in()

    def _know_the_vocabulary(self, device: torch.device) -> bool:
        """Whether some process has seen a loss: as long as none has, all ask, and then never again."""
        if self._vocabulary is None:
            largest = torch.tensor(0 if self._sums is None else self._sums.shape[1], device=device)
            dist.all_reduce(largest, dist.ReduceOp.MAX)
            self._vocabulary = int(largest) or None
        return self._vocabulary is not None

    def _take_in(self) -> None:
        losses, counts = self._sums
        new = losses / counts
        old = torch.full_like(new, torch.nan)
        if self._means is not None:
            known = min(len(self._means), len(old))
            old[:known] = self._means[:known].to(new.device)
        share = 1 - (1 - _LOSS_MOMENTUM) ** counts
        mixed = torch.where(old.isnan(), new, old + share * (new - old))
        self._means = torch.where(counts > 0, mixed, old)
        self._sums.zero_()

    def state_dict(self) -> dict[str, Any]:
        return {"means": None if self._means is None else self._means.cpu().clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._means, self._sums, self._vocabulary = state.get("means"), None, None  # none from another criterion


def _of_length(sums: Tensor | None, length: int, device: torch.device) -> Tensor:
    """[2, length], of what there is; 0 for the rest."""
    if sums is not None and sums.shape[1] == length:
        return sums
    resized = torch.zeros(2, length, device=device if sums is None else sums.device)
    if sums is not None:
        known = min(length, sums.shape[1])
        resized[:, :known] = sums[:, :known]
    return resized


@torch.no_grad()
def sampled_losses(
    logits: Tensor, labels: Tensor, *, is_shifted: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(vocabulary ids, their losses) of some of the tokens that have a label.

    Args:
        logits: [batch, tokens, vocabulary].
        labels: int [batch, tokens], negative where there is none.
        is_shifted: logits at a token predict the label of the next one.
    """
    if is_shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    labels = labels.to(logits.device).flatten()
    if not len(labels):
        return labels, labels.new_zeros(0, dtype=torch.float32)
    places = torch.randint(len(labels), (min(_LOSS_TOKENS, len(labels)),), generator=generator).to(labels.device)
    chosen, labels = logits.flatten(0, 1)[places], labels[places]
    has_label = labels >= 0
    losses = nn.functional.cross_entropy(chosen[has_label].float(), labels[has_label], reduction="none")
    return labels[has_label], losses
