"""The linear algebra of representation learning, compiled, for PyTorch, NumPy and CuPy arrays."""

from .ops.coding_rate import (
    class_coding_rates,
    coding_rate,
    logdet_gram,
    rate_operator,
    rate_reduction,
    spd_logdet,
)

__version__ = "0.1.0"

__all__ = [
    "class_coding_rates",
    "coding_rate",
    "logdet_gram",
    "rate_operator",
    "rate_reduction",
    "spd_logdet",
]
