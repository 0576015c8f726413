"""Interventions that show which outputs of a model change when some tokens are replaced."""

from functools import cached_property

import torch
from torch import Tensor

from attnwatch.checkup.differences import differs
from attnwatch.checkup.forward import CannotCheck, RecordedForward, is_encoder_decoder, known
from attnwatch.checkup.repeats import Repeats
from attnwatch.checkup.sequences import first_sequences
from attnwatch.checkup.token_layouts import PatchGrid
from attnwatch.checkup.tokens import Tokens

# Sequences with fewer tokens don't show which of them are seen.
_LEAST_TOKENS = 4
# An output counts as changed if it differs by more than this share of its spread over tokens and sequences. For a
# finding that nothing changes, no output may differ by more than rounding.
_MOVED, _MOVED_IN_HALF_PRECISION = 1e-4, 2e-2
# Models fill the scores of masked tokens with -10,000 or less.
_MASKED = -5000.0


class Flow:
    """Dependence of outputs on tokens in one forward pass, computed lazily from repeated forward passes.

    Args:
        forward: recorded forward pass.
        repeats: repeats of the forward pass.
        tokens: tokens of the whole batch.
        is_of_outputs: False if the outputs are those of other tokens, as the outputs of a decoder for the tokens of its
            encoder.

    Attributes:
        module: module that is called.
        tokens: tokens of the first sequences of the batch.
    """

    def __init__(self, forward: RecordedForward, repeats: Repeats, tokens: Tokens, *, is_of_outputs: bool = True):
        self.module = forward.module
        self._is_of_outputs = is_of_outputs
        self._repeats = repeats
        self.tokens: Tokens = first_sequences(tokens, forward.num_sequences, repeats.num_sequences)
        parameter = next(forward.module.parameters(), None)
        self._is_half = parameter is not None and parameter.dtype in (torch.float16, torch.bfloat16)
        self._least = _MOVED_IN_HALF_PRECISION if self._is_half else _MOVED

    @property
    def num_sequences(self) -> int:
        """Number of sequences in the repeated forward passes."""
        return self._repeats.num_sequences

    @property
    def has_outputs_of_tokens(self) -> bool:
        """True if there is one output per token, not one per sequence."""
        output, grid = self._unchanged, self.tokens.grid
        if isinstance(grid, PatchGrid) and not grid.is_known:
            return False
        return self._is_of_outputs and output.ndim >= 3 and output.shape[1] == self.tokens.length

    @property
    def has_other_outputs(self) -> bool:
        """True if there are several outputs per sequence, but not one per token, as behind strided convolutions."""
        is_apart = is_encoder_decoder(self.module) or not self._is_of_outputs
        return not is_apart and self._unchanged.ndim >= 3 and not self.has_outputs_of_tokens

    @property
    def middle(self) -> int:
        """Middle of the shortest sequence, not counting its padding."""
        shortest = int((~self.tokens.padding).sum(1).min())
        first = int((~self.tokens.padding).int().argmax(1).max())
        if shortest < _LEAST_TOKENS:
            raise CannotCheck(f"a sequence has {shortest} tokens, and {_LEAST_TOKENS} are needed")
        return min(first + shortest // 2, self.tokens.length - 1)

    @property
    def is_constant(self) -> bool:
        """True if the outputs are the same for all tokens and sequences, apart from rounding."""
        return bool(self._spread <= self._least * self._unchanged.abs().max())

    def require_repeatable(self) -> None:
        """Raise `CannotCheck` if outputs change although nothing was replaced, as with dropout in evaluations."""
        if self._moved(self._by_token(self._repeats.output())).any():
            raise CannotCheck("the outputs change when the forward pass is repeated with the same inputs in eval mode")

    @cached_property
    def sees_others(self) -> bool:
        """True if an output changes with other tokens of its sequence, however little.

        Every second token is replaced, then the others. Replacing halves of a sequence would not do, because these may
        be two documents. The output of an unchanged token must change; that of a whole sequence must change both times.
        """
        odd = self.places % 2 == 1
        by_odd, by_even = self._by_halves
        if not self.has_outputs_of_tokens:
            return bool(by_odd.any() and by_even.any())
        if not (by_odd & odd).any() and not (by_even & ~odd).any():
            raise CannotCheck("no output changes with its own token, because weights are zero")
        real = ~self.tokens.padding
        return bool((by_odd & ~odd & real).any() or (by_even & odd & real).any())

    @property
    def sees_first_only(self) -> bool:
        """True if outputs change with the first token of their sequence, but with none of the others."""
        if not self.has_outputs_of_tokens or not self.sees_others or self.tokens.length < _LEAST_TOKENS:
            return False
        odd, real = self.places % 2 == 1, ~self.tokens.padding
        by_odd, by_even = self._by_halves
        whole = real[:, :_LEAST_TOKENS].all(1, keepdim=True)  # sequences that begin at an even place, the first
        if not (by_even & odd & real & whole).any() or (by_odd & ~odd & real & whole).any():
            return False
        by_later = self.moved_with(~odd & (self.places > 0))
        return not (by_later & odd & real & whole).any()

    @property
    def is_causal(self) -> bool:
        """True if outputs of tokens see their own token and others, but the first of each sequence sees no later one.

        A model that shifts its inputs itself does not see its own tokens.
        """
        if not self.has_outputs_of_tokens or not self.sees_others:
            return False
        by_odd, _ = self._by_halves
        begins = ~self.tokens.padding[:, :2].any(1)
        return bool(begins.any() and not by_odd[begins, 0].any() and by_odd[begins, 1].all())

    @property
    def shifts_inputs(self) -> bool:
        """True if outputs of tokens see earlier tokens, but not their own: the model shifts its inputs by one."""
        if not self.has_outputs_of_tokens or self.tokens.length < _LEAST_TOKENS or not self.sees_others:
            return False
        by_odd, by_even = self._by_halves
        begins = ~self.tokens.padding[:, :_LEAST_TOKENS].any(1)
        first, second, third = by_odd[begins, 0], by_odd[begins, 1], by_odd[begins, 2]
        return bool(begins.any() and not (first | second).any() and by_even[begins, 1].all() and third.all())

    @cached_property
    def _by_halves(self) -> tuple[Tensor, Tensor]:
        """Outputs that change with the tokens at odd places, and with those at even places."""
        odd = self.places % 2 == 1
        return self.moved_with(odd, by_little=True), self.moved_with(~odd, by_little=True)

    @cached_property
    def padded(self) -> Tensor:
        """Outputs that change with the content of the padding: bool [batch, tokens] or [batch].

        Only the embeddings of the padding are replaced; ids stay, because the model may derive the padding from them.
        """
        padding = self.tokens.padding
        if padding.all():
            raise CannotCheck("all tokens in the batch are padding")
        if self.tokens.are_ids:
            return self._moved_by_embeddings(padding)
        return self._moved(self._with(self.tokens.replaced(padding)))

    @cached_property
    def others(self) -> Tensor:
        """Outputs of the last sequence that change with the tokens of other sequences: bool [tokens], or a scalar.

        The first sequence would not change if a causal mask ran along the batch axis.
        """
        if not known(lambda: bool(self._moved_in_reverse.any()), True):
            return self._moved_in_reverse
        return self.moved_with(self._of_other_sequences)[-1]

    @cached_property
    def depends_on_place(self) -> bool:
        """True if outputs depend on the place of their sequence in the batch.

        They change when the order of the sequences is reversed, but not when the other sequences are replaced, and they
        differ if all sequences are the same. Random numbers for each place do not count.
        """
        if not self._moved_in_reverse.any() or self.others.any():
            return False
        if not self._moved(self._by_token(self._repeats.output_of_reversed_batch())).any():
            return False
        copies = self._by_token(self._repeats.output_of_copies())
        return bool(self._differs(copies, copies[:1].expand_as(copies)).any()) and not self._repeats.is_random

    @cached_property
    def _moved_in_reverse(self) -> Tensor:
        """Outputs of the last sequence that change when the others are replaced and the batch is reversed, as `others`.

        One forward pass shows that neither has an effect.
        """
        values = self.tokens.replaced(self._of_other_sequences & ~self.tokens.padding)
        output = self._repeats.output_of_reversed_batch(**{self.tokens.name: self.tokens.as_argument(values)})
        return self._moved(self._by_token(output))[-1]

    @property
    def _of_other_sequences(self) -> Tensor:
        """Mask of the tokens of all sequences except the last, bool [batch, tokens]."""
        if self.num_sequences < 2:
            raise CannotCheck("the batch has one sequence")
        rows = torch.arange(self.num_sequences, device=self.tokens.values.device)[:, None]
        return rows.expand(self.tokens.padding.shape) < self.num_sequences - 1

    @cached_property
    def reordered(self) -> Tensor:
        """Outputs of sequences without padding that change, apart from their order, when the tokens are reversed.

        If there is one output per sequence, the first and the last token stay in place, because the output may be read
        from one of them.
        """
        whole = ~self.tokens.padding.any(1)
        if not whole.any():
            raise CannotCheck("all sequences in the batch have padding")
        real = self.tokens.values[~self.tokens.padding]
        if self.tokens.are_ids and bool((real == real[0]).all()):
            raise CannotCheck("all tokens in the batch are the same")
        if self.is_constant:
            raise CannotCheck("the outputs are the same for all tokens and sequences")
        values, before = self.tokens.values, self._unchanged
        if self.has_outputs_of_tokens:
            return self._differs(self._with(values.flip(1)).flip(1), before, by_little=True)[whole]
        between = torch.cat([values[:, :1], values[:, 1:-1].flip(1), values[:, -1:]], 1)
        return self._differs(self._with(between), before, by_little=True)[whole]

    def _moved_by_embeddings(self, where: Tensor) -> Tensor:
        """Return which outputs change with the embeddings of some tokens. Their ids, which a mask may need, stay."""
        ids, where = self.tokens.as_argument(self.tokens.values), self.tokens.as_argument(where)
        return self._moved(self._by_token(self._repeats.output_with_embeddings_changed(ids, where)))

    @property
    def places(self) -> Tensor:
        """Places of the tokens in their sequences, int64 [batch, tokens]."""
        return torch.arange(self.tokens.length, device=self.tokens.values.device).expand(self.tokens.padding.shape)

    def moved_with(self, where: Tensor, *, by_little: bool = False, keep: Tensor | None = None) -> Tensor:
        """Return which outputs move when tokens are replaced, but not by the ids of those to keep."""
        values = self.tokens.replaced(where & ~self.tokens.padding)
        if keep is not None:
            values = torch.where(torch.isin(values, self.tokens.values[keep]), self.tokens.values, values)
        output = self._with(values)
        return self._differs(output, self._unchanged, by_little=by_little)

    def _with(self, values: Tensor) -> Tensor:
        return self._by_token(self._repeats.output(**{self.tokens.name: self.tokens.as_argument(values)}))

    def _moved(self, output: Tensor) -> Tensor:
        return self._differs(output, self._unchanged)

    def _differs(self, output: Tensor, before: Tensor, *, by_little: bool = False) -> Tensor:
        """Return which outputs differ, bool [batch, tokens] or [batch].

        Args:
            output, before: outputs to compare, float [batch, …].
            by_little: True to count all differences above rounding.
        """
        is_little = by_little and not self._is_half
        return (
            differs(output, before, least=None if is_little else self._least * self._spread)
            .flatten(self._num_places)
            .any(-1)
        )

    @cached_property
    def _unchanged(self) -> Tensor:
        return self._by_token(self._repeats.unchanged)

    def _by_token(self, output: Tensor) -> Tensor:
        """Return scores [batch, tokens] with a feature dimension, and outputs of pairs of tokens with 0 at padding.

        Scores of masked tokens are 0, too.
        """
        output = output.masked_fill(output < _MASKED, 0.0)
        length, padding = self.tokens.length, self.tokens.padding
        if output.ndim == 4 and output.shape[1:3] == (length, length):
            return output.masked_fill(padding[:, None, :, None].to(output.device), 0.0)
        return output[..., None] if output.ndim == 2 and output.shape[1] == length else output

    @property
    def _num_places(self) -> int:
        return 2 if self.has_outputs_of_tokens else 1

    @cached_property
    def _spread(self) -> Tensor:
        """Standard deviation over tokens and sequences, averaged over features; for a single row, over features."""
        rows = self._unchanged.flatten(0, self._num_places - 1)
        return rows.std(0).mean() if len(rows) > 1 else rows.std()
