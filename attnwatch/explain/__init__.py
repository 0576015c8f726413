"""What a model relies on: hide inputs, probe layers, ask the model. Functions on a model, without any trainer."""

from attnwatch.explain.agreement import MeanOverSequences, rank_correlation
from attnwatch.explain.asking.answers import Answers
from attnwatch.explain.asking.questions import Question, load_questions, questions_from_text
from attnwatch.explain.asking.templates import Templates, parse_percentage
from attnwatch.explain.calibration import Calibration, calibration
from attnwatch.explain.comparison import Comparison, compare
from attnwatch.explain.confidence import ask, classifier_calibration
from attnwatch.explain.faithfulness import FaithfulnessCurve, deletion_curve, insertion_curve
from attnwatch.explain.occlusion import Occlusion, num_forwards, occlude
from attnwatch.explain.probing.probes import probe_layers
from attnwatch.explain.probing.result import LayerProbes
from attnwatch.explain.stories import AttentionStories, attention_stories, gradient_times_input
from attnwatch.explain.subject import Subject

__all__ = [
    "Answers",
    "AttentionStories",
    "Calibration",
    "Comparison",
    "FaithfulnessCurve",
    "LayerProbes",
    "MeanOverSequences",
    "Occlusion",
    "Question",
    "Subject",
    "Templates",
    "ask",
    "attention_stories",
    "calibration",
    "classifier_calibration",
    "compare",
    "deletion_curve",
    "gradient_times_input",
    "insertion_curve",
    "load_questions",
    "num_forwards",
    "occlude",
    "parse_percentage",
    "probe_layers",
    "questions_from_text",
    "rank_correlation",
]
