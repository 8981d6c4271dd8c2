"""Optimisers on the manifolds of this library, and of matrices with their help."""

from .grassmann import GrassmannSGD
from .muon import Muon
from .stiefel import StiefelAdam, StiefelSGD

__all__ = ["GrassmannSGD", "Muon", "StiefelAdam", "StiefelSGD"]
