"""What a model has answered when it was asked."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attnwatch.explain.calibration import Calibration, calibration


@dataclass
class Answers:
    """Of a language model to multiple-choice questions, one entry for each that could be asked.

    Attributes:
        prompts, choices, labels: the questions; `labels` are the indices of the right choices.
        log_likelihoods: of each choice's tokens behind the prompt, their sum in nats.
        num_tokens: of each choice.
        score: `"sum"`: choices are weighed by their log-likelihood; `"mean"`: by that divided by their tokens.
        stated_confidence: that its own answer is right, 0 to 1, as the model says when it is asked in words; nan where
            its reply is no percentage. Empty where it was not asked.
        stated_replies: what it wrote when it was asked for a percentage.
        claimed_reasons: what it wrote when it was asked why. This is text that the model finds likely, and no
            explanation of its answer.
        skipped: (prompt, why) of the questions that could not be asked.
        num_forwards: of the model, for all this.
    """

    prompts: list[str]
    choices: list[list[str]]
    labels: list[int]
    log_likelihoods: list[list[float]]
    num_tokens: list[list[int]]
    score: str
    stated_confidence: list[float]
    stated_replies: list[str]
    claimed_reasons: list[str]
    skipped: list[tuple[str, str]]
    num_forwards: int

    def __str__(self) -> str:
        parts = [f"choices: {self.calibration()}"]
        stated = self.stated_calibration()
        parts += [] if stated is None else [f"stated confidence: {stated}"]
        parts += [f"skipped: {prompt!r}: {why}" for prompt, why in self.skipped]
        return "\n".join(parts)

    @property
    def probabilities(self) -> Tensor:
        """float64 [questions, most choices]: softmax over the scores of a question's choices, 0 beyond the last."""
        scores = torch.full((len(self.labels), max(map(len, self.choices))), -torch.inf, dtype=torch.float64)
        for row, sums, lengths in zip(scores, self.log_likelihoods, self.num_tokens, strict=True):
            values = torch.tensor(sums, dtype=torch.float64)
            row[: len(sums)] = values / torch.tensor(lengths) if self.score == "mean" else values
        return scores.softmax(-1)

    @property
    def predictions(self) -> list[int]:
        """Index of the choice with the largest probability; of equal ones the first."""
        return self.probabilities.argmax(-1).tolist()

    @property
    def correct(self) -> list[bool]:
        """Whether that is the right one."""
        return [guess == label for guess, label in zip(self.predictions, self.labels, strict=True)]

    @property
    def num_unparsable(self) -> int:
        """Replies that are no percentage."""
        return sum(map(math.isnan, self.stated_confidence))

    def calibration(self, **options) -> Calibration:
        """Of the probabilities of the choices. Options are those of `calibration`."""
        return calibration(self.probabilities, self.labels, **options)

    def stated_calibration(self, **options) -> Calibration | None:
        """Of the stated confidence, where there is any: None otherwise."""
        pairs = zip(self.stated_confidence, self.correct, strict=False)
        stated = [(confidence, right) for confidence, right in pairs if not math.isnan(confidence)]
        return calibration(*zip(*stated, strict=True), **options) if stated else None
