"""Modules that replace those of published repositories by changing the import."""

from .coding_rate import MaximalCodingRateReduction, TotalCodingRate

__all__ = ["MaximalCodingRateReduction", "TotalCodingRate"]
