"""What the oldest tested versions of other libraries do not have. Reasons of skips name both."""

import inspect

import lightning
import pytest
import transformers
from lightning.pytorch import callbacks
from packaging.version import Version
from transformers import AttentionInterface

BEFORE_5 = Version(transformers.__version__).major < 5
EARLY = not hasattr(AttentionInterface, "get_interface")  # the first of 5 too
GETS_FUNCTIONS = "__getitem__" if EARLY else "get_interface"  # method of the AttentionInterface


def enable_checkpointing(model: transformers.PreTrainedModel, **options) -> None:
    """Of activations."""
    name = "gradient_checkpointing_enable" if EARLY else "activation_checkpointing_enable"
    getattr(model, name)(options or None)


# What models call the key-value cache that they take and return.
CACHE = "cache" if "cache" in inspect.signature(transformers.LlamaModel.forward).parameters else "past_key_values"


def lacks(is_lacking: bool, what: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(is_lacking, reason=f"transformers {transformers.__version__}: {what}")


WeightAveraging = getattr(callbacks, "WeightAveraging", None)
EMAWeightAveraging = getattr(callbacks, "EMAWeightAveraging", None)
needs_weight_averaging = pytest.mark.skipif(
    WeightAveraging is None, reason=f"lightning {lightning.__version__} has no WeightAveraging"
)
needs_moving_averages = pytest.mark.skipif(
    EMAWeightAveraging is None, reason=f"lightning {lightning.__version__} has no EMAWeightAveraging"
)
