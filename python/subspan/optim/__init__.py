"""Optimisers on the manifolds of this library, and of matrices with their help."""

from .grassmann import GrassmannSGD
from .muon import Muon
from .stiefel import StiefelAdam, StiefelSGD
from .subspace import OnlineSubspaceDescent

__all__ = ["GrassmannSGD", "Muon", "OnlineSubspaceDescent", "StiefelAdam", "StiefelSGD"]
