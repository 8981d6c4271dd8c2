"""Similarity of all layers of two networks as people compute it today. Samples are rows.

Three parts: the float64 references, the best plain PyTorch (each layer factored once), and the code people copy (each
pair of layers from scratch). Functions take a list for each network and return (layers, layers).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Layers = list[Tensor]


def pair_by_pair(similarity: Callable[[Tensor, Tensor], Tensor | float]) -> Callable[[Layers, Layers], Tensor]:
    def table(xs: Layers, ys: Layers) -> Tensor:
        return torch.stack([torch.stack([torch.as_tensor(similarity(x, y)) for y in ys]) for x in xs])

    return table


def centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


# --- best plain PyTorch -----------------------------------------------------------------------------------------


def cka_by_grams(xs: Layers, ys: Layers) -> Tensor:
    """Gram matrices of centred features once, one product for all pairs."""
    K, L = (torch.stack([(z @ z.T).flatten() for z in map(centred, zs)]) for zs in (xs, ys))
    return (K @ L.T) / (K.norm(dim=1)[:, None] * L.norm(dim=1))


def cka_by_features(xs: Layers, ys: Layers) -> Tensor:
    """|X^T Y|^2, centred and normalised once."""
    xs, ys = ([z / (z.T @ z).norm().sqrt() for z in map(centred, zs)] for zs in (xs, ys))
    return pair_by_pair(lambda x, y: (x.T @ y).square().sum())(xs, ys)


def svcca_by_svd(xs: Layers, ys: Layers, rank: int) -> Tensor:
    """Left singular vectors once, singular values of all products in one batch."""
    U, V = (
        torch.stack([torch.linalg.svd(centred(z), full_matrices=False)[0][:, :rank] for z in zs]) for zs in (xs, ys)
    )
    return torch.linalg.svdvals(U[:, None].mT @ V).mean(-1)


def svcca_by_gram(xs: Layers, ys: Layers, rank: int) -> Tensor:
    """Left singular vectors from eigenvectors of d x d Gram matrices."""

    def leading(z: Tensor) -> Tensor:
        z = centred(z)
        values, vectors = torch.linalg.eigh(z.T @ z)
        return z @ vectors[:, -rank:] / values[-rank:].sqrt()

    U, V = (torch.stack([leading(z) for z in zs]) for zs in (xs, ys))
    return torch.linalg.svdvals(U[:, None].mT @ V).mean(-1)


def procrustes_by_svdvals(*networks: Tensor) -> Tensor:
    """Angles between all pairs of shapes; the upper triangle."""
    shapes = [centred(x) / centred(x).norm() for x in networks]
    pairs = [torch.linalg.svdvals(shapes[i].T @ shapes[j]).sum() for i, j in _above_diagonal(len(networks))]
    return torch.stack(pairs).clamp(max=1).acos()


def mean_cca_by_qr(*networks: Tensor) -> Tensor:
    """arccos of the mean canonical correlation of all pairs; the upper triangle."""
    bases = [torch.linalg.qr(centred(x))[0] for x in networks]
    pairs = [torch.linalg.svdvals(bases[i].T @ bases[j]).mean() for i, j in _above_diagonal(len(networks))]
    return torch.stack(pairs).clamp(max=1).acos()


def _above_diagonal(count: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def entropy_by_gram(views: Tensor) -> Tensor:
    """Eigenvalues of the smaller Gram matrix; autograd divides by their differences only for eigenvectors."""
    Z = torch.nn.functional.normalize(views, dim=-1)
    gram = (Z @ Z.mT if Z.shape[-2] < Z.shape[-1] else Z.mT @ Z) / Z.shape[-2]
    values = torch.linalg.eigvalsh(gram).clamp(min=1e-12)
    return -(values * values.log()).sum(-1)


# --- the code people copy ---------------------------------------------------------------------------------------


def platonic_cka(x: Tensor, y: Tensor) -> Tensor:
    """Kernels of one pair of layers, then three HSICs, each the trace of three products with an explicit centring
    matrix."""

    def hsic(K: Tensor, L: Tensor) -> Tensor:
        H = torch.eye(len(K), dtype=K.dtype, device=K.device) - 1 / len(K)
        return (K @ H @ L @ H).trace()

    K, L = x @ x.T, y @ y.T
    return hsic(K, L) / (torch.sqrt(hsic(K, K) * hsic(L, L)) + 1e-6)


def platonic_svcca(x: Tensor, y: Tensor, rank: int) -> float:
    """Standardise and decompose one pair of layers, then scikit-learn's iterative CCA of the two bases on the CPU, and
    noise against NaN."""
    from sklearn.cross_decomposition import CCA

    standard = [(z - z.mean(0)) / (z.std(0) + 1e-8) for z in (x, y)]
    U, V = (torch.svd_lowrank(z, q=rank)[0].cpu().numpy() for z in standard)
    solver = CCA(n_components=rank)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        solver.fit(U, V)
    scores = [s + 1e-10 * np.random.randn(*s.shape) for s in solver.transform(U, V)]
    return float(np.mean([np.corrcoef(scores[0][:, i], scores[1][:, i])[0, 1] for i in range(rank)]))


def copied_entropy(views: Tensor) -> Tensor:
    """VNE's, one view after the other: singular values of normalised rows, with autograd through torch.svd."""

    def entropy(H: Tensor) -> Tensor:
        Z = torch.nn.functional.normalize(H, dim=1)
        values = torch.svd(Z / math.sqrt(len(Z)))[1] ** 2
        return -(values * torch.log(values)).nansum()

    return torch.stack([entropy(H) for H in views])


def netrep_angles(*networks: Tensor, alpha: float) -> Tensor:
    """NumPy; both representations of every pair centred, whitened (alpha = 0) and aligned by a full SVD, then compared
    after the alignment."""
    arrays = [x.numpy() for x in networks]
    angles = [_netrep_angle(arrays[i], arrays[j], alpha) for i, j in _above_diagonal(len(arrays))]
    return torch.tensor(angles, dtype=networks[0].dtype)


def _netrep_angle(x: np.ndarray, y: np.ndarray, alpha: float) -> float:
    def whitened(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if alpha == 1:
            return z, np.eye(z.shape[1])
        values, vectors = np.linalg.eigh(z.T @ z)
        whitening = (vectors / np.sqrt(np.maximum(values, 1e-7))) @ vectors.T
        return z @ whitening, whitening

    means = x.mean(0), y.mean(0)
    (x_white, x_map), (y_white, y_map) = whitened(x - means[0]), whitened(y - means[1])
    U, _, Vt = np.linalg.svd(x_white.T @ y_white)
    x_aligned, y_aligned = (x - means[0]) @ (x_map @ U), (y - means[1]) @ (y_map @ Vt.T)
    cosine = np.sum(x_aligned * y_aligned) / (np.linalg.norm(x_aligned) * np.linalg.norm(y_aligned))
    return math.acos(np.clip(cosine, -1, 1))
