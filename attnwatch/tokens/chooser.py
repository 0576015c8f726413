"""Choice and count of the tokens to compute in each forward pass."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.capture import TensorParallelGroup
from attnwatch.tokens.batch import TokenBatch
from attnwatch.tokens.choice import CHOOSERS
from attnwatch.tokens.options import ChoiceOptions
from attnwatch.tokens.scoring import Scoring
from attnwatch.tokens.selection import choose_tokens, num_kept
from attnwatch.tokens.stacks import Stack
from attnwatch.utils.messages import WarnOnce


class TokenChooser:
    """Choice and count of the tokens to compute in each forward pass.

    Args:
        stack: stack of layers whose tokens are chosen.
        layers: layers of the stack in which tokens are dropped.
        scoring: scores of the tokens.
        options: number of tokens to keep, and tokens that always stay.
        keep_ratio: share of the tokens to keep.

    Attributes:
        keep_ratio, scoring: as above.
        number: number that identifies the chooser in compiled code.
        num_forwards: number of training forward passes in which tokens were dropped.
        layer_tokens: number of tokens that the layers of the stack computed in training, summed over layers.
        all_layer_tokens: the same number without dropping.
    """

    def __init__(
        self,
        stack: Stack,
        layers: tuple[nn.Module, ...],
        scoring: Scoring,
        options: ChoiceOptions,
        keep_ratio: float,
    ):
        self._stack, self._layers, self._options = stack, layers, options
        self.scoring, self.keep_ratio = scoring, keep_ratio
        self._warn_once = WarnOnce()
        self._known_peers: TensorParallelGroup | None = None
        self.number = CHOOSERS.add(self)
        self.num_forwards = self.layer_tokens = self.all_layer_tokens = 0

    def num_kept(self, num_tokens: int, why_all: str) -> int:
        """Return the number of tokens of a sequence that are kept.

        Args:
            num_tokens: length of the sequence.
            why_all: reason why none can be dropped in this forward pass; empty if some can.
        """
        options = self._options
        if not why_all and num_tokens <= options.min_tokens:
            why_all = f"the sequences of a batch have at most {options.min_tokens} tokens (`min_tokens`)"
        if why_all:
            self._warn_once(f"all tokens are computed when {why_all}.")
            return num_tokens
        rounding = {"multiple_of": options.multiple_of}
        number = num_kept(num_tokens, self.keep_ratio, min_tokens=options.min_tokens, **rounding)
        if options.protect_first > number:
            self._warn_once(
                f"`protect_first` ({options.protect_first}) exceeds the number of tokens to keep, so a sequence "
                "keeps its first tokens and the criterion chooses few or none; lower it or raise `keep_ratio`",
                f" (first seen: {number} of {num_tokens} tokens would be kept).",
            )
            number = num_kept(num_tokens, self.keep_ratio, min_tokens=options.protect_first, **rounding)
        if number == num_tokens:
            self._warn_once(
                f"all tokens are computed when `min_tokens` ({options.min_tokens}), `multiple_of` "
                f"({options.multiple_of}) and `protect_first` ({options.protect_first}) leave none to drop."
            )
        return number

    def choose(self, states: Tensor, number: int, known: Mapping[str, Tensor]) -> Tensor:
        """Return the tokens to compute in one forward pass: int64 [batch, number], ascending.

        Args:
            states: hidden states [batch, tokens, features].
            number: number of tokens that a sequence keeps.
            known: information about the tokens, see `choice.KNOWN`.
        """
        is_training = self._layers[0].training
        if is_training:
            self._count(states, number)
        if number == states.shape[1]:
            return torch.arange(number, device=states.device).expand(len(states), -1).clone()
        batch = TokenBatch.of(states, known, self.generator())
        self.num_forwards += is_training
        scores = self._peers().mean(self._scores(batch))
        if self.num_forwards == 1 and scores.isnan().all():  # only once, because it synchronizes with a GPU
            self._warn_once("the criterion scores all tokens nan; the choice is arbitrary.")
        protected = batch.protected(self._options.protect_first, self._options.protected_ids)
        self._check_protection(batch, protected, number)
        return choose_tokens(scores, number, protected=protected, padding=batch.padding)

    def generator(self) -> torch.Generator:
        """Return a generator on the CPU: a new one for each training forward pass, always the same in evaluation.

        Processes with different tokens have different generators.
        """
        generator = torch.Generator()
        number = self.num_forwards if self._layers[0].training else -1
        return generator.manual_seed(hash((self._options.seed, self._peers().leader, number)) % 2**63)

    def synchronize(self) -> None:
        """Share what the criterion learned between processes; all must call it."""
        device = next(self._layers[0].parameters()).device
        self.scoring.synchronize(self._peers().size, device)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that later choices depend on."""
        return {
            "forwards": self.num_forwards,
            "layer_tokens": [self.layer_tokens, self.all_layer_tokens],
            "criteria": self.scoring.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.num_forwards = state["forwards"]
        self.layer_tokens, self.all_layer_tokens = state["layer_tokens"]
        self.scoring.load_state_dict(state["criteria"])

    def _scores(self, batch: TokenBatch) -> Tensor:
        try:
            return self.scoring.scores(batch)
        except Exception as error:  # training must continue
            self._warn_once(
                f"tokens are chosen at random when the criterion fails: {self.scoring.described} failed with "
                f"{type(error).__name__}: {error}"
            )
            return batch.noise()

    def _check_protection(self, batch: TokenBatch, protected: Tensor, number: int) -> None:
        """Warn once if protected tokens can't stay, or can't be identified."""
        if self._options.protected_ids and batch.input_ids is None:
            self._warn_once("`protected_ids` has no effect: the model received no `input_ids` [batch, tokens].")
        if not protected.is_cpu and self.num_forwards > 1:  # this would synchronize with the GPU
            return
        most = int(protected.sum(1).max()) if protected.numel() else 0
        if most > number:
            self._warn_once(
                "`protect_first` and `protected_ids` protect more tokens of a sequence than can be kept, so some "
                "are dropped; raise `keep_ratio` or `min_tokens`, or protect fewer",
                f" (first seen: {most} are protected, {number} of {batch.states.shape[1]} are kept).",
            )

    def _count(self, states: Tensor, number: int) -> None:
        batch_size, num_tokens = states.shape[:2]
        depth, shortened = len(self._stack.layers), len(self._layers)
        self.all_layer_tokens += batch_size * num_tokens * depth
        self.layer_tokens += batch_size * (num_tokens * (depth - shortened) + number * shortened)

    def _peers(self) -> TensorParallelGroup:
        """Return the processes with the same tokens, which are known from the first forward pass on."""
        if self._known_peers is None:
            self._known_peers = TensorParallelGroup(self._stack.model, self._layers[0])
        return self._known_peers
