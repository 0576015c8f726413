"""Answers of a language model to multiple-choice questions."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnwatch.explain.calibration import Calibration, calibration
from attnwatch.explain.multiple_choice.options import Score


@dataclass
class Answers:
    """Answers of a language model, with one entry per question asked.

    Attributes:
        prompts, choices, labels: the questions; `labels` are the indices of the right choices.
        log_likelihoods: sum of the log-likelihoods of each choice's tokens after the prompt, in nats.
        num_tokens: number of these tokens.
        score: score of a choice: `"sum"` is its log-likelihood, `"mean"` its log-likelihood per token.
        stated_confidence: probability, 0 to 1, that its answer is right, as stated by the model when asked in words;
            nan if its reply is not a percentage. Empty if it was not asked.
        stated_replies: replies of the model when asked for a percentage.
        claimed_reasons: replies of the model when asked for its reason. They are likely text, not an explanation of the
            answer.
        skipped: (prompt, reason) of questions that could not be asked.
        num_forwards: number of forwards.
    """

    prompts: list[str]
    choices: list[list[str]]
    labels: list[int]
    log_likelihoods: list[list[float]]
    num_tokens: list[list[int]]
    score: Score
    stated_confidence: list[float] = field(default_factory=list)
    stated_replies: list[str] = field(default_factory=list)
    claimed_reasons: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    num_forwards: int = 0

    def __str__(self) -> str:
        parts = [f"choices: {self.calibration()}"]
        stated = self.stated_calibration()
        parts += [] if stated is None else [f"stated confidence: {stated}"]
        parts += [f"skipped: {prompt!r}: {why}" for prompt, why in self.skipped]
        return "\n".join(parts)

    @property
    def probabilities(self) -> Tensor:
        """Softmax over the scores of a question's choices, float64 [questions, most choices], padded with 0."""
        scores = torch.full((len(self.labels), max(map(len, self.choices))), -torch.inf, dtype=torch.float64)
        for row, sums, lengths in zip(scores, self.log_likelihoods, self.num_tokens, strict=True):
            values = torch.tensor(sums, dtype=torch.float64)
            row[: len(sums)] = values / torch.tensor(lengths) if self.score == "mean" else values
        return scores.softmax(-1)

    @property
    def predictions(self) -> list[int]:
        """Index of the choice with the largest probability; the first if tied."""
        return self.probabilities.argmax(-1).tolist()

    @property
    def correct(self) -> list[bool]:
        """True for each question whose prediction is the right choice."""
        return [guess == label for guess, label in zip(self.predictions, self.labels, strict=True)]

    @property
    def num_unparsable(self) -> int:
        """Number of replies that are not a percentage."""
        return sum(map(math.isnan, self.stated_confidence))

    def calibration(self, *, num_bins: int = 15) -> Calibration:
        """Return the calibration of the choice probabilities; see `calibration`."""
        return calibration(self.probabilities, self.labels, num_bins=num_bins)

    def stated_calibration(self, *, num_bins: int = 15) -> Calibration | None:
        """Return the calibration of the stated confidence; None without stated confidences."""
        pairs = zip(self.stated_confidence, self.correct, strict=False)
        stated = [(confidence, right) for confidence, right in pairs if not math.isnan(confidence)]
        return calibration(*zip(*stated, strict=True), num_bins=num_bins) if stated else None
