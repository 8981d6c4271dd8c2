"""Modules that replace those of published repositories by changing the import."""

from .coding_rate import MaximalCodingRateReduction, TotalCodingRate
from .crate import ISTA, CRATEBlock, SubspaceAttention, layer_coding_rate
from .grassmann import GrassmannLinear, SubspaceOrthogonalityLoss
from .householder import HouseholderLinear
from .householder_adapter import HouseholderAdapter
from .membership_loss import MLCLoss
from .orthogonal import orthogonal
from .orthogonal_alignment import OrthogonalAlignment
from .orthogonal_blocks import OrthogonalBlocks
from .phm import PHMLinear, QuaternionLinear
from .random_projection import RandomOrthogonalProjection
from .self_supervised import BarlowLoss, EMPSSLLoss, SimDINOExpansion, TiCoLoss
from .vne import VNELoss

__all__ = [
    "ISTA",
    "BarlowLoss",
    "CRATEBlock",
    "EMPSSLLoss",
    "GrassmannLinear",
    "HouseholderAdapter",
    "HouseholderLinear",
    "MLCLoss",
    "MaximalCodingRateReduction",
    "OrthogonalAlignment",
    "OrthogonalBlocks",
    "PHMLinear",
    "QuaternionLinear",
    "RandomOrthogonalProjection",
    "SimDINOExpansion",
    "SubspaceAttention",
    "SubspaceOrthogonalityLoss",
    "TiCoLoss",
    "TotalCodingRate",
    "VNELoss",
    "layer_coding_rate",
    "orthogonal",
]
