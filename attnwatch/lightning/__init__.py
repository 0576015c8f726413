"""Lightning callbacks. Needs `pip install attnwatch[lightning]`."""

try:
    import lightning.pytorch  # noqa: F401
except ImportError as error:
    raise ImportError("attnwatch.lightning needs Lightning: pip install 'attnwatch[lightning]'") from error

from attnwatch.lightning.monitor import AttentionMonitor
from attnwatch.lightning.pruning import HeadPruning
from attnwatch.lightning.tokens import TokenDropping

__all__ = ["AttentionMonitor", "HeadPruning", "TokenDropping"]
