"""What the callbacks of all trainers share: everything but how a trainer calls them.

`TrainingPart` says what happens in a training, and when. A trainer's package makes a callback of its own of each part,
and hands over its `TrainerRun`.
"""

from attnwatch.callbacks.part import TrainingPart
from attnwatch.callbacks.run import TrainerRun

__all__ = ["TrainerRun", "TrainingPart"]
