"""Modules that replace those of published repositories by changing the import."""

from .coding_rate import MaximalCodingRateReduction, TotalCodingRate
from .crate import ISTA, CRATEBlock, SubspaceAttention, layer_coding_rate
from .grassmann import GrassmannLinear, SubspaceOrthogonalityLoss
from .membership_loss import MLCLoss
from .phm import PHMLinear, QuaternionLinear
from .self_supervised import BarlowLoss, EMPSSLLoss, SimDINOExpansion, TiCoLoss
from .vne import VNELoss

__all__ = [
    "ISTA",
    "BarlowLoss",
    "CRATEBlock",
    "EMPSSLLoss",
    "GrassmannLinear",
    "MLCLoss",
    "MaximalCodingRateReduction",
    "PHMLinear",
    "QuaternionLinear",
    "SimDINOExpansion",
    "SubspaceAttention",
    "SubspaceOrthogonalityLoss",
    "TiCoLoss",
    "TotalCodingRate",
    "VNELoss",
    "layer_coding_rate",
]
