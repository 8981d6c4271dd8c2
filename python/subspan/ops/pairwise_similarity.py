"""Similarity of every representation of one list with every one of another: layers of two networks, or one network's
layers among themselves. Each representation is centred and factored once."""

from __future__ import annotations

from typing import Any

from .. import _check
from . import measures, representations
from .similarity import _METRICS, check_debiased


def pairwise_cca(Xs: Any, Ys: Any = None, *, rank_tol: float | None = None) -> Any:
    r"""Mean canonical correlation of all pairs of representations.

    .. math:: \frac1r \sum_{i=1}^r \rho_i(X, Y), \qquad r = \min(\operatorname{rank} X, \operatorname{rank} Y)

    Args:
        Xs: list of Lx arrays (\*batch, n, d), or one array (Lx, n, d); samples are rows, and d may differ. torch, NumPy
            or CuPy; float64, float32, float16 or bfloat16.
        Ys: the same for the columns of the result; None: Xs, and of the symmetric result only half is computed.
        rank_tol: as in ``cca``.

    Returns:
        (\*batch, Lx, Ly), in [0, 1]; float64 if any representation is, float32 otherwise.

    Raises:
        TypeError, ValueError: no list, wrong arrays or shapes, a negative ``rank_tol``.

    Cost:
        One factorisation as in ``cca`` for each representation; one product of bases and the singular values of a
        d1 x d2 matrix for each pair. The orthonormal bases of all representations are held, in float64.

    Gradient:
        That of ``cca``, of a sum of correlations: exact where they coincide. To all representations.

    Source:
        Raghu et al. 2017; Kornblith et al. 2019, table 1. netrep's ``LinearMetric(alpha=0)`` is its arccos, and whitens
        both representations of every pair anew.

    >>> import numpy as np, subspan
    >>> t = np.linspace(-1, 1, 9)
    >>> print(subspan.pairwise_cca([t[:, None], np.stack([t, t**2], 1), (t**2)[:, None]]).round(6))
    [[1. 1. 0.]
     [1. 1. 1.]
     [0. 1. 1.]]
    """
    op = "pairwise_cca"
    xs, ys = representations.check_lists(op, Xs, Ys)
    tolerance = representations.check_tolerance(op, rank_tol)

    def space(array: Any, eps: float) -> Any:
        return measures.whole_space(array, eps, tolerance)

    return _evaluate(xs, ys, space, measures.mean_correlations)


def pairwise_svcca(Xs: Any, Ys: Any = None, *, rank: int | None = None, energy: float = 0.99) -> Any:
    r"""``svcca`` of all pairs of representations.

    .. math:: \frac1r \sum_{i=1}^r \sigma_i\left(U_X^\top U_Y\right)

    Args:
        Xs: list of Lx arrays (\*batch, n, d), or one array (Lx, n, d); samples are rows, and d may differ. torch, NumPy
            or CuPy; float64, float32, float16 or bfloat16.
        Ys: the same for the columns of the result; None: Xs.
        rank: how many singular directions to keep of each, at most; None: as many as ``energy`` says.
        energy: in (0, 1], fraction of the variance that the kept directions hold. Not used with ``rank``.

    Returns:
        (\*batch, Lx, Ly), in [0, 1]; float64 if any representation is, float32 otherwise.

    Raises:
        TypeError, ValueError: no list, wrong arrays or shapes, rank not an integer >= 1, energy outside (0, 1].

    Cost:
        The leading directions of each representation as in ``svcca``, once. With ``rank``, one product of all bases,
        2 n rank^2 Lx Ly flops, and the singular values of a batch of small matrices.

    Gradient:
        That of ``svcca``, to all representations. Second derivatives raise.

    Source:
        Raghu et al. 2017, SVCCA; the loops over layers in ``measure_alignment.py`` of platonic-rep, which decompose
        both representations of every pair anew.

    >>> import numpy as np, subspan
    >>> layers = np.random.default_rng(0).standard_normal((3, 40, 6))
    >>> print(subspan.pairwise_svcca(layers, rank=2).shape)
    (3, 3)
    """
    op = "pairwise_svcca"
    xs, ys = representations.check_lists(op, Xs, Ys)
    rank, energy = representations.check_truncation(op, rank, energy)

    def space(array: Any, eps: float) -> Any:
        return measures.truncated_space(array, eps, rank, energy)

    return _evaluate(xs, ys, space, measures.mean_correlations, own_type=True)


def pairwise_pwcca(Xs: Any, Ys: Any = None, *, rank_tol: float | None = None) -> Any:
    r"""``pwcca`` of all pairs of representations.

    .. math:: \frac{\sum_i \alpha_i \rho_i}{\sum_i \alpha_i}

    Args:
        Xs: list of Lx arrays (\*batch, n, d), or one array (Lx, n, d); samples are rows, and d may differ. torch, NumPy
            or CuPy; float64, float32, float16 or bfloat16. The weights are theirs.
        Ys: the same for the columns of the result; None: Xs. The result is not symmetric.
        rank_tol: as in ``cca``.

    Returns:
        (\*batch, Lx, Ly), in [0, 1]; float64 if any representation is, float32 otherwise.

    Raises:
        TypeError, ValueError: no list, wrong arrays or shapes, a negative ``rank_tol``.

    Cost:
        One factorisation as in ``cca`` for each representation; per pair what ``pwcca`` needs beyond them.

    Gradient:
        That of ``pwcca``, to all representations. Second derivatives raise.

    Source:
        Morcos et al. 2018, eq. 3; ``compute_pwcca`` of google/svcca in a loop.

    >>> import numpy as np, subspan
    >>> layers = np.random.default_rng(0).standard_normal((2, 30, 4))
    >>> print(np.diag(subspan.pairwise_pwcca(layers)).round(6))
    [1. 1.]
    """
    op = "pairwise_pwcca"
    xs, ys = representations.check_lists(op, Xs, Ys)
    tolerance = representations.check_tolerance(op, rank_tol)

    def compute(arrays: list[Any], eps: float) -> Any:
        spaces = [measures.whole_space(array, eps, tolerance) for array in arrays]
        right = spaces if ys is None else spaces[len(xs) :]
        return representations.table(
            list(range(len(xs))),
            list(range(len(right))),
            lambda i, j: measures.projection_weighted(arrays[i], spaces[i], right[j], eps),
        )

    return representations.evaluate(compute, [*xs, *(ys or ())])


def pairwise_linear_cka(Xs: Any, Ys: Any = None, *, debiased: bool = False) -> Any:
    r"""``linear_cka`` of all pairs of representations.

    .. math:: \frac{\langle K, L\rangle}{\|K\|_F \|L\|_F}, \qquad K = X X^\top,\ L = Y Y^\top, \text{ X and Y centred}

    Args:
        Xs: list of Lx arrays (\*batch, n, d), or one array (Lx, n, d); samples are rows, and d may differ. torch, NumPy
            or CuPy; float64, float32, float16 or bfloat16.
        Ys: the same for the columns of the result; None: Xs.
        debiased: unbiased estimates of the inner products, as in ``linear_cka``.

    Returns:
        (\*batch, Lx, Ly), float64 if any representation is, float32 otherwise.

    Raises:
        TypeError, ValueError: no list, wrong arrays or shapes; debiased with fewer than 4 samples.

    Cost:
        The cheaper of n^2 flops for each feature of each representation and n^2 for each pair (twice that where
        something is differentiated or n <= 256), with 128 rows of every Gram matrix in memory at a time, and 2 n d1 d2
        for each pair and d^2 each.

    Gradient:
        That of ``linear_cka``, to all representations; all Gram matrices of the cheaper side are saved.

    Source:
        Kornblith et al. 2019; Song et al. 2012; the loops over layers in ``measure_alignment.py`` of platonic-rep,
        which form both Gram matrices and nine products of n x n matrices for every pair.

    >>> import numpy as np, subspan
    >>> X = np.eye(6)[:, :4]
    >>> print(subspan.pairwise_linear_cka([X, X[:, :2], 3 * X[:, ::-1]], [X]).round(4).T)
    [[1.     0.7338 1.    ]]
    """
    op = "pairwise_linear_cka"
    xs, ys = representations.check_lists(op, Xs, Ys)
    check_debiased(op, xs[0], debiased, "Xs[0]")

    def compute(arrays: list[Any], eps: float) -> Any:
        right = None if ys is None else arrays[len(xs) :]
        return measures.kernel_alignment(arrays[: len(xs)], right, debiased, eps)

    return representations.evaluate(compute, [*xs, *(ys or ())], own_type=True)


def pairwise_procrustes(Xs: Any, Ys: Any = None, *, metric: str = "chordal") -> Any:
    r"""``procrustes_distance`` of all pairs of representations.

    .. math:: \min_Q \|X Q - Y\|_F \quad\text{or}\quad \arccos \|X^\top Y\|_*, \qquad
        \text{X and Y centred, of unit norm}

    Args:
        Xs: list of Lx arrays (\*batch, n, d), or one array (Lx, n, d); samples are rows, and d may differ. torch, NumPy
            or CuPy; float64, float32, float16 or bfloat16.
        Ys: the same for the columns of the result; None: Xs, and of the symmetric result only half is computed.
        metric: "chordal" or "angular", as in ``procrustes_distance``.

    Returns:
        (\*batch, Lx, Ly) distances, float64 if any representation is, float32 otherwise.

    Raises:
        TypeError, ValueError: no list, wrong arrays or shapes, an unknown ``metric``.

    Cost:
        Each representation is centred and scaled once, with d > n also reduced to n columns where nothing is
        differentiated. Per pair 2 n d1 d2 flops and singular values, or where ``procrustes_distance`` needs them
        singular vectors.

    Gradient:
        That of ``procrustes_distance``, to all representations.

    Source:
        Williams et al. 2021; ``pairwise_distances`` of netrep, which centres, whitens and fits every pair anew.

    >>> import numpy as np, subspan
    >>> X = np.eye(5)[:, :2]
    >>> print(subspan.pairwise_procrustes([X, -X, X[:, :1]]).round(4) + 0)
    [[0.     0.     0.7364]
     [0.     0.     0.7364]
     [0.7364 0.7364 0.    ]]
    """
    op = "pairwise_procrustes"
    xs, ys = representations.check_lists(op, Xs, Ys)
    angular = bool(_check.choice(op, "metric", metric, _METRICS))

    def pairs(left: list[Any], right: list[Any] | None) -> Any:
        columns = left if right is None else right
        return representations.table(
            left,
            right,
            lambda i, j: measures.procrustes(left[i], columns[j], angular),
            lambda i: measures.own_distance(left[i], angular),
        )

    return _evaluate(xs, ys, measures.shape_of, pairs)


def _evaluate(xs: list[Any], ys: list[Any] | None, factor: Any, pairs: Any, own_type: bool = False) -> Any:
    """pairs(factors of xs, factors of ys or None), each array factored once."""

    def compute(arrays: list[Any], eps: float) -> Any:
        factors = [factor(array, eps) for array in arrays]
        return pairs(factors[: len(xs)], None if ys is None else factors[len(xs) :])

    return representations.evaluate(compute, [*xs, *(ys or ())], own_type)
