"""Families of models, one file each, with their head and token layouts and the peculiarities of their calls."""

from attnwatch.models.base import ModelFamily, Refused, TokenPredictions

__all__ = ["ModelFamily", "Refused", "TokenPredictions"]
