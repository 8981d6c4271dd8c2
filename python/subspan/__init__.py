"""The linear algebra of representation learning, compiled, for PyTorch, NumPy and CuPy arrays."""

from .ops.angles import principal_angles, principal_cosines, subspace_distance, subspace_similarity
from .ops.class_coding_rates import class_coding_rates, rate_reduction
from .ops.coding_rate import coding_rate, logdet_gram, rate_operator, spd_logdet
from .ops.covariance_contrast import covariance_contrast
from .ops.dense import ista
from .ops.sinkhorn import sinkhorn
from .ops.small_matrices import small_eigh, small_svd, small_svdvals
from .ops.subspace_logits import subspace_logits

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "nn":  # needs torch, which the functions on NumPy arrays do not
        import importlib

        return importlib.import_module(".nn", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "class_coding_rates",
    "coding_rate",
    "covariance_contrast",
    "ista",
    "logdet_gram",
    "principal_angles",
    "principal_cosines",
    "rate_operator",
    "rate_reduction",
    "sinkhorn",
    "small_eigh",
    "small_svd",
    "small_svdvals",
    "spd_logdet",
    "subspace_distance",
    "subspace_similarity",
    "subspace_logits",
]
