"""Forwards of a model on rows, each a sequence of a batch in which some tokens are hidden."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from attnwatch.errors import ConfigurationError
from attnwatch.explain.checks import check_batch, check_hiding_options, check_model, refuse_other_heads
from attnwatch.explain.effects import Effect, LossEffect, make_effect
from attnwatch.explain.hiding import ids_never_hidden, make_hiding, positions_by_mask, rows_of
from attnwatch.explain.progress import progress
from attnwatch.explain.subject import Batch, Subject, token_mask
from attnwatch.explain.suffixes import Prefix, kept_prefix, name_of_cache

# Tokens that one forward is given by default: a CPU gains nothing from more.
_TOKENS_PER_FORWARD = {"cpu": 512}
_ON_ACCELERATORS = 16384
# Numbers that a forward returns by default, on a CPU: 32 MiB, beyond which the C library asks the system for memory
# anew each time. On an accelerator as many more as there may be tokens.
_OUTPUTS_PER_FORWARD = {"cpu": 2**23}
_OUTPUTS_ON_ACCELERATORS = 2**28
# Tokens that can be hidden in a sequence on which it is tried whether keys and values can be kept.
_FEWEST = 4
# Relative to 1 + the largest loss: what rounding does to losses computed in another order, by bytes of a parameter.
_ROUNDING = {8: 1e-4, 4: 1e-4, 2: 0.05}


class Ablations:
    """What hiding tokens of one batch changes. All of it happens while `subject.asked()` is open.

    A causal language model is asked for the tokens from the first hidden one on only: keys and values of the tokens
    before it are those of the whole sequence. One row is computed both ways first; where they disagree, or where the
    model keeps something else, rows are computed whole.

    Args: see `occlude`.

    Attributes:
        subject: that is asked.
        num_preparing: forwards that it took to prepare.
        real: bool [batch, tokens], False at padding.
        hideable: bool [batch, tokens], neither padding nor a special token.
        effect: that is measured.
        route: "suffixes" or "whole"; `why_whole` says why.

    Raises:
        ConfigurationError: the model or the batch can't be asked this way.
    """

    def __init__(
        self,
        subject: Subject,
        batch: Batch,
        *,
        hide: str = "remove",
        effect: str | None = None,
        tokenizer: Any = None,
        mask_token_id: int | None = None,
        special_ids: Collection[int] | None = None,
        tokens_per_forward: int | None = None,
    ):
        check_hiding_options(
            hide=hide,
            effect=effect,
            tokenizer=tokenizer,
            mask_token_id=mask_token_id,
            special_ids=special_ids,
            tokens_per_forward=tokens_per_forward,
        )
        check_batch(batch)
        check_model(subject, effect)
        self.subject = subject
        before = subject.num_forwards
        self._hiding = make_hiding(hide, subject, tokenizer, mask_token_id)
        self.real = token_mask(batch)
        self.special = torch.isin(batch["input_ids"], ids_never_hidden(subject, tokenizer, special_ids)) & self.real
        self.hideable = self.real & ~self.special
        self._batch = dict(batch)
        if self._hiding.takes_away_outputs:
            self._batch.setdefault("attention_mask", self.real.long())
        self._without_cache = {"use_cache": False} if self._is_by_name("use_cache") else {}
        logits = self._answer(effect)
        if logits.ndim == 3:
            refuse_other_heads(subject, effect)
        self.effect: Effect = make_effect(effect, logits, batch, self.real, subject.problem_type)
        self._budget = _default_budget(logits) if tokens_per_forward is None else tokens_per_forward
        if isinstance(self.effect, LossEffect):
            self._check_causality(logits)
        else:
            self._prefix, self.why_whole = None, f"the effect {self.effect.name!r} needs all outputs"
        self.num_preparing = subject.num_forwards - before

    @property
    def route(self) -> str:
        return "whole" if self._prefix is None else "suffixes"

    @property
    def takes_away_outputs(self) -> bool:
        return self._hiding.takes_away_outputs

    def chunks(self, sequences: Tensor, hidden: Tensor) -> list[Tensor]:
        """Indices of the rows that are computed in one forward each, int64 [rows]."""
        starts, ends = self._spans(sequences, hidden, self._prefix)
        order = torch.argsort(starts * self.real.shape[1] + ends, stable=True).tolist()
        starts, ends = starts.tolist(), ends.tolist()
        chunks: list[list[int]] = []
        widest = 0
        for row in order:
            end = max(widest, ends[row])
            if chunks and (len(chunks[-1]) + 1) * (end - starts[chunks[-1][0]]) <= self._budget:
                chunks[-1].append(row)
                widest = end
            else:
                chunks.append([row])
                widest = ends[row]
        return [torch.tensor(chunk, device=hidden.device) for chunk in chunks]

    def effects(self, sequences: Tensor, hidden: Tensor, *, show_progress: bool = False) -> Tensor:
        """[rows], or [rows, tokens] where the model says something at each token: 0 where it was not computed.

        Args:
            sequences: int64 [rows], of the batch.
            hidden: bool [rows, tokens].
        """
        shape = (len(sequences),) if self.effect.outputs is None else hidden.shape
        effects = torch.zeros(shape, device=hidden.device)
        for chunk in progress(self.chunks(sequences, hidden), show_progress):
            start, found = self._ask(sequences[chunk], hidden[chunk], self._prefix)
            if found.ndim == 1:
                effects[chunk] = found
            else:
                effects[chunk, start : start + found.shape[1]] = found
        return effects

    def _spans(self, sequences: Tensor, hidden: Tensor, prefix: Prefix | None) -> tuple[Tensor, Tensor]:
        """First token of each row that must be computed, and the end, int64 [rows]."""
        if prefix is None:
            return torch.zeros_like(sequences), self._ends(self.real)[sequences]
        return hidden.int().argmax(1), self._ends(self.effect.outputs)[sequences]

    def _ends(self, counts: Tensor) -> Tensor:
        """int64 [batch], at least 1; all tokens where only the user's function knows what may be left out."""
        tokens = counts.shape[1]
        if self.subject.has_own_forward:
            return torch.full((len(counts),), tokens, device=counts.device)
        return (counts * torch.arange(1, tokens + 1, device=counts.device)).amax(1).clamp(min=1)

    def _ask(self, sequences: Tensor, hidden: Tensor, prefix: Prefix | None) -> tuple[int, Tensor]:
        """(first token that was computed, effects of the rows from there on)."""
        start, logits = self._logits(sequences, hidden, prefix)
        return start, self.effect.of(logits, sequences, start)

    def _logits(self, sequences: Tensor, hidden: Tensor, prefix: Prefix | None) -> tuple[int, Tensor]:
        """(first token that was computed, logits of the rows from there on)."""
        starts, ends = self._spans(sequences, hidden, prefix)
        start, end = (int(starts.min()) if prefix is not None else 0), int(ends.max())
        given = rows_of(self._batch, sequences)
        kept = self._without_cache if prefix is None else prefix.arguments(sequences, start)
        with self._hiding.hidden_in(given, hidden, start) as rows:
            return start, self.subject.logits(_cut(rows, self.real.shape[1], start, end), **kept)

    def _ask_all(self, effect: str | None) -> Tensor:
        """Logits with nothing hidden; keeps keys and values where they may be of use."""
        self._prefix, self.why_whole = None, "the model keeps no keys and values that are known"
        is_causal = not getattr(getattr(self.subject.model, "config", None), "is_encoder_decoder", False)
        cache, by_name = name_of_cache(self.subject), all(map(self._is_by_name, ("use_cache", "attention_mask")))
        if effect in (None, "loss") and is_causal and cache is not None and by_name:
            logits, self._prefix = kept_prefix(self.subject, self._batch, cache)
            if logits is not None:
                return logits
        return self.subject.logits(self._batch, **self._without_cache)

    def _answer(self, effect: str | None) -> Tensor:
        """Logits with nothing hidden. Models that count positions in the mask are given those of the whole sequences.

        Whether they do is tried on the sequence with the most padding, in which other ways to count differ the most.
        """
        by_mask = self._hiding.takes_away_outputs and self._is_by_name("position_ids")
        if not by_mask or "position_ids" in self._batch:
            return self._ask_all(effect)
        lengths = self.real.sum(1)
        sequence = lengths.masked_fill(lengths < 2, self.real.shape[1] + 1).argmin()[None]
        row, real = rows_of(self._batch, sequence), self.real[sequence]
        self._batch["position_ids"] = positions_by_mask(self._batch["attention_mask"])
        try:
            logits = self._ask_all(effect)
            given, own = logits[sequence], self.subject.logits(row, **self._without_cache)
            if own.ndim == 3:
                given, own = given[real], own[real]
            if self.subject.agreed(torch.allclose(given, own, rtol=self._rounding, atol=self._rounding)):
                return logits
        except Exception:  # of whatever kind: what is not about the positions comes again without them
            pass
        del self._batch["position_ids"]
        return self._ask_all(effect)

    def _check_causality(self, logits: Tensor) -> None:
        """One token hidden the plain way: nothing before it changes, and with keys and values kept it is the same."""
        prefix, self._prefix = self._prefix, None
        outputs = self.effect.outputs
        # Logits before the hidden token show it, whether or not there are labels at them.
        usable = self.hideable & outputs.any(1, keepdim=True) & (self.real.cumsum(1) > 1)
        if not usable.any():
            return
        is_nan = (logits.isnan().any(-1) & self.real).any(1, keepdim=True)
        if not (usable & ~is_nan).any():
            self._refuse_nan()
        usable &= ~is_nan  # sequences of which something can be seen
        ahead = outputs.flip(1).cumsum(1).flip(1) - (outputs & self._hiding.takes_away_outputs).long() > 0
        is_shown = bool((usable & ahead).any())  # by a loss, whether what was kept is of use
        sequence, place = _middle_of_one(usable & ahead if is_shown else usable)
        sequences = torch.tensor([sequence], device=self.real.device)
        hidden = torch.zeros_like(self.real[:1])
        hidden[0, place] = True
        _, found = self._logits(sequences, hidden, None)
        self._compare_before(logits[sequence, :place], found[0, :place], self.real[sequence, :place])
        if prefix is not None and is_shown:
            whole = self._row(sequences, 0, self.effect.of(found, sequences, 0))
            self._try_prefix(prefix, whole, sequences, hidden, place)
        elif prefix is not None:
            self.why_whole = "too little is predicted to see whether keys and values can be kept"

    def _compare_before(self, base: Tensor, found: Tensor, real: Tensor) -> None:
        """Logits [tokens, vocabulary] before a hidden token, in proportion to their spread, however small that is."""
        base, found = base[real], found[real]
        if found.isnan().any():
            self._refuse_nan()
        spread = (base - base.mean(-1, keepdim=True)).abs().nan_to_num(posinf=0.0).max()
        change = torch.where(base == found, 0.0, base - found)  # infinities that stay are no change
        if self._exceeds(change, self._rounding * float(spread)):
            raise ConfigurationError(
                f"`effect` 'loss' is of a causal language model, and in {type(self.subject.model).__name__} hiding a "
                "token changes predictions before it: give effect='kl'."
            )

    def _refuse_nan(self) -> None:
        raise ConfigurationError(
            f"`model`: the outputs of {type(self.subject.model).__name__} are not finite (nan), so that nothing can "
            "be measured: look for nan among its weights and in the batch."
        )

    def _try_prefix(self, prefix: Prefix, whole: Tensor, sequences: Tensor, hidden: Tensor, place: int) -> None:
        """Keeps it if the effects [tokens] of this row are the same with it."""
        try:
            again = self._row(sequences, *self._ask(sequences, hidden, prefix))
        except Exception as error:  # of whatever kind: models differ in what they do with a cache
            self.why_whole = f"kept keys and values could not be used: {error}"
            return
        tolerance = self._rounding * (1 + self.effect.largest)
        if self._exceeds((again - whole)[place + self._hiding.takes_away_outputs :], tolerance):
            self.why_whole = "with kept keys and values the model says something else"
        else:
            self._prefix, self.why_whole = prefix, ""

    def _row(self, sequences: Tensor, start: int, found: Tensor) -> Tensor:
        """Effects [tokens] of one row, known from `start` on; 0 where there is no output."""
        effects = torch.zeros(self.real.shape[1], device=found.device)
        effects[start : start + found.shape[1]] = found[0]
        return effects.masked_fill(~self.effect.outputs[sequences[0]], 0.0)

    def _exceeds(self, values: Tensor, tolerance: float) -> bool:
        """Also where a value is nan."""
        return self.subject.agreed(not bool((values.abs() <= tolerance).all()))

    @property
    def _rounding(self) -> float:
        parameter = next(self.subject.model.parameters(), torch.zeros(()))
        return _ROUNDING.get(parameter.element_size(), 0.05)

    def _is_by_name(self, name: str) -> bool:
        return not self.subject.has_own_forward and self.subject.takes(name)


def _middle_of_one(usable: Tensor) -> tuple[int, int]:
    """(sequence, place): padding is where models differ, and of very few tokens little can be seen."""
    numbers = usable.sum(1)
    sequence = int(numbers.masked_fill(numbers < min(_FEWEST, int(numbers.max())), usable.shape[1] + 1).argmin())
    places = usable[sequence].nonzero()[:, 0]
    return sequence, int(places[len(places) // 2])


def _default_budget(logits: Tensor) -> int:
    """Tokens that one forward is given."""
    device = logits.device.type
    tokens = _TOKENS_PER_FORWARD.get(device, _ON_ACCELERATORS)
    if logits.ndim == 2:
        return tokens
    return min(tokens, max(1, _OUTPUTS_PER_FORWARD.get(device, _OUTPUTS_ON_ACCELERATORS) // logits.shape[-1]))


def _cut(rows: dict[str, Any], tokens: int, start: int, end: int) -> dict[str, Any]:
    """The tokens from `start` to `end`; the mask of keys begins at the first."""
    cut = {}
    for name, each in rows.items():
        if isinstance(each, Tensor) and each.ndim >= 2 and each.shape[1] == tokens:
            each = each[:, (0 if name == "attention_mask" else start) : end]
        cut[name] = each
    return cut
