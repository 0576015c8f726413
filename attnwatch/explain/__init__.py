"""What a model relies on: hide inputs, probe layers, ask the model. Functions on a model, without any trainer."""

from attnwatch.explain.asking.answers import Answers
from attnwatch.explain.asking.questions import Question, load_questions, questions_from_text
from attnwatch.explain.asking.templates import Templates, parse_percentage
from attnwatch.explain.calibration import Calibration, calibration
from attnwatch.explain.confidence import ask, classifier_calibration
from attnwatch.explain.probing.probes import probe_layers
from attnwatch.explain.probing.result import LayerProbes

__all__ = [
    "Answers",
    "Calibration",
    "LayerProbes",
    "Question",
    "Templates",
    "ask",
    "calibration",
    "classifier_calibration",
    "load_questions",
    "parse_percentage",
    "probe_layers",
    "questions_from_text",
]
