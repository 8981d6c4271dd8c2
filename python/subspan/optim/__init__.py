"""Optimisers on the manifolds of this library, and of matrices with their help."""

from .grassmann import GrassmannSGD
from .muon import Muon

__all__ = ["GrassmannSGD", "Muon"]
