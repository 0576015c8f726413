"""Multiple-choice evaluation of a language model and of its stated confidence."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import nn

from attnwatch.errors import ConfigurationError
from attnwatch.explain.evaluated_model import EvaluatedModel, Forward
from attnwatch.explain.multiple_choice.answers import Answers
from attnwatch.explain.multiple_choice.options import EvaluationOptions, Score, Stated
from attnwatch.explain.multiple_choice.questions import Question, as_questions
from attnwatch.explain.multiple_choice.scoring import generate_greedily, log_likelihoods, num_contexts
from attnwatch.explain.multiple_choice.templates import Templates, parse_percentage
from attnwatch.explain.multiple_choice.tokenization import (
    QuestionTokenizer,
    Replies,
    SkippedQuestion,
    TokenizedQuestion,
    tokenize_question,
)


def ask(
    model: nn.Module | EvaluatedModel,
    tokenizer: Any,
    questions: str | PathLike[str] | Iterable[Question | Mapping[str, Any]],
    *,
    templates: Templates | None = None,
    stated: Stated | None = "yes_no",
    reasons: bool = False,
    score: Score = "sum",
    max_new_tokens: int = 32,
    batch_size: int = 8,
    max_length: int | None = None,
    forward: Forward | None = None,
) -> Answers:
    """Ask a causal language model multiple-choice questions without changing the model or any random state.

    The answer is the choice with the largest probability p(choice) ∝ exp(Σ_t log p(token t | prompt, tokens before t)).
    The sum starts at the first token at which a choice differs from the tokens of the prompt alone.

    Args:
        model: causal language model.
        tokenizer: transformers tokenizer.
        questions: path of a JSONL file (see `load_questions`), or a list.
        templates: wording of the questions; None means the defaults of `Templates`.
        stated: follow-up question about the confidence. `"yes_no"` uses the probability of "yes" relative to "yes" and
            "no"; with `"percentage"`, the model writes a number (see `parse_percentage`); None asks nothing.
        reasons: True to ask for a reason too.
        score: `"sum"` as above, or `"mean"` to divide the sum by the choice's number of tokens, for choices that differ
            in length.
        max_new_tokens: maximum number of tokens of a reason.
        batch_size: number of rows per forward.
        max_length: maximum number of tokens of a row; never more than the model's number of positions.
        forward: see `EvaluatedModel`; incompatible with reasons and percentages, which need transformers' `generate`.

    Raises:
        ConfigurationError: an argument is invalid, `model` is not a causal language model, or no question can be asked.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        >>> words = {word: index for index, word in enumerate(["?", "the", "sky", "is", "blue", "green"])}
        >>> tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
        >>> tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        >>> config = LlamaConfig(vocab_size=6, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> question = Question("the sky is", ("blue", "green"), answer="blue")
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        >>> ask(LlamaForCausalLM(config), tokenizer, [question], stated=None).probabilities.shape
        torch.Size([1, 2])
    """
    templates = Templates() if templates is None else templates
    options = EvaluationOptions(templates, stated, reasons, score, max_new_tokens, batch_size, max_length)
    evaluated = EvaluatedModel.of(model, forward)
    require_language_model(evaluated)
    return MultipleChoiceEvaluation(evaluated, tokenizer, as_questions(questions), options).run()


class MultipleChoiceEvaluation:
    """Tokenized questions for a language model, with the number of forwards known in advance.

    Args:
        model: causal language model.
        tokenizer, questions, options: see `ask`.

    Attributes:
        skipped: (prompt, reason) of questions that can't be asked.
        most_forwards: maximum number of forwards that `run` will take; fewer if generated texts end early.

    Raises:
        ConfigurationError: no question can be asked, or the tokenizer does not belong to the model.
    """

    def __init__(
        self, model: EvaluatedModel, tokenizer: Any, questions: Sequence[Question], options: EvaluationOptions
    ):
        if model.has_custom_forward and (options.stated == "percentage" or options.reasons):
            raise ConfigurationError(
                "`forward`: a model with a custom forward can't generate text: `stated` must be "
                f"'yes_no' or None and `reasons` False, got {options.stated!r} and {options.reasons!r}."
            )
        embeddings = None if model.has_custom_forward else model.input_embeddings
        tokenizer = QuestionTokenizer(tokenizer, getattr(embeddings, "num_embeddings", None))
        self._model, self._options = model, options
        self._log_likelihoods = partial(log_likelihoods, model, batch_size=options.batch_size, pad_id=tokenizer.pad_id)
        self._generate = partial(generate_greedily, model, tokenizer, batch_size=options.batch_size)
        max_length = min(options.max_length or math.inf, _num_positions(model))
        self.skipped: list[tuple[str, str]] = []
        self._questions: list[TokenizedQuestion] = []
        for question in questions:
            try:
                self._questions.append(tokenize_question(question, tokenizer, options, max_length))
            except SkippedQuestion as reason:
                self.skipped.append((question.prompt, str(reason)))
        if not self._questions:
            raise ConfigurationError(
                f"`questions`: none of {len(questions)} can be asked; the first one: {self.skipped[0][1]}."
            )

    @property
    def most_forwards(self) -> int:
        size, options = self._options.batch_size, self._options
        rows = [num_contexts(choice for each in self._questions for choice in each.choices)]
        if options.stated == "yes_no":
            rows.append(sum(max(num_contexts(replies.all) for replies in each.yes_no) for each in self._questions))
        generated = math.ceil(len(self._questions) / size) * sum(options.new_tokens.values())
        return sum(math.ceil(each / size) for each in rows) + generated

    def run(self) -> Answers:
        """Ask the questions."""
        before = self._model.num_forwards
        with self._model.evaluating():
            answers = self._answers()
            given = list(zip(self._questions, answers.predictions, strict=True))
            if self._options.stated == "yes_no":
                answers.stated_confidence = self._probabilities_of_yes([each.yes_no[answer] for each, answer in given])
            replies = {
                name: self._generate([each.prompts[name][answer] for each, answer in given], max_new_tokens=number)
                for name, number in self._options.new_tokens.items()
            }
            if "percentage" in replies:
                answers.stated_replies = replies["percentage"]
                answers.stated_confidence = list(map(parse_percentage, replies["percentage"]))
            answers.claimed_reasons = replies.get("reason", [])
        answers.num_forwards = self._model.num_forwards - before
        return answers

    def _answers(self) -> Answers:
        sums = self._model.broadcast(self._log_likelihoods([each.choices for each in self._questions]))
        if not all(map(math.isfinite, (value for row in sums for value in row))):
            raise ConfigurationError("`model`: its logits are nan or infinite, so no question can be asked.")
        questions = [each.question for each in self._questions]
        return Answers(
            prompts=[question.prompt for question in questions],
            choices=[list(question.choices) for question in questions],
            labels=[int(question.answer) for question in questions],
            log_likelihoods=sums,
            num_tokens=[[len(read.ids) - read.start for read in each.choices] for each in self._questions],
            score=self._options.score,
            skipped=list(self.skipped),
        )

    def _probabilities_of_yes(self, replies: list[Replies]) -> list[float]:
        """Return the probability of the words for yes relative to that of the words for yes and no."""
        confidence = []
        for each, sums in zip(replies, self._log_likelihoods([each.all for each in replies]), strict=True):
            values = torch.tensor(sums, dtype=torch.float64)
            yes, no = values[: len(each.yes)].logsumexp(0), values[len(each.yes) :].logsumexp(0)
            confidence.append((yes - no).sigmoid().item())
        return confidence


def require_language_model(model: EvaluatedModel) -> None:
    """Raise a `ConfigurationError` unless the model is a causal language model or has a custom forward."""
    if model.has_custom_forward:
        return
    can_generate = getattr(model.model, "can_generate", None)
    if not callable(can_generate) or not can_generate() or getattr(model.config, "is_encoder_decoder", False):
        raise ConfigurationError(
            f"`model` must be a causal language model, got a {model.name}; for a classifier use "
            "classifier_calibration. For a language model with another interface, pass `forward`."
        )


def _num_positions(model: EvaluatedModel) -> float:
    """Return the number of positions of a model; infinite if its config has none."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    length = getattr(config, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else math.inf
