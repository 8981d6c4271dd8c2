"""Modules that replace those of published repositories by changing the import."""

from .coding_rate import MaximalCodingRateReduction, TotalCodingRate
from .membership_loss import MLCLoss

__all__ = ["MLCLoss", "MaximalCodingRateReduction", "TotalCodingRate"]
