"""Criteria by which tokens are kept, one file each."""

from attnwatch.tokens.criteria.base import TokenCriterion

__all__ = ["TokenCriterion"]
