"""Where query and key are seen: finds the attention calls of a model and reads them without changing them."""

from attnwatch.capture.capture import OBSERVED, Capture, Observer, is_observed
from attnwatch.capture.delivery import NOT_IN_CUDA_GRAPHS, ORDER, in_backward, unwatched
from attnwatch.capture.interface import attention_functions
from attnwatch.capture.keywords import asked_when_traced, ignores, module_ignores
from attnwatch.capture.padding import sees_own_key
from attnwatch.capture.passes import Pass
from attnwatch.capture.positions import put_kept_positions
from attnwatch.capture.pruned import KEPT_HEADS, UNPRUNED_HEADS, at_unpruned_heads, kept_heads
from attnwatch.capture.sharded import HeadShard, Peers, at_all_heads, has_processes, head_shard, is_split, whole
from attnwatch.capture.sites import CACHES, Site, SiteKind, find_sites, locals_of_forward, names_in_forward, site_name

__all__ = [
    "CACHES",
    "KEPT_HEADS",
    "NOT_IN_CUDA_GRAPHS",
    "OBSERVED",
    "ORDER",
    "UNPRUNED_HEADS",
    "Capture",
    "HeadShard",
    "Observer",
    "Pass",
    "Peers",
    "Site",
    "SiteKind",
    "asked_when_traced",
    "at_all_heads",
    "at_unpruned_heads",
    "attention_functions",
    "find_sites",
    "has_processes",
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
    "sees_own_key",
    "site_name",
    "unwatched",
    "whole",
]
