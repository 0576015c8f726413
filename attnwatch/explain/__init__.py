"""What a model relies on: hide inputs, probe layers, ask the model. Functions on a model, without any trainer."""

from attnwatch.explain.probing.probes import probe_layers
from attnwatch.explain.probing.result import LayerProbes

__all__ = ["LayerProbes", "probe_layers"]
