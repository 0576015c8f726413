"""Observation of a model's attention calls, found by reading its code and passed to an observer unchanged."""

from attnwatch.capture.calls import AttentionCall, FunctionCall
from attnwatch.capture.calls.transformers_interface import attention_functions
from attnwatch.capture.capture import OBSERVED, Capture, Observer, is_observed
from attnwatch.capture.code_names import CodeNames
from attnwatch.capture.compilation import NOT_IN_CUDA_GRAPHS, ORDER, asked_when_traced
from attnwatch.capture.delivery import CallInputs, deliver, site_id, unwatched
from attnwatch.capture.forward_pass import ForwardPass, in_backward
from attnwatch.capture.keywords import ignores, module_ignores
from attnwatch.capture.patching import StandIn, replace, replace_method, shared_patch
from attnwatch.capture.positions import put_kept_positions, sees_own_key
from attnwatch.capture.pruned import KEPT_HEADS, UNPRUNED_HEADS, at_unpruned_heads, kept_heads
from attnwatch.capture.sites import CACHES, Site, find_sites, locals_of_forward, names_in_forward, site_name
from attnwatch.capture.tensor_parallel import (
    HeadShard,
    TensorParallelGroup,
    at_all_heads,
    head_shard,
    is_split,
    whole,
)
from attnwatch.capture.undisturbed import LARGEST_COPY, undisturbed

__all__ = [
    "CACHES",
    "KEPT_HEADS",
    "LARGEST_COPY",
    "NOT_IN_CUDA_GRAPHS",
    "OBSERVED",
    "ORDER",
    "UNPRUNED_HEADS",
    "AttentionCall",
    "CallInputs",
    "Capture",
    "CodeNames",
    "ForwardPass",
    "FunctionCall",
    "HeadShard",
    "Observer",
    "Site",
    "StandIn",
    "TensorParallelGroup",
    "asked_when_traced",
    "at_all_heads",
    "at_unpruned_heads",
    "attention_functions",
    "deliver",
    "find_sites",
    "head_shard",
    "ignores",
    "in_backward",
    "is_observed",
    "is_split",
    "kept_heads",
    "locals_of_forward",
    "module_ignores",
    "names_in_forward",
    "put_kept_positions",
    "replace",
    "replace_method",
    "sees_own_key",
    "shared_patch",
    "site_id",
    "site_name",
    "undisturbed",
    "unwatched",
    "whole",
]
