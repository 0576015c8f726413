"""History over time: records what a capture sees, in bounded memory, without knowing any trainer."""

from attnwatch.recorder.history import AttentionHistory
from attnwatch.recorder.lazy import Values
from attnwatch.recorder.options import RecordingOptions
from attnwatch.recorder.recorder import AttentionRecorder

__all__ = ["AttentionHistory", "AttentionRecorder", "RecordingOptions", "Values"]
