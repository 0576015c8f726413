"""Multiple-choice questions to a model while it trains, and the calibration of its answers."""

import math
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

import numpy as np

from attnwatch.callbacks.audit import Audit
from attnwatch.dashboard.answers import answers_markdown
from attnwatch.errors import ConfigurationError
from attnwatch.explain.batches import Batch
from attnwatch.explain.calibration import Calibration, classifier_calibration
from attnwatch.explain.evaluated_model import EvaluatedModel, Forward
from attnwatch.explain.multiple_choice.answers import Answers
from attnwatch.explain.multiple_choice.evaluation import MultipleChoiceEvaluation, require_language_model
from attnwatch.explain.multiple_choice.options import EvaluationOptions, Score, Stated
from attnwatch.explain.multiple_choice.question_generation import questions_from_text
from attnwatch.explain.multiple_choice.questions import Question, as_questions
from attnwatch.explain.multiple_choice.templates import Templates
from attnwatch.explain.token_text import require_tokenizer
from attnwatch.trainers.base import TrainerRun
from attnwatch.utils.arguments import require_int

_FIGURES = ("accuracy", "mean_confidence", "expected_calibration_error", "expected_if_calibrated", "brier", "auroc")


class ConfidenceProbe(Audit[Answers | Calibration]):
    """Ask a language model multiple-choice questions while it trains, and measure the calibration of its confidence.

    The callback logs `confidence/accuracy`, `confidence/mean_confidence`, `confidence/expected_calibration_error`,
    `confidence/expected_if_calibrated`, `confidence/brier` and `confidence/auroc` of the probabilities of the choices;
    the same figures of the confidence that the model states, as `confidence/stated_…`; and `confidence/questions`,
    `confidence/skipped` and `confidence/unparsable`. It also logs reliability diagrams as images, and the questions
    with the answers as text. For a classifier, it logs the figures of its probabilities on validation batches.

    Args:
        questions: path of a JSONL file, or a list of questions; None means questions made from the text of `batches`.
        tokenizer: tokenizer of transformers; None means the trainer's (transformers' `processing_class`).
        every_n_steps: interval in optimizer steps: the questions follow the first step at or after each multiple of it.
            None means at the end only.
        num_questions: number of questions to make if none are given.
        templates, stated, reasons, score, max_new_tokens, batch_size, max_length: see `attnwatch.explain.ask`.
        num_bins: number of bins of the reliability diagram and the expected calibration error.
        batches: batches to make questions from, or to judge a classifier on; None means the first validation batches.
        num_batches: maximum number of batches.
        forward: see `attnwatch.explain.EvaluatedModel`. With `questions`, its output is read as that of a language
            model, otherwise as that of a classifier.
        seed: seed for making questions.

    Attributes:
        results: list of (global step, result), where the result is an `attnwatch.explain.Answers`, or for a classifier
            an `attnwatch.explain.Calibration`.

    Raises:
        ConfigurationError: an argument is invalid, or the model can't be asked (raised when training starts).
    """

    example = 'ConfidenceProbe("questions.jsonl", tokenizer=tokenizer)'

    def __init__(
        self,
        questions: str | PathLike[str] | Iterable[Question | Mapping[str, Any]] | None = None,
        *,
        tokenizer: Any = None,
        every_n_steps: int | None = 500,
        num_questions: int = 32,
        templates: Templates | None = None,
        stated: Stated | None = "yes_no",
        reasons: bool = False,
        score: Score = "sum",
        max_new_tokens: int = 32,
        batch_size: int = 8,
        max_length: int | None = None,
        num_bins: int = 15,
        batches: Iterable[Batch] | None = None,
        num_batches: int = 8,
        forward: Forward | None = None,
        seed: int = 0,
    ):
        super().__init__(every_n_steps, batches, num_batches, forward, tokenizer)
        templates = Templates() if templates is None else templates
        self._options = EvaluationOptions(templates, stated, reasons, score, max_new_tokens, batch_size, max_length)
        require_int("num_questions", num_questions, minimum=1)
        require_int("num_bins", num_bins, minimum=1)
        require_int("seed", seed, minimum=0)
        require_tokenizer(tokenizer, optional=True)
        self._questions = None if questions is None else as_questions(questions)
        self._needs_batches = self._questions is None
        self._num_questions, self._num_bins, self._seed = num_questions, num_bins, seed
        self._evaluation: MultipleChoiceEvaluation | None = None

    # Training hooks.

    def start(self, run: TrainerRun) -> None:
        super().start(run)
        subject = self._subject
        judges_classes = self._questions is None if subject.has_custom_forward else subject.is_sequence_classifier
        self._Result = Calibration if judges_classes else Answers
        if judges_classes:
            if self._questions is not None:
                raise ConfigurationError(
                    f"`questions` need a language model; {type(subject.model).__name__} is a classifier, which is "
                    "judged on batches with labels: leave `questions` out."
                )
            return
        require_language_model(subject)
        if self._tokenizer is None:
            raise ConfigurationError(
                "`tokenizer` is needed to ask a language model: give the model's tokenizer, for instance "
                "AutoTokenizer.from_pretrained(name)."
            )
        if self._questions is not None:
            self._prepare(run, self._questions)
        elif self._given is not None:
            self._prepare(run, self._made_of(self._given))

    def detach(self) -> None:
        super().detach()
        self._evaluation = None

    def _audit(self, run: TrainerRun, subject: EvaluatedModel, batches: list[Batch]) -> Answers | Calibration:
        if self._Result is Calibration:
            return classifier_calibration(subject, batches, num_bins=self._num_bins)
        evaluation = self._evaluation or self._prepare(run, self._made_of(batches))
        return evaluation.run()

    def _made_of(self, batches: list[Batch]) -> list[Question]:
        return questions_from_text(batches, self._tokenizer, self._num_questions, seed=self._seed)

    def _prepare(self, run: TrainerRun, questions: list[Question]) -> MultipleChoiceEvaluation:
        evaluation = MultipleChoiceEvaluation(self._subject, self._tokenizer, questions, self._options)
        self._evaluation, skipped = evaluation, len(evaluation.skipped)
        run.inform(
            f"{type(self).__name__} asks {len(questions) - skipped} questions each time ({skipped} skipped), in at "
            f"most {evaluation.most_forwards} forwards of up to {self._options.batch_size} rows"
        )
        return evaluation

    # Results.

    def _numbers(self, result: Answers | Calibration) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for name, calibration in self._calibrations(result).items():
            figures = {figure: getattr(calibration, figure) for figure in _FIGURES}
            numbers |= {f"confidence/{name}{figure}": at for figure, at in figures.items() if not math.isnan(at)}
        if isinstance(result, Answers):
            numbers["confidence/questions"] = float(len(result.labels))
            numbers["confidence/skipped"] = float(len(result.skipped))
            numbers["confidence/unparsable"] = float(result.num_unparsable)
        return numbers

    def _draw(self) -> dict[str, np.ndarray]:
        from attnwatch.dashboard.heatmaps import pixels
        from attnwatch.dashboard.reliability import reliability_figure

        step, result = self.results[-1]
        return {
            f"confidence/{name}reliability": pixels(
                reliability_figure(calibration, f"{name.replace('_', ' ')}confidence, step {step}")
            )
            for name, calibration in self._calibrations(result).items()
        }

    def _texts(self, result: Answers | Calibration) -> dict[str, str]:
        return {"confidence/answers": answers_markdown(result)} if isinstance(result, Answers) else {}

    def _calibrations(self, result: Answers | Calibration) -> dict[str, Calibration]:
        """Return the calibrations by the prefix of their names."""
        if isinstance(result, Calibration):
            return {"": result}
        stated = result.stated_calibration(num_bins=self._num_bins)
        calibrations = {"": result.calibration(num_bins=self._num_bins)}
        return calibrations if stated is None else {**calibrations, "stated_": stated}
