"""Multiple-choice questions generated from a text."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from attnwatch.errors import ConfigurationError
from attnwatch.explain.batches import Batch, token_mask
from attnwatch.explain.multiple_choice.questions import Question
from attnwatch.explain.multiple_choice.tokenization import QuestionTokenizer, SkippedQuestion
from attnwatch.utils.arguments import require_int, require_unicode

_TRIES = 60  # per question, and per set of other choices, at places of the text


def questions_from_text(
    text: str | Iterable[Batch],
    tokenizer: Any,
    number: int = 32,
    *,
    seed: int = 0,
    prompt_tokens: int = 32,
    choice_tokens: int = 3,
    num_choices: int = 4,
) -> list[Question]:
    """Return questions about the continuation of passages of a text.

    The prompt is a passage, one choice is its continuation, and the other choices come from elsewhere in the text.
    All choices begin with a word and have the same number of tokens.

    Args:
        text: text, or batches with `input_ids` [batch, tokens], and `attention_mask` if there is padding.
        tokenizer: transformers tokenizer that made the batches.
        number: number of questions; fewer are returned if the text does not yield as many.
        seed: seed of the places and the order of the choices.
        prompt_tokens, choice_tokens: number of tokens of the prompt and of each choice.
        num_choices: number of choices per question.

    Raises:
        ConfigurationError: an argument is invalid, or the text is too short or too uniform for a single question.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = {f"w{index}": index for index in range(20)}
        >>> tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
        >>> tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        >>> options = {"prompt_tokens": 4, "choice_tokens": 1, "num_choices": 2}
        >>> len(questions_from_text(" ".join(words), tokenizer, 5, **options))
        5
    """
    require_int("number", number, minimum=1)
    require_int("prompt_tokens", prompt_tokens, minimum=1)
    require_int("choice_tokens", choice_tokens, minimum=1)
    require_int("num_choices", num_choices, minimum=2)
    require_int("seed", seed, minimum=0)
    if isinstance(text, str):
        require_unicode("text", text)
    encoder = QuestionTokenizer(tokenizer)
    sequences = [encoder.plain_ids(text)] if isinstance(text, str) else _sequences(text)
    long = [ids for ids in sequences if len(ids) >= prompt_tokens + choice_tokens]
    generator = _Generator(encoder, long, prompt_tokens, choice_tokens, random.Random(seed))
    found: dict[Question, None] = {}  # ordered, without duplicates
    for _ in range(number if long else 0):
        question = generator.question(num_choices)
        if question is None:
            break
        found[question] = None
    if not found:
        name = "`text`" if isinstance(text, str) else "the text of the batches"
        raise ConfigurationError(
            f"{name} has fewer than {num_choices} places with {prompt_tokens} + {choice_tokens} tokens whose last part "
            f"starts with a word ({sum(map(len, sequences))} tokens in {len(sequences)} sequences): pass more text, "
            "or your own `questions`."
        )
    return list(found)


@dataclass
class _Generator:
    """Generator of random questions from sequences of token ids, each long enough for a prompt and a choice."""

    tokenizer: QuestionTokenizer
    sequences: list[list[int]]
    prompt_tokens: int
    choice_tokens: int
    draw: random.Random

    def __post_init__(self) -> None:
        self.num_places = [len(ids) - self.prompt_tokens - self.choice_tokens + 1 for ids in self.sequences]

    def question(self, num_choices: int) -> Question | None:
        """Return a question; None if no suitable place was found."""
        for _ in range(_TRIES):
            prompt, right = self._place()
            if prompt.strip() and self._fits(prompt, right):
                others = self._other_choices(prompt, right, num_choices - 1)
                if others is not None:
                    choices = [right, *others]
                    self.draw.shuffle(choices)
                    return Question(prompt, tuple(choices), choices.index(right))
        return None

    def _place(self) -> tuple[str, str]:
        """Return a passage and its continuation, which is "" if it does not start with a word."""
        (ids,) = self.draw.choices(self.sequences, self.num_places)  # all places have the same probability
        start = self.draw.randrange(len(ids) - self.prompt_tokens - self.choice_tokens + 1)
        stretch = ids[start : start + self.prompt_tokens + self.choice_tokens]
        if not self.tokenizer.special_ids.isdisjoint(stretch):  # a document ends, or a word is unknown
            return "", ""
        prompt, whole = self.tokenizer.decode(stretch[: self.prompt_tokens]), self.tokenizer.decode(stretch)
        following = whole.removeprefix(prompt) if whole.startswith(prompt) else ""
        return prompt, following[1:] if following[:1] == " " and not following[1:2].isspace() else ""

    def _other_choices(self, prompt: str, right: str, number: int) -> list[str] | None:
        found = {right.strip(): right}
        for _ in range(_TRIES):
            if len(found) == number + 1:
                return list(found.values())[1:]
            _, other = self._place()
            if other.strip() not in found and self._fits(prompt, other):
                found[other.strip()] = other
        return None

    def _fits(self, prompt: str, choice: str) -> bool:
        """Return whether a choice has the right number of tokens after the prompt."""
        if not choice.strip() or "\N{REPLACEMENT CHARACTER}" in prompt + choice:
            return False
        try:
            ((ids, start),) = self.tokenizer.continuations(prompt, [f" {choice}"])
        except SkippedQuestion:
            return False
        return len(ids) - start == self.choice_tokens


def _sequences(batches: Iterable[Batch]) -> list[list[int]]:
    found = []
    for batch in batches:
        mask = token_mask(batch)
        found += [row[kept].tolist() for row, kept in zip(batch["input_ids"], mask, strict=True)]
    return found
