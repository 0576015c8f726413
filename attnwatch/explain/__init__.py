"""Explanations of a model, independent of trainers: hide its inputs, probe its layers, ask it questions."""

from attnwatch.explain.agreement import MeanOverSequences, rank_correlation
from attnwatch.explain.attributions import AttentionAttribution, attention_attribution, gradient_times_input
from attnwatch.explain.calibration import Calibration, calibration, classifier_calibration
from attnwatch.explain.comparison import Comparison, compare
from attnwatch.explain.evaluated_model import EvaluatedModel
from attnwatch.explain.faithfulness import FaithfulnessCurve, deletion_curve
from attnwatch.explain.hiding import HidingOptions
from attnwatch.explain.multiple_choice.answers import Answers
from attnwatch.explain.multiple_choice.evaluation import MultipleChoiceEvaluation, ask
from attnwatch.explain.multiple_choice.question_generation import questions_from_text
from attnwatch.explain.multiple_choice.questions import Question, load_questions
from attnwatch.explain.multiple_choice.templates import Templates, parse_percentage
from attnwatch.explain.occlusion import Occlusion, OcclusionPlan, occlude
from attnwatch.explain.probing.probes import LayerProbes, probe_layers

__all__ = [
    "Answers",
    "AttentionAttribution",
    "Calibration",
    "Comparison",
    "EvaluatedModel",
    "FaithfulnessCurve",
    "HidingOptions",
    "LayerProbes",
    "MeanOverSequences",
    "MultipleChoiceEvaluation",
    "Occlusion",
    "OcclusionPlan",
    "Question",
    "Templates",
    "ask",
    "attention_attribution",
    "calibration",
    "classifier_calibration",
    "compare",
    "deletion_curve",
    "gradient_times_input",
    "load_questions",
    "occlude",
    "parse_percentage",
    "probe_layers",
    "questions_from_text",
    "rank_correlation",
]
