"""The linear algebra of representation learning, compiled, for PyTorch, NumPy and CuPy arrays."""

from ._search_result import SearchResult
from .ops.angles import principal_angles, principal_cosines, subspace_distance, subspace_similarity
from .ops.class_coding_rates import class_coding_rates, rate_reduction
from .ops.coding_rate import coding_rate, logdet_gram, rate_operator, spd_logdet
from .ops.covariance_contrast import covariance_contrast
from .ops.dense import ista
from .ops.difference_subspace import difference_subspace
from .ops.flags import flag_distance, nested_overlap
from .ops.grassmann import grassmann_exp, grassmann_transport
from .ops.grassmann_means import flag_mean, grassmann_log, karcher_mean
from .ops.householder import householder_apply, householder_product, householder_vectors
from .ops.matching_pursuit import matching_pursuit
from .ops.newton_schulz import newton_schulz
from .ops.orthonormalize import orthonormalize
from .ops.pairwise_similarity import (
    pairwise_cca,
    pairwise_linear_cka,
    pairwise_procrustes,
    pairwise_pwcca,
    pairwise_svcca,
)
from .ops.phm import phm_linear, phm_weight
from .ops.phm_adapter import phm_adapter
from .ops.phm_algebra import algebra
from .ops.phm_conv import (
    phm_conv1d,
    phm_conv2d,
    phm_conv3d,
    phm_conv_transpose1d,
    phm_conv_transpose2d,
    phm_conv_transpose3d,
)
from .ops.phm_decomposition import rank_decomposition
from .ops.phm_rank import phm_linear_lowrank, phm_linear_rank1
from .ops.phm_symbols import bind, bundle, hamilton_product, unbind
from .ops.similarity import cca, linear_cka, procrustes_distance, pwcca, svcca, von_neumann_entropy
from .ops.sinkhorn import sinkhorn
from .ops.skew import cayley, skew_expm
from .ops.small_matrices import small_eigh, small_svd, small_svdvals
from .ops.sparse import flops_loss, flops_metric, l1_loss, r_sub
from .ops.sparse_products import sddmm, sparse_decode, sparse_t_dense
from .ops.sparse_scores import sparse_scores
from .ops.sparse_thresholds import jumprelu, soft_threshold
from .ops.sparse_topk import batch_topk, linear_topk, topk_rows
from .ops.stiefel import egrad_to_rgrad, inverse_retract, project_tangent, retract, transport
from .ops.subspace_logits import subspace_logits
from .sparse_index import SparseIndex
from .sparse_rows import SparseRows

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name in ("nn", "optim"):  # need torch, which the functions on NumPy arrays do not
        import importlib

        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "SearchResult",
    "SparseIndex",
    "SparseRows",
    "algebra",
    "batch_topk",
    "bind",
    "bundle",
    "cayley",
    "cca",
    "class_coding_rates",
    "coding_rate",
    "covariance_contrast",
    "difference_subspace",
    "egrad_to_rgrad",
    "flag_distance",
    "flag_mean",
    "flops_loss",
    "flops_metric",
    "grassmann_exp",
    "grassmann_log",
    "grassmann_transport",
    "hamilton_product",
    "householder_apply",
    "householder_product",
    "householder_vectors",
    "inverse_retract",
    "ista",
    "jumprelu",
    "karcher_mean",
    "l1_loss",
    "linear_cka",
    "linear_topk",
    "logdet_gram",
    "matching_pursuit",
    "nested_overlap",
    "newton_schulz",
    "orthonormalize",
    "pairwise_cca",
    "pairwise_linear_cka",
    "pairwise_procrustes",
    "pairwise_pwcca",
    "pairwise_svcca",
    "phm_adapter",
    "phm_conv1d",
    "phm_conv2d",
    "phm_conv3d",
    "phm_conv_transpose1d",
    "phm_conv_transpose2d",
    "phm_conv_transpose3d",
    "phm_linear",
    "phm_linear_lowrank",
    "phm_linear_rank1",
    "phm_weight",
    "principal_angles",
    "principal_cosines",
    "procrustes_distance",
    "project_tangent",
    "pwcca",
    "r_sub",
    "rank_decomposition",
    "rate_operator",
    "rate_reduction",
    "retract",
    "sddmm",
    "sinkhorn",
    "skew_expm",
    "small_eigh",
    "small_svd",
    "small_svdvals",
    "soft_threshold",
    "sparse_decode",
    "sparse_scores",
    "sparse_t_dense",
    "spd_logdet",
    "subspace_distance",
    "subspace_logits",
    "subspace_similarity",
    "svcca",
    "topk_rows",
    "transport",
    "unbind",
    "von_neumann_entropy",
]
