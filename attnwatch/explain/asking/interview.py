"""Questions to a language model, made ready: what is read, in how many forwards, and what can't be asked."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from attnwatch.errors import ConfigurationError
from attnwatch.explain.asking.answers import Answers
from attnwatch.explain.asking.encoding import Continuation, Encoder, Unaskable
from attnwatch.explain.asking.questions import Question
from attnwatch.explain.asking.scoring import greedy, log_likelihoods, most_greedy_forwards, num_contexts
from attnwatch.explain.asking.templates import Templates, parse_percentage
from attnwatch.explain.subject import Subject
from attnwatch.utils.arguments import require_int

_STATED = ("yes_no", "percentage", None)
_SCORES = ("sum", "mean")
_PERCENTAGE_TOKENS = 8


class _Replies(NamedTuple):
    """Those that mean yes and those that mean no, each once, and none that might mean either."""

    yes: list[Continuation]
    no: list[Continuation]

    @property
    def all(self) -> list[Continuation]:
        return [*self.yes, *self.no]


@dataclass(frozen=True)
class _Prepared:
    """One question in tokens; the last three have what is asked next, by the choice that was the answer."""

    question: Question
    choices: list[Continuation]
    yes_no: list["_Replies"]
    percentage: list[tuple[int, ...]]
    reason: list[tuple[int, ...]]

    def longest(self, max_new_tokens: int) -> int:
        """Tokens that the model must be able to read at once."""
        lengths = [len(each.ids) - 1 for each in self._scored()]
        lengths += [len(ids) + _PERCENTAGE_TOKENS for ids in self.percentage]
        return max(lengths + [len(ids) + max_new_tokens for ids in self.reason])

    def largest_id(self) -> int:
        scored = (each.ids for each in self._scored())
        return max(max(ids) for ids in (*scored, *self.percentage, *self.reason))

    def _scored(self) -> list[Continuation]:
        return [*self.choices, *(each for replies in self.yes_no for each in replies.all)]


class Interview:
    """See `attnwatch.explain.ask` for the arguments.

    Attributes:
        skipped: (prompt, why) of the questions that can't be asked.
        most_forwards: that `hold` will take; fewer where generated texts end early.
    """

    def __init__(
        self,
        subject: Subject,
        tokenizer: Any,
        questions: Sequence[Question],
        *,
        templates: Templates,
        stated: str | None,
        reasons: bool,
        score: str,
        max_new_tokens: int,
        batch_size: int,
        max_length: int | None,
    ):
        check_options(stated=stated, score=score, max_new_tokens=max_new_tokens, batch_size=batch_size)
        require_int("max_length", max_length, minimum=1, optional=True)
        if subject.has_own_forward and (stated == "percentage" or reasons):
            raise ConfigurationError(
                "`forward`: a model that is called by a function of yours can't write texts: `stated` must be "
                f"'yes_no' or None and `reasons` False, got {stated!r} and {reasons!r}."
            )
        self._subject, self._encoder, self._templates = subject, Encoder(tokenizer), templates
        self._stated, self._reasons, self._score = stated, reasons, score
        self._max_new_tokens, self._batch_size = max_new_tokens, batch_size
        self._max_length = min(max_length or math.inf, _context_length(subject))
        self.skipped: list[tuple[str, str]] = []
        self._prepared: list[_Prepared] = []
        for question in questions:
            try:
                self._prepared.append(self._prepare(question))
            except Unaskable as reason:
                self.skipped.append((question.prompt, str(reason)))
        if not self._prepared:
            raise ConfigurationError(
                f"`questions`: none of {len(questions)} can be asked; the first: {self.skipped[0][1]}."
            )
        self._check_vocabulary()

    @property
    def most_forwards(self) -> int:
        size, number = self._batch_size, len(self._prepared)
        most = math.ceil(num_contexts(read for each in self._prepared for read in each.choices) / size)
        if self._stated == "yes_no":
            most += math.ceil(
                sum(max(num_contexts(replies.all) for replies in each.yes_no) for each in self._prepared) / size
            )
        if self._stated == "percentage":
            most += most_greedy_forwards(number, max_new_tokens=_PERCENTAGE_TOKENS, batch_size=size)
        if self._reasons:
            most += most_greedy_forwards(number, max_new_tokens=self._max_new_tokens, batch_size=size)
        return most

    def hold(self) -> Answers:
        """Ask."""
        before = self._subject.num_forwards
        with self._subject.asked():
            answers = self._answers()
            given = list(zip(self._prepared, answers.predictions, strict=True))
            if self._stated == "yes_no":
                answers.stated_confidence = self._yes_over_both([each.yes_no[answer] for each, answer in given])
            if self._stated == "percentage":
                prompts = [each.percentage[answer] for each, answer in given]
                answers.stated_replies = self._written(prompts, _PERCENTAGE_TOKENS)
                answers.stated_confidence = list(map(parse_percentage, answers.stated_replies))
            if self._reasons:
                prompts = [each.reason[answer] for each, answer in given]
                answers.claimed_reasons = self._written(prompts, self._max_new_tokens)
        answers.num_forwards = self._subject.num_forwards - before
        return answers

    def _answers(self) -> Answers:
        sums = self._subject.agreed(self._scored([each.choices for each in self._prepared]))
        if not all(map(math.isfinite, (value for row in sums for value in row))):
            raise ConfigurationError("the model's logits are nan or infinite: it can't be asked anything.")
        questions = [each.question for each in self._prepared]
        return Answers(
            prompts=[question.prompt for question in questions],
            choices=[list(question.choices) for question in questions],
            labels=[question.answer for question in questions],
            log_likelihoods=sums,
            num_tokens=[[len(read.ids) - read.start for read in each.choices] for each in self._prepared],
            score=self._score,
            stated_confidence=[],
            stated_replies=[],
            claimed_reasons=[],
            skipped=list(self.skipped),
            num_forwards=0,
        )

    def _yes_over_both(self, replies: list[_Replies]) -> list[float]:
        """Probability of the words for yes over that of those for yes and no."""
        confidence = []
        for each, sums in zip(replies, self._scored([each.all for each in replies]), strict=True):
            values = torch.tensor(sums, dtype=torch.float64)
            yes, no = values[: len(each.yes)].logsumexp(0), values[len(each.yes) :].logsumexp(0)
            confidence.append((yes - no).sigmoid().item())
        return confidence

    def _scored(self, groups: list[list[Continuation]]) -> list[list[float]]:
        flat = [each for group in groups for each in group]
        sums = log_likelihoods(self._subject, flat, batch_size=self._batch_size, pad_id=self._encoder.pad_id)
        remaining = iter(sums)
        return [[next(remaining) for _ in group] for group in groups]

    def _written(self, prompts: list[tuple[int, ...]], max_new_tokens: int) -> list[str]:
        options = {"max_new_tokens": max_new_tokens, "batch_size": self._batch_size}
        return greedy(self._subject, prompts, self._encoder, **options)

    def _prepare(self, question: Question) -> _Prepared:
        """Raises `Unaskable`."""
        prepared = _Prepared(
            question,
            self._choices(question),
            self._next(question, "yes_no", self._replies),
            self._next(question, "percentage", lambda parts: self._encoder.ids(parts[0])),
            self._next(question, "reason", lambda parts: self._encoder.ids(parts[0])),
        )
        longest = prepared.longest(self._max_new_tokens)
        if longest > self._max_length:
            raise Unaskable(f"it takes {longest} tokens, more than the {self._max_length:.0f} that can be read at once")
        return prepared

    def _next(self, question: Question, name: str, tokens: Callable[[tuple[str, str]], Any]) -> list[Any]:
        """What is asked after each answer that may be given, if it is asked at all."""
        if name not in (self._stated, "reason" if self._reasons else None):
            return []
        parts = [self._templates.follow_up(name, question.prompt, choice) for choice in question.choices]
        return [tokens(each) for each in parts]

    def _choices(self, question: Question) -> list[Continuation]:
        found = self._behind(self._templates.question(question.prompt), question.choices)
        if len(set(found)) < len(found):
            raise Unaskable("two choices are the same tokens")
        return found

    def _replies(self, parts: tuple[str, str]) -> _Replies:
        """Words may be the same tokens: where case makes no difference, or where the tokenizer knows neither."""
        words = self._templates
        found = self._behind(parts, (*words.yes, *words.no))
        yes, no = found[: len(words.yes)], found[len(words.yes) :]
        both = set(yes) & set(no)
        replies = _Replies(*([each for each in dict.fromkeys(group) if each not in both] for group in (yes, no)))
        if not replies.yes or not replies.no:
            raise Unaskable("the words for yes and no are the same tokens")
        return replies

    def _behind(self, parts: tuple[str, str], texts: Sequence[str]) -> list[Continuation]:
        context, blanks = parts
        return self._encoder.continuations(context, [text if text[0].isspace() else blanks + text for text in texts])

    def _check_vocabulary(self) -> None:
        embeddings = None if self._subject.has_own_forward else self._subject.model.get_input_embeddings()
        size, largest = getattr(embeddings, "num_embeddings", None), max(each.largest_id() for each in self._prepared)
        if size is not None and largest >= size:
            raise ConfigurationError(
                f"`tokenizer` is not that of the model: it makes the token id {largest}, the model knows {size} ids."
            )


def check_options(*, stated: str | None, score: str, max_new_tokens: int, batch_size: int) -> None:
    """Raises a `ConfigurationError` that names the one that is wrong."""
    if stated not in _STATED:
        raise ConfigurationError(f"`stated` must be one of {', '.join(map(repr, _STATED))}, got {stated!r}.")
    if score not in _SCORES:
        raise ConfigurationError(f"`score` must be one of {', '.join(map(repr, _SCORES))}, got {score!r}.")
    require_int("max_new_tokens", max_new_tokens, minimum=1)
    require_int("batch_size", batch_size, minimum=1)


def _context_length(subject: Subject) -> float:
    """Tokens that the model has positions for; infinite where it does not say."""
    config = getattr(subject.model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else math.inf
