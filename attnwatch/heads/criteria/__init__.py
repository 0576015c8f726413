"""Criteria of head importance, one file each."""

from attnwatch.heads.criteria.base import HeadCriterion, HeadData

__all__ = ["HeadCriterion", "HeadData"]
