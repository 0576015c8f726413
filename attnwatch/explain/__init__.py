"""What a model relies on: hide inputs, probe layers, ask the model. Functions on a model, without any trainer."""

from attnwatch.explain.agreement import MeanOverSequences, rank_correlation
from attnwatch.explain.comparison import Comparison, compare
from attnwatch.explain.faithfulness import FaithfulnessCurve, deletion_curve, insertion_curve
from attnwatch.explain.occlusion import Occlusion, num_forwards, occlude
from attnwatch.explain.stories import AttentionStories, attention_stories, gradient_times_input
from attnwatch.explain.subject import Subject

__all__ = [
    "AttentionStories",
    "Comparison",
    "FaithfulnessCurve",
    "MeanOverSequences",
    "Occlusion",
    "Subject",
    "attention_stories",
    "compare",
    "deletion_curve",
    "gradient_times_input",
    "insertion_curve",
    "num_forwards",
    "occlude",
    "rank_correlation",
]
