"""Similarity of two representations of the same samples: canonical correlations, centred kernel alignment, Procrustes.

All are invariant to translations, to orthogonal maps of the features and to isotropic scaling; canonical correlations
to any invertible map of the features. pairwise_similarity.py has the same for lists of representations.
"""

from __future__ import annotations

from typing import Any

from .. import _check
from . import measures, representations

_METRICS = {"chordal": 0, "angular": 1}


def cca(X: Any, Y: Any, *, rank_tol: float | None = None) -> Any:
    r"""Canonical correlations: the cosines of the principal angles between the column spaces of centred X and Y.

    .. math:: \rho_i = \sigma_i\left(U_X^\top U_Y\right), \qquad U_X, U_Y \text{ orthonormal bases of the column spaces}

    Args:
        X: (\*batch, n, d1), rows are samples; float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        Y: (\*batch, n, d2), the same samples, broadcast with X.
        rank_tol: number >= 0; a direction whose singular value is at most this fraction of the largest is dead. None:
            max(n, d) eps of the result's type. Where n <= d everything correlates, unless this is raised.

    Returns:
        (\*batch, min(d1, d2)), descending, in [0, 1]; float64 if X or Y is, float32 otherwise. Directions that X or Y
        lacks have correlation 0: constant, repeated and dependent features change no shape and make no NaN.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, a negative ``rank_tol``.

    Cost:
        Per representation, with s the smaller and b the larger of n and d, a factorisation in float64: where values may
        be looked at (on the CPU, not compiled or mapped) QR and the inverse of R, 4 n d^2 flops, if they show full
        rank; otherwise for float32 input the eigenvectors of a Gram matrix, 4 s^2 b + 9 s^3, which is exact enough for
        any condition number that float32 data can have and a ``rank_tol`` above 1e-7, for float64 input an SVD, about
        6 s^2 b + 20 s^3. Then one product and the singular values of a d1 x d2 matrix. All are those of torch and
        NumPy; on CUDA torch's synchronise.

    Gradient:
        (Y-side variate - rho X-side variate) of each pair, pulled back through the pseudoinverse of X; no difference of
        singular values in it. Sums of all correlations have exact first and second derivatives where correlations
        coincide; of other functions the second derivative lacks the mixing of correlations that coincide exactly, and
        a single one of them has a subgradient only. At constant rank; 0 for a correlation of 0.
        X, a basis and its pseudoinverse are saved. Third derivatives raise.

    Source:
        Hotelling 1936; Bjorck and Golub 1973; ``get_cca_similarity`` of google/svcca, ``cca`` of anatome.

    >>> import numpy as np, subspan
    >>> t = np.linspace(0, 1, 8)
    >>> X, Y = np.stack([t, t**2], 1), np.stack([t + t**2, np.cos(9 * t), t], 1)
    >>> print(subspan.cca(X, Y).round(6))  # both of X's directions are in Y
    [1. 1.]
    """
    op = "cca"
    representations.check_pair(op, X, Y)
    tolerance = representations.check_tolerance(op, rank_tol)

    def compute(arrays: list[Any], eps: float) -> Any:
        x, y = (measures.whole_space(array, eps, tolerance) for array in arrays)
        return measures.correlations(x, y, min(X.shape[-1], Y.shape[-1]))

    return representations.evaluate(compute, [X, Y])


def svcca(X: Any, Y: Any, *, rank: int | None = None, energy: float = 0.99, return_correlations: bool = False) -> Any:
    r"""Singular vector CCA: the mean canonical correlation of the leading singular directions of X and Y.

    .. math:: \frac1r \sum_{i=1}^r \sigma_i\left(U_X^\top U_Y\right), \qquad U_X, U_Y \text{ leading left singular
        vectors of centred X and Y}

    with r the smaller of the two numbers of directions. There is no second factorisation: the directions are
    orthonormal, so that CCA of them is one product.

    Args:
        X: (\*batch, n, d1), rows are samples; float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        Y: (\*batch, n, d2), the same samples, broadcast with X.
        rank: how many singular directions to keep of each, at most; None: as many as ``energy`` says.
        energy: in (0, 1], the fraction of the variance (the sum of **squared** singular values) that the kept
            directions hold; the fewest that do are kept. Not used with ``rank``.
        return_correlations: return the correlations as well.

    Returns:
        The mean, (\*batch), or with ``return_correlations`` it and all correlations, (\*batch, k), descending, padded
        with zeros to k = min(d1, d2), or min(rank, d1, d2). float64 if X or Y is, float32 otherwise. 0 where X or Y is
        constant.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, rank not an integer >= 1, energy outside (0, 1].

    Cost:
        By energy as ``cca``. By a small rank (up to about min(n, d) / 3 with the block's size), where nothing is
        differentiated, compiled or mapped and on the CPU, a block Lanczos iteration of 4 n d (rank + 6) flops a step in
        the type of the input, until the residual of the directions is 16 roundings of the largest singular value; four
        to ten steps for decaying spectra, and the full factorisation for spectra that it cannot separate.

    Gradient:
        To X through its kept singular space, which moves by differences of squared singular values of kept and
        discarded directions only; infinite in truth where the last kept and the first discarded coincide, where that
        term is left out. The number of directions is held. Needs the full factorisation. Second derivatives raise.

    Source:
        Raghu et al. 2017, SVCCA; ``svcca`` in ``metrics.py`` of platonic-rep, which has ``svd_lowrank`` and an
        iterative CCA for it and adds noise against NaN. google/svcca's notebooks take the fraction of the sum of
        singular values.

    >>> import numpy as np, subspan
    >>> t = np.linspace(0, 1, 50)
    >>> signal, noise = np.stack([np.sin(9 * t), np.cos(9 * t)], 1), np.cos(np.outer(t * 50, [3.0, 4.0]))
    >>> X, Y = np.hstack([signal, 0.01 * noise]), signal @ np.array([[1.0, 2.0], [0.5, 3.0]])
    >>> print(round(float(subspan.svcca(X, Y, rank=2)), 3))
    1.0
    """
    op = "svcca"
    representations.check_pair(op, X, Y)
    rank, energy = representations.check_truncation(op, rank, energy)
    _check.flag(op, "return_correlations", return_correlations)
    width = min(X.shape[-1], Y.shape[-1], X.shape[-1] if rank is None else rank)

    def compute(arrays: list[Any], eps: float) -> Any:
        x, y = (measures.truncated_space(array, eps, rank, energy) for array in arrays)
        values = measures.correlations(x, y, width)
        mean = values.sum(-1) / measures.fewest(x, y)
        return (mean, values) if return_correlations else mean

    return representations.evaluate(compute, [X, Y], own_type=True)


def pwcca(X: Any, Y: Any, *, rank_tol: float | None = None) -> Any:
    r"""Projection-weighted CCA: canonical correlations weighted by how much of X their directions account for.

    .. math:: \frac{\sum_i \alpha_i \rho_i}{\sum_i \alpha_i}, \qquad \alpha_i = \sum_j |\langle h_i, x_j\rangle|

    with the canonical directions h_i of X (orthonormal, in the space of samples) and the columns x_j of **centred** X.
    Not symmetric: the weights are those of X. anatome projects the columns before centring them, which lets the means
    of features weigh in; google/svcca takes the weights from whichever side has fewer features.

    Args:
        X: (\*batch, n, d1), rows are samples; float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        Y: (\*batch, n, d2), the same samples, broadcast with X.
        rank_tol: as in ``cca``. As many directions count as the one of lower rank has.

    Returns:
        (\*batch), in [0, 1]; float64 if X or Y is, float32 otherwise. 0 where X or Y is constant.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, a negative ``rank_tol``.

    Cost:
        As ``cca``, with singular vectors of the d1 x d2 matrix, and 2 n d1 min(d1, d2) flops for the weights.

    Gradient:
        Of correlations and weights. Directions of coinciding correlations are arbitrary within their space, on which
        the value itself depends: they are held fixed to each other there. Second derivatives raise.

    Source:
        Morcos et al. 2018, Insights on representational similarity in neural networks with canonical correlation, eq.
        3; ``compute_pwcca`` of google/svcca, ``pwcca_distance`` of anatome.

    >>> import numpy as np, subspan
    >>> t = np.linspace(0, 1, 16)
    >>> X = np.stack([9 * np.cos(np.pi * t), np.cos(20 * t)], 1)
    >>> print(round(float(subspan.pwcca(X, X[:, :1])), 3))  # one direction, which is in X
    1.0
    """
    op = "pwcca"
    representations.check_pair(op, X, Y)
    tolerance = representations.check_tolerance(op, rank_tol)

    def compute(arrays: list[Any], eps: float) -> Any:
        x, y = (measures.whole_space(array, eps, tolerance) for array in arrays)
        return measures.projection_weighted(arrays[0], x, y, eps)

    return representations.evaluate(compute, [X, Y])


def linear_cka(X: Any, Y: Any, *, debiased: bool = False) -> Any:
    r"""Centred kernel alignment with linear kernels: the cosine between the centred Gram matrices of the samples.

    .. math:: \frac{\langle K, L\rangle}{\|K\|_F \|L\|_F} = \frac{\|Y^\top X\|_F^2}{\|X^\top X\|_F \|Y^\top Y\|_F},
        \qquad K = X X^\top,\ L = Y Y^\top, \text{ X and Y centred}

    Args:
        X: (\*batch, n, d1), rows are samples; float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        Y: (\*batch, n, d2), the same samples, broadcast with X.
        debiased: take unbiased estimates of the three inner products (of HSIC), for which n >= 4. With few samples and
            many features the biased value approaches 1 whatever the features; this one is around 0 for unrelated ones
            and may be negative, which is not clamped.

    Returns:
        (\*batch), float64 if X or Y is, float32 otherwise; 0 where X or Y is constant.

    Raises:
        TypeError, ValueError: wrong arrays or shapes; debiased with fewer than 4 samples.

    Cost:
        The cheaper of 2 n (d1 d2 + d1^2 + d2^2) and 2 n^2 (d1 + d2) flops in the result's type; of the latter, where
        nothing is differentiated, little more than half, in blocks of 128 rows of the Gram matrices, so that none is
        ever stored. Sums over blocks are float64. float32 products on CUDA follow
        ``torch.set_float32_matmul_precision``.

    Gradient:
        By torch through the products, to any order; saved are X, Y and the Gram matrices of the cheaper side. 0 where X
        or Y is constant.

    Source:
        Kornblith et al. 2019, Similarity of Neural Network Representations Revisited, eq. 4; Song et al. 2012, Feature
        Selection via Dependence Maximization, eq. 5, and Nguyen et al. 2020 for the unbiased estimate. ``cka`` in
        ``metrics.py`` of platonic-rep, with ``trace(K @ H @ L @ H)``.

    >>> import numpy as np, subspan
    >>> X = np.eye(6)[:, :3]
    >>> print(round(float(subspan.linear_cka(X, X[:, ::-1] * 2 + 1)), 6))
    1.0
    """
    op = "linear_cka"
    representations.check_pair(op, X, Y)
    check_debiased(op, X, debiased, "X")

    def compute(arrays: list[Any], eps: float) -> Any:
        return measures.kernel_alignment(arrays[:1], arrays[1:], debiased, eps)[..., 0, 0]

    return representations.evaluate(compute, [X, Y], own_type=True)


def procrustes_distance(X: Any, Y: Any, *, metric: str = "chordal") -> Any:
    r"""How far X is from Y after centring, scaling to unit norm and the best orthogonal map of the features.

    .. math:: \min_Q \|X Q - Y\|_F = \sqrt{2 - 2 \|X^\top Y\|_*}, \qquad \text{or the angle } \arccos \|X^\top Y\|_*

    with the nuclear norm, the sum of singular values. Where the numbers of features differ, zeros are thought added.

    Args:
        X: (\*batch, n, d1), rows are samples; float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        Y: (\*batch, n, d2), the same samples, broadcast with X.
        metric: "chordal", the first formula, in [0, sqrt 2], or "angular", the second, in [0, pi / 2], which is
            netrep's ``LinearMetric(alpha=1, score_method="angular")``. Both are metrics on shapes.

    Returns:
        (\*batch), float64 if X or Y is, float32 otherwise. Small distances come from the residual X Q - Y, not from
        2 - 2, and 0 is exact to some roundings. A constant X or Y has no shape: sqrt 2 or pi / 2 from everything.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, an unknown ``metric``.

    Cost:
        In float64 whatever the input: 2 n d1 d2 flops and the singular values of a d1 x d2 matrix, about 3 d^3; where
        the result is to be differentiated, or is small, the singular vectors as well, about 20 d^3, and 2 n d1 d2. With
        d > n and nothing to differentiate the matrices are n x n.

    Gradient:
        (X - Y Q^T) / distance through the normalisation, with the optimal Q; 0 at distance 0, where there is none, and
        in directions of vanishing singular values of X^T Y. Second derivatives by divided differences, exact at
        coinciding singular values; third derivatives raise. Singular vectors of X^T Y are saved.

    Source:
        Ding et al. 2021, Grounding Representation Similarity; Williams et al. 2021, Generalized Shape Metrics on Neural
        Representations. ``LinearMetric`` of netrep.

    >>> import numpy as np, subspan
    >>> X = np.eye(5)[:, :2]
    >>> turned = X @ np.array([[0.6, 0.8], [-0.8, 0.6]])
    >>> print(round(float(subspan.procrustes_distance(X, turned)), 12))
    0.0
    """
    op = "procrustes_distance"
    representations.check_pair(op, X, Y)
    angular = bool(_check.choice(op, "metric", metric, _METRICS))

    def compute(arrays: list[Any], eps: float) -> Any:
        x, y = (measures.shape_of(array, eps) for array in arrays)
        return measures.procrustes(x, y, angular)

    return representations.evaluate(compute, [X, Y])


def check_debiased(op: str, X: Any, debiased: Any, name: str) -> None:
    _check.flag(op, "debiased", debiased)
    if debiased and X.shape[-2] < 4:
        raise ValueError(f"{op}: {name}: expected at least 4 samples (rows) for debiased, got shape {tuple(X.shape)}")


def von_neumann_entropy(H: Any, *, normalize: bool = True) -> Any:
    r"""Entropy of the eigenvalues of the autocorrelation of features: how evenly samples spread over directions.

    .. math:: S = -\sum_i \lambda_i \log \lambda_i, \qquad \lambda_i \text{ the eigenvalues of } C = \tfrac1n H^\top H

    With rows of unit norm the eigenvalues sum to 1: S is 0 for collapsed features and log d for isotropic ones.

    Args:
        H: (\*batch, n, d), rows are samples; float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        normalize: scale rows to unit norm first; zero rows stay zero.

    Returns:
        (\*batch), in natural units; float64 for float64 input and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong array.

    Cost:
        With s the smaller and b the larger of n and d, 2 s^2 b flops for a Gram matrix and 4/3 s^3 for its eigenvalues,
        with a gradient about 9 s^3 for its eigenvectors and 4 s^2 b for products with H; all in float64 but for
        the normalisation. On CUDA torch's eigenvalues synchronise.

    Gradient:
        To the normalised rows -(2/n) H (log C + I) on the range of C: in a direction that vanishes, the factor H
        makes the limit 0. No difference of eigenvalues in it. The second derivative takes divided differences of the
        logarithm, exact at coinciding eigenvalues; it is infinite in truth where both H and its change enter a
        direction that C lacks, where 0 is taken. Third derivatives raise. Eigenvectors and the Gram matrix are saved.

    Source:
        Kim et al. 2023, VNE: An Effective Method for Improving Deep Representation by Manipulating Eigenvalue
        Distribution, eq. 4; ``get_vne`` of jaeill/CVPR23-VNE, with the SVD of H, whose gradient is NaN at coinciding
        singular values.

    >>> import numpy as np, subspan
    >>> print(round(float(subspan.von_neumann_entropy(np.eye(4) * 3)), 6))  # log 4
    1.386294
    """
    op = "von_neumann_entropy"
    _check.matrix(op, "H", H)
    _check.flag(op, "normalize", normalize)
    return representations.evaluate(lambda arrays, eps: measures.entropy(arrays[0], normalize), [H], True)
