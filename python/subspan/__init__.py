"""The linear algebra of representation learning, compiled, for PyTorch, NumPy and CuPy arrays."""

from .ops.class_coding_rates import class_coding_rates, rate_reduction
from .ops.coding_rate import coding_rate, logdet_gram, rate_operator, spd_logdet
from .ops.covariance_contrast import covariance_contrast
from .ops.dense import ista
from .ops.pairwise_similarity import (
    pairwise_cca,
    pairwise_linear_cka,
    pairwise_procrustes,
    pairwise_pwcca,
    pairwise_svcca,
)
from .ops.similarity import cca, linear_cka, procrustes_distance, pwcca, svcca, von_neumann_entropy
from .ops.sinkhorn import sinkhorn

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "nn":  # needs torch, which the functions on NumPy arrays do not
        import importlib

        return importlib.import_module(".nn", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "cca",
    "class_coding_rates",
    "coding_rate",
    "covariance_contrast",
    "ista",
    "linear_cka",
    "logdet_gram",
    "pairwise_cca",
    "pairwise_linear_cka",
    "pairwise_procrustes",
    "pairwise_pwcca",
    "pairwise_svcca",
    "procrustes_distance",
    "pwcca",
    "rate_operator",
    "rate_reduction",
    "sinkhorn",
    "spd_logdet",
    "svcca",
    "von_neumann_entropy",
]
