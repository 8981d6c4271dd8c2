"""Modules that replace those of published repositories by changing the import."""

from .coding_rate import MaximalCodingRateReduction, TotalCodingRate
from .crate import ISTA, CRATEBlock, SubspaceAttention, layer_coding_rate
from .flops_regularizer import FlopsRegularizer
from .grassmann import GrassmannLinear, SubspaceOrthogonalityLoss
from .householder import HouseholderLinear
from .householder_adapter import HouseholderAdapter
from .low_rank_adapters import KroneckerAdapter, MoSLoRALinear
from .matching_pursuit import MatchingPursuitAutoencoder
from .matryoshka import MatryoshkaLoss
from .membership_loss import MLCLoss
from .orthogonal import orthogonal
from .orthogonal_alignment import OrthogonalAlignment
from .orthogonal_blocks import OrthogonalBlocks
from .phm import PHMLinear, QuaternionLinear
from .phm_adapters import CompacterAdapter
from .phm_attention import PHMMultiheadAttention
from .phm_conv import (
    PHMConv1d,
    PHMConv2d,
    PHMConv3d,
    PHMConvTranspose1d,
    PHMConvTranspose2d,
    PHMConvTranspose3d,
)
from .phm_convert import (
    from_adapters,
    from_compacter,
    from_hypernets,
    from_phcgnn,
    from_speechbrain,
    from_tensorflow_phm,
)
from .phm_recurrent import PHMLSTM
from .random_projection import RandomOrthogonalProjection
from .self_supervised import BarlowLoss, EMPSSLLoss, SimDINOExpansion, TiCoLoss
from .sparse_autoencoder import SparseAutoencoder
from .sparse_layers import SparseDecoder, TopKEncoder
from .vne import VNELoss

__all__ = [
    "ISTA",
    "PHMLSTM",
    "BarlowLoss",
    "CRATEBlock",
    "CompacterAdapter",
    "EMPSSLLoss",
    "FlopsRegularizer",
    "GrassmannLinear",
    "HouseholderAdapter",
    "HouseholderLinear",
    "KroneckerAdapter",
    "MLCLoss",
    "MatchingPursuitAutoencoder",
    "MatryoshkaLoss",
    "MaximalCodingRateReduction",
    "MoSLoRALinear",
    "OrthogonalAlignment",
    "OrthogonalBlocks",
    "PHMConv1d",
    "PHMConv2d",
    "PHMConv3d",
    "PHMConvTranspose1d",
    "PHMConvTranspose2d",
    "PHMConvTranspose3d",
    "PHMLinear",
    "PHMMultiheadAttention",
    "QuaternionLinear",
    "RandomOrthogonalProjection",
    "SimDINOExpansion",
    "SparseAutoencoder",
    "SparseDecoder",
    "SubspaceAttention",
    "SubspaceOrthogonalityLoss",
    "TiCoLoss",
    "TopKEncoder",
    "TotalCodingRate",
    "VNELoss",
    "from_adapters",
    "from_compacter",
    "from_hypernets",
    "from_phcgnn",
    "from_speechbrain",
    "from_tensorflow_phm",
    "layer_coding_rate",
    "orthogonal",
]
