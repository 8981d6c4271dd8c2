"""Optimisers on the manifolds of this library."""

from .grassmann import GrassmannSGD

__all__ = ["GrassmannSGD"]
