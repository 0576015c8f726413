"""Choice of the tokens of each forward that are computed, and their count."""

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
    """Choice of the tokens of each forward that are computed, and their count.

    Args:
        stack: stack of layers whose tokens are chosen.
        layers: those of its layers in which tokens are dropped.
        scoring: scores of the tokens.
        options: number of the kept tokens, and tokens that always stay.
        keep_ratio: share of the tokens that is kept.

    Attributes:
        keep_ratio, scoring: as above.
        number: by which compiled code knows the chooser.
        num_forwards: number of forwards in training in which tokens were dropped.
        layer_tokens: number of tokens that the layers of the stack have computed in training, summed over layers.
        all_layer_tokens: number of tokens that they would have computed without dropping.
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
        """Return how many tokens of a sequence are kept.

        Args:
            num_tokens: of the sequence.
            why_all: why none can be dropped in this forward; empty where some can.
        """
        options = self._options
        if not why_all and num_tokens <= options.min_tokens:
            why_all = f"a batch has no more than the {options.min_tokens} tokens a sequence of `min_tokens`"
        if why_all:
            self._warn_once(f"all tokens are computed where {why_all}.")
            return num_tokens
        rounding = {"multiple_of": options.multiple_of}
        number = num_kept(num_tokens, self.keep_ratio, min_tokens=options.min_tokens, **rounding)
        if options.protect_first > number:
            self._warn_once(
                f"`protect_first` ({options.protect_first}) is above the number of tokens that are kept, so that a "
                "sequence keeps its first tokens and the criterion chooses few or none; lower it or raise `keep_ratio`",
                f" (first seen: {number} of {num_tokens} tokens would be kept).",
            )
            number = num_kept(num_tokens, self.keep_ratio, min_tokens=options.protect_first, **rounding)
        if number == num_tokens:
            self._warn_once(
                f"all tokens are computed where `min_tokens` ({options.min_tokens}), `multiple_of` "
                f"({options.multiple_of}) and `protect_first` ({options.protect_first}) leave none to drop."
            )
        return number

    def choose(self, states: Tensor, number: int, known: Mapping[str, Tensor]) -> Tensor:
        """Return the tokens of one forward that are computed: int64 [batch, number], ascending.

        Args:
            states: hidden states [batch, tokens, features].
            number: of tokens that a sequence keeps.
            known: what is known of the tokens, see `choice.KNOWN`.
        """
        is_training = self._layers[0].training
        if is_training:
            self._count(states, number)
        if number == states.shape[1]:
            return torch.arange(number, device=states.device).expand(len(states), -1).clone()
        batch = TokenBatch.of(states, known, self.generator())
        self.num_forwards += is_training
        scores = self._peers().mean(self._scores(batch))
        if self.num_forwards == 1 and scores.isnan().all():  # once: on a GPU it waits
            self._warn_once("the criterion says nan for all tokens; the choice means nothing.")
        protected = batch.protected(self._options.protect_first, self._options.protected_ids)
        self._check_protection(batch, protected, number)
        return choose_tokens(scores, number, protected=protected, padding=batch.padding)

    def generator(self) -> torch.Generator:
        """Return a generator on the CPU: another one for each forward in training, and in evaluation always the same.

        Processes with other tokens have other generators.
        """
        generator = torch.Generator()
        number = self.num_forwards if self._layers[0].training else -1
        return generator.manual_seed(hash((self._options.seed, self._peers().leader, number)) % 2**63)

    def synchronize(self) -> None:
        """Share between processes what the criterion has learned; all must call it."""
        device = next(self._layers[0].parameters()).device
        self.scoring.synchronize(self._peers().size, device)

    def state_dict(self) -> dict[str, Any]:
        """Return the state on which later choices depend."""
        return {
            "forwards": self.num_forwards,
            "layer_tokens": [self.layer_tokens, self.all_layer_tokens],
            "criteria": self.scoring.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.num_forwards = state["forwards"]
        self.layer_tokens, self.all_layer_tokens = state["layer_tokens"]
        self.scoring.load_state_dict(state["criteria"])

    def _scores(self, batch: TokenBatch) -> Tensor:
        try:
            return self.scoring.scores(batch)
        except Exception as error:  # the training is worth more
            self._warn_once(
                f"tokens are chosen at random where the criterion fails: {self.scoring.described} failed with "
                f"{type(error).__name__}: {error}"
            )
            return batch.noise()

    def _check_protection(self, batch: TokenBatch, protected: Tensor, number: int) -> None:
        """Warn once where tokens that are to stay can't, or are not known."""
        if self._options.protected_ids and batch.input_ids is None:
            self._warn_once(
                "`protected_ids` protect nothing: the model was given no `input_ids` [batch, tokens] to find them in."
            )
        if not protected.is_cpu and self.num_forwards > 1:  # asking a GPU waits for it
            return
        most = int(protected.sum(1).max()) if protected.numel() else 0
        if most > number:
            self._warn_once(
                "`protect_first` and `protected_ids` protect more tokens of a sequence than are kept, so that some of "
                "them are dropped; raise `keep_ratio` or `min_tokens`, or protect fewer",
                f" (first seen: {most} are protected, {number} of {batch.states.shape[1]} are kept).",
            )

    def _count(self, states: Tensor, number: int) -> None:
        batch_size, num_tokens = states.shape[:2]
        depth, shortened = len(self._stack.layers), len(self._layers)
        self.all_layer_tokens += batch_size * num_tokens * depth
        self.layer_tokens += batch_size * (num_tokens * (depth - shortened) + number * shortened)

    def _peers(self) -> TensorParallelGroup:
        """Return the processes with the same tokens; known in a forward, when the model has been split over them."""
        if self._known_peers is None:
            self._known_peers = TensorParallelGroup(self._stack.model, self._layers[0])
        return self._known_peers
