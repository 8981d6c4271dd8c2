"""Modules that replace those of published repositories by changing the import."""

from .coding_rate import MaximalCodingRateReduction, TotalCodingRate
from .crate import ISTA, CRATEBlock, SubspaceAttention, layer_coding_rate
from .grassmann import GrassmannLinear, SubspaceOrthogonalityLoss
from .householder import HouseholderLinear
from .membership_loss import MLCLoss
from .orthogonal import orthogonal
from .orthogonal_blocks import OrthogonalBlocks
from .self_supervised import BarlowLoss, EMPSSLLoss, SimDINOExpansion, TiCoLoss
from .vne import VNELoss

__all__ = [
    "ISTA",
    "BarlowLoss",
    "CRATEBlock",
    "EMPSSLLoss",
    "GrassmannLinear",
    "HouseholderLinear",
    "MLCLoss",
    "MaximalCodingRateReduction",
    "OrthogonalBlocks",
    "SimDINOExpansion",
    "SubspaceAttention",
    "SubspaceOrthogonalityLoss",
    "TiCoLoss",
    "TotalCodingRate",
    "VNELoss",
    "layer_coding_rate",
    "orthogonal",
]
