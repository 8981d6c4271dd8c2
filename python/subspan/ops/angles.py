"""Principal angles between subspaces, distances and similarities made of them."""

from __future__ import annotations

from typing import Any

from .. import _check
from .._angle_functions import ANGLES, COSINES, METRICS, SIMILARITIES
from .angle_function import angle_function

_ORDERS = {"ascending": 0, "descending": 1}
_UNEQUAL = {"nearest": 0, "padded": 1, "raise": 2}


def principal_angles(
    A: Any,
    B: Any,
    *,
    pairwise: bool = False,
    assume_orthonormal: bool = False,
    order: str = "ascending",
    rank_tol: float | None = None,
    return_vectors: bool = False,
    return_info: bool = False,
    layout: str = "columns",
) -> Any:
    r"""Principal angles between the spans of two bases, each exact to rounding from 0 to pi/2.

    .. math:: \cos\theta_i = \sigma_i(Q_A^\top Q_B), \qquad \theta_i = \operatorname{atan2}\left(
        \sigma_i(Q_B V - Q_A U C),\ \cos\theta_i\right)

    Q_A, Q_B are orthonormal bases of the spans and U C V^T = Q_A^T Q_B. The sines come from residuals, so that no
    digits are lost near zero, as they are in every arccos.

    Args:
        A: (\*batch, n, p), a basis as columns, p <= n; float64, float32, float16 or bfloat16, any strides. torch, NumPy
            or CuPy.
        B: (\*batch, n, q), likewise; batch dimensions broadcast.
        pairwise: every basis of A with every one of B: (\*batch, N, n, p) and (\*batch, M, n, q) give (\*batch, N, M,
            ...); the same array twice is recognised, and done in half the time.
        assume_orthonormal: the columns are orthonormal as they are; saves most of the work on tall bases. Gradients
            are then the tangent (projected) ones.
        order: "ascending" or "descending" angles.
        rank_tol: a column that the columns before it span to this fraction of its norm counts as dependent; None means
            n times the rounding unit of the type.
        return_vectors: also return the principal vectors Q_A U and Q_B V, (\*batch, n, min(p, q)) each, constants to
            autograd; not with ``pairwise``.
        return_info: also return an int32 array (\*batch): how many angles the bases' ranks leave,
            min(rank A, rank B); -1 where an item is not finite.
        layout: "rows" for bases as rows, (\*batch, p, n), which are read in place.

    Returns:
        (\*batch, min(p, q)) in radians, float64 for float64 input and float32 otherwise. Where ranks are smaller, the
        angles that are missing are pi/2. An item that is not finite is NaN.

    Raises:
        TypeError, ValueError: wrong arrays or options; vectors of different lengths; more vectors than entries.

    Cost:
        Per pair 2 n (p^2 + q^2) flops for orthonormal bases, 2 n p q for cosines and as much three times for sines
        where an angle is below pi/4, all in float64 also for float32 input; some n (p + q) float64 numbers per thread.

    Gradient:
        Of each angle in closed form, bounded, computed anew in backward; only A and B are saved. It is the gradient of
        the span: orthogonal to the basis. At angles of 0, where none exists, 0; at equal angles one of the
        subgradients. Second derivatives of single angles exist where angles are distinct.

    Source:
        Bjorck and Golub 1973; Knyazev and Argentati 2002. Replaces ``scipy.linalg.subspace_angles``, which takes the
        sine for the wrong angles when a large one and a tiny one meet, and ``torch.linalg.svdvals(A.mT @ B).acos()``.

    >>> import numpy as np, subspan
    >>> A = np.eye(4)[:, :2]
    >>> B = np.array([[1.0, 0], [0, 1], [1e-9, 0], [0, 1]])
    >>> print(subspan.principal_angles(A, B))
    [1.00000000e-09 7.85398163e-01]
    """
    op = "principal_angles"
    descending = _check.choice(op, "order", order, _ORDERS)
    outputs = angle_function(
        op, ANGLES, A, B, pairwise, assume_orthonormal, rank_tol, layout, return_vectors, return_info
    )
    if descending:
        outputs = tuple(_reversed(x) if i == 0 or x.ndim > outputs[0].ndim else x for i, x in enumerate(outputs))
    return outputs if len(outputs) > 1 else outputs[0]


def _reversed(array: Any) -> Any:
    return array.flip(-1) if _check.is_torch(array) else array[..., ::-1]


def principal_cosines(
    A: Any,
    B: Any,
    *,
    pairwise: bool = False,
    assume_orthonormal: bool = False,
    rank_tol: float | None = None,
    return_info: bool = False,
    layout: str = "columns",
) -> Any:
    r"""Cosines of the principal angles between the spans of two bases, in descending order.

    .. math:: \cos\theta_i = \sigma_i(Q_A^\top Q_B)

    Args:
        A: (\*batch, n, p), a basis as columns, p <= n; float64, float32, float16 or bfloat16, any strides. torch, NumPy
            or CuPy.
        B: (\*batch, n, q), likewise; batch dimensions broadcast.
        pairwise: see ``principal_angles``.
        assume_orthonormal: see ``principal_angles``.
        rank_tol: see ``principal_angles``.
        return_info: see ``principal_angles``.
        layout: see ``principal_angles``.

    Returns:
        (\*batch, min(p, q)) between 0 and 1, (\*batch, N, M, min(p, q)) with ``pairwise``; float64 for float64 input
        and float32 otherwise. Where ranks are smaller, the cosines that are missing are 0. An item that is not finite
        is NaN.

    Raises:
        TypeError, ValueError: wrong arrays or options; vectors of different lengths; more vectors than entries.

    Cost:
        As ``principal_angles``.

    Gradient:
        In closed form, that of the span: smooth at angles of 0, and one of the subgradients at equal angles. Second
        derivatives exist where angles are distinct.

    Source:
        Bjorck and Golub 1973. Replaces ``torch.linalg.svdvals(A.mT @ B)``, and canonical correlations made of it.

    >>> import numpy as np, subspan
    >>> print(subspan.principal_cosines(np.eye(3)[:, :2], np.eye(3)[:, 1:]))
    [1. 0.]
    """
    outputs = angle_function(
        "principal_cosines",
        COSINES,
        A,
        B,
        pairwise,
        assume_orthonormal,
        rank_tol,
        layout,
        return_info=return_info,
    )
    return outputs if return_info else outputs[0]


def subspace_distance(
    A: Any,
    B: Any,
    metric: str = "geodesic",
    *,
    squared: bool = False,
    pairwise: bool = False,
    unequal: str = "nearest",
    assume_orthonormal: bool = False,
    rank_tol: float | None = None,
    layout: str = "columns",
) -> Any:
    r"""Distance between the spans of two bases.

    With the principal angles :math:`\theta_i`, of which :math:`\theta_{\max}` is the largest:

    ============== ============================================ ===========================================
    metric         distance                                     also called
    ============== ============================================ ===========================================
    geodesic       :math:`(\sum \theta_i^2)^{1/2}`              arc length, Grassmann distance
    chordal        :math:`(\sum \sin^2\theta_i)^{1/2}`          projection F-norm
    projection     :math:`\|P_A - P_B\|_F`                      :math:`\sqrt 2` times chordal
    procrustes     :math:`2 (\sum \sin^2(\theta_i/2))^{1/2}`    chordal F-norm
    fubini_study   :math:`\arccos \prod \cos\theta_i`
    binet_cauchy   :math:`(1 - \prod \cos^2\theta_i)^{1/2}`
    asimov         :math:`\theta_{\max}`
    spectral       :math:`2 \sin(\theta_{\max}/2)`              chordal 2-norm
    gap            :math:`\sin\theta_{\max}`                    projection 2-norm, containment gap
    martin         :math:`(-\sum \log\cos^2\theta_i)^{1/2}`    infinite at a right angle
    ============== ============================================ ===========================================

    Args:
        A: (\*batch, n, p), a basis as columns, p <= n; float64, float32, float16 or bfloat16, any strides. torch, NumPy
            or CuPy.
        B: (\*batch, n, q), likewise; batch dimensions broadcast.
        metric: one of the above.
        squared: its square, which is smooth where the distance is 0 (except in the martin and largest-angle metrics
            at equal angles).
        pairwise: every basis of A with every one of B, see ``principal_angles``.
        unequal: where p and q differ, "nearest" takes the min(p, q) angles as they are: the distance to the nearest
            subspace of the other dimension that contains, or is contained; "padded" adds abs(p - q) angles of pi/2 (for
            "projection" that is the norm of the difference of the projections); "raise" refuses.
        assume_orthonormal: see ``principal_angles``.
        rank_tol: see ``principal_angles``.
        layout: see ``principal_angles``.

    Returns:
        (\*batch), or (\*batch, N, M) with ``pairwise``; in radians where the formula is an angle; float64 for float64
        input and float32 otherwise. Exact to rounding also for distances as small as 1e-11. An item that is not finite
        is NaN.

    Raises:
        TypeError, ValueError: as ``principal_angles``; unknown metric; p != q with ``unequal="raise"``.

    Cost:
        As ``principal_angles``. With ``pairwise``, "chordal" and "projection" need no singular values where they are
        not small.

    Gradient:
        In closed form and exact also where angles repeat or vanish, orthogonal to the bases: it is the gradient of the
        span. At distance 0 the square has gradient 0, and for the distance, which has none there, 0 is returned; for a
        cosine of 0, where geodesic, martin and fubini_study have none, a subgradient or 0. Saved are A and B. Second
        derivatives by divided differences, exact at repeated angles, for all but asimov, spectral and gap, which have
        them where the largest angle is simple.

    Source:
        Ye and Lim 2016, arXiv:1407.0900, table 2. Replaces ``pymanopt``'s ``Grassmann.dist``, UQpy's distances and
        ``FlagAveraging``'s, which clamp or lose small angles.

    >>> import numpy as np, subspan
    >>> print(round(subspan.subspace_distance(np.eye(3)[:, :2], np.eye(3)[:, 1:], "chordal").item(), 6))
    1.0
    """
    op = "subspace_distance"
    function = _check.choice(op, "metric", metric, METRICS)
    convention = _check.choice(op, "unequal", unequal, _UNEQUAL)
    if squared is not False:
        _check.flag(op, "squared", squared)
    return angle_function(
        op,
        function,
        A,
        B,
        pairwise,
        assume_orthonormal,
        rank_tol,
        layout,
        squared=squared,
        padded=convention == _UNEQUAL["padded"],
        equal=convention == _UNEQUAL["raise"],
    )[0]


def subspace_similarity(
    A: Any,
    B: Any,
    kind: str = "mean_cos2",
    *,
    pairwise: bool = False,
    assume_orthonormal: bool = False,
    rank_tol: float | None = None,
    layout: str = "columns",
) -> Any:
    r"""Similarity of the spans of two bases.

    .. math:: \text{mean_cos2} = \frac{1}{\min(p, q)}\sum_i \cos^2\theta_i, \qquad
        \text{max_cos} = \cos\theta_{\min}, \qquad \text{overlap} = \sum_i \cos^2\theta_i = \operatorname{tr} P_A P_B

    Args:
        A: (\*batch, n, p), a basis as columns, p <= n; float64, float32, float16 or bfloat16, any strides. torch, NumPy
            or CuPy.
        B: (\*batch, n, q), likewise; batch dimensions broadcast.
        kind: "mean_cos2", the similarity of the mutual subspace method; "max_cos", which is 1 where the spans share a
            direction; "overlap", how many dimensions they share.
        pairwise: see ``principal_angles``.
        assume_orthonormal: see ``principal_angles``.
        rank_tol: see ``principal_angles``.
        layout: see ``principal_angles``.

    Returns:
        (\*batch), or (\*batch, N, M) with ``pairwise``; float64 for float64 input and float32 otherwise. An item that
        is not finite is NaN.

    Raises:
        TypeError, ValueError: as ``principal_angles``; unknown kind.

    Cost:
        As ``principal_angles``. With ``pairwise``, all but "max_cos" need no singular values.

    Gradient:
        In closed form, orthogonal to the bases. Smooth everywhere for "mean_cos2" and "overlap", with exact second
        derivatives; of "max_cos" where the smallest angle is simple.

    Source:
        Yamaguchi, Fukui and Maeda 1998. Replaces ``cvlab_toolbox``'s similarities and the subspace overlap of
        safety-subspaces, ``(Qa.T @ Qb).norm() ** 2 / k``.

    >>> import numpy as np, subspan
    >>> print(subspan.subspace_similarity(np.eye(3)[:, :2], np.eye(3)[:, 1:]))
    0.5
    """
    op = "subspace_similarity"
    function = _check.choice(op, "kind", kind, SIMILARITIES)
    return angle_function(op, function, A, B, pairwise, assume_orthonormal, rank_tol, layout)[0]
