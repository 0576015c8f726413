"""What a model relies on: hide inputs, probe layers, ask the model. Functions on a model, without any trainer."""

from attnwatch.explain.asking.answers import Answers
from attnwatch.explain.asking.questions import Question, load_questions, questions_from_text
from attnwatch.explain.asking.templates import Templates, parse_percentage
from attnwatch.explain.calibration import Calibration, calibration
from attnwatch.explain.confidence import ask, classifier_calibration

__all__ = [
    "Answers",
    "Calibration",
    "Question",
    "Templates",
    "ask",
    "calibration",
    "classifier_calibration",
    "load_questions",
    "parse_percentage",
    "questions_from_text",
]
