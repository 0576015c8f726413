"""Families of models, one file each: where heads and tokens lie, and what is special about their calls."""

from attnwatch.models.base import ModelFamily, Refused, TokenPredictions

__all__ = ["ModelFamily", "Refused", "TokenPredictions"]
