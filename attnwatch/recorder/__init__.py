"""Recording of attention statistics over a training, in bounded memory, for any training loop."""

from attnwatch.recorder.history import AttentionHistory
from attnwatch.recorder.lazy import Values
from attnwatch.recorder.notices import unobserved
from attnwatch.recorder.options import RecordingOptions
from attnwatch.recorder.recorder import AttentionRecorder

__all__ = ["AttentionHistory", "AttentionRecorder", "RecordingOptions", "Values", "unobserved"]
