"""Modules that replace those of published repositories by changing the import."""

from .coding_rate import MaximalCodingRateReduction, TotalCodingRate
from .membership_loss import MLCLoss
from .self_supervised import BarlowLoss, EMPSSLLoss, SimDINOExpansion, TiCoLoss

__all__ = [
    "BarlowLoss",
    "EMPSSLLoss",
    "MLCLoss",
    "MaximalCodingRateReduction",
    "SimDINOExpansion",
    "TiCoLoss",
    "TotalCodingRate",
]
