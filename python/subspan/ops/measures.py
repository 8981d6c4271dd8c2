"""Measures of similarity of representations, on arrays that are checked and of one type: see similarity.py and
pairwise_similarity.py for what they are. Samples are rows, (*batch, n, d)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .. import _check
from . import spectra
from .representations import (
    composite,
    differentiated,
    gram_of_columns,
    readable,
    singular_triplets,
    singular_values,
    table,
)
from .spectra import apply_where, held, library, transposed

#: Rows of the samples' Gram matrices that are formed at a time: of 128, half of a matrix costs hardly more than half.
BLOCK = 128


# --- canonical correlations -------------------------------------------------------------------------------------------


class Space(NamedTuple):
    """An orthonormal basis, columns that do not count zero, and how many count."""

    basis: Any
    count: Any


def whole_space(X: Any, eps: float, tolerance: float | None) -> Space:
    rows, floor = spectra.centred(X, eps)
    if differentiated(X):
        basis, kept = composite.whiten(rows, floor, eps, tolerance)
    else:
        basis, _, kept = spectra.whiten(rows, floor, eps, tolerance)
    return Space(basis, kept.sum(-1))


def truncated_space(X: Any, eps: float, rank: int | None, energy: float) -> Space:
    """X in its own type: few directions of float32 data are iterated on in float32."""
    rows, floor = spectra.centred(X, eps)
    width = min(X.shape[-2:])
    if rank is not None and rank + spectra.SPARE <= width // 3 and readable(X):
        return _few_directions(rows, floor, eps, rank)
    return _truncated(rows, floor, eps, rank, energy)


def _truncated(rows: Any, floor: Any, eps: float, rank: int | None, energy: float) -> Space:
    xp = library(rows)
    wide = rows.dtype if xp is not np and rows.device.type == "mps" else xp.float64
    rows, floor = _check.cast(rows, wide), _check.cast(floor, wide)
    if differentiated(rows):
        basis, kept = composite.leading_basis(rows, floor, eps, rank, energy)
    else:
        left, _, _, kept = spectra.truncated_basis(rows, floor, eps, rank, energy)
        basis = left * kept[..., None, :]
    if rank is not None:
        basis = basis[..., :rank]
    elif readable(rows) and kept.size if xp is np else readable(rows) and kept.numel():
        basis = basis[..., : max(int(kept.sum(-1).max()), 1)]  # not none: NaN shows in it
    return Space(basis, kept.sum(-1))


def _few_directions(rows: Any, floor: Any, eps: float, rank: int) -> Space:
    """Item by item, since each needs its own number of steps."""
    xp = library(rows)
    flat, floors = rows.reshape(-1, *rows.shape[-2:]), floor.reshape(-1)
    spaces = []
    for item, least in zip(flat, floors, strict=True):
        found = spectra.leading_left(item, rank)
        if found is None:
            spaces.append(_truncated(item, least, eps, rank, 1.0))
            continue
        left, values = found
        kept = _check.cast(spectra.alive(values, least, spectra.default_tolerance(item, eps)), xp.float64)
        spaces.append(Space(_check.cast(left, xp.float64) * kept, kept.sum()))
    if not spaces:
        return _truncated(rows, floor, eps, rank, 1.0)
    batch = rows.shape[:-2]
    basis = xp.stack([space.basis for space in spaces])
    return Space(basis.reshape(*batch, *basis.shape[1:]), xp.stack([space.count for space in spaces]).reshape(batch))


def correlations(x: Space, y: Space, width: int) -> Any:
    """Cosines of the principal angles, with zeros up to a fixed width."""
    values = singular_values(transposed(x.basis) @ y.basis)
    return padded(at_most_one(values), width)


def at_most_one(values: Any) -> Any:
    """Without what rounding adds to 1; the derivative there is that of what is rounded."""
    excess = held(values) - 1
    return values - library(values).where(excess > 0, excess, 0.0)


def padded(values: Any, width: int) -> Any:
    xp = library(values)
    missing = width - values.shape[-1]
    if missing <= 0:
        return values[..., :width]
    zeros = xp.zeros_like(values[..., :1]) if values.shape[-1] else xp.zeros_like(values.sum(-1))[..., None]
    return xp.concatenate([values] + [zeros] * missing, -1)


def fewest(x: Space, y: Space) -> Any:
    """Number of canonical correlations, at least 1: a divisor."""
    xp = library(x.count)
    smaller = xp.minimum(x.count, y.count)
    return xp.where(smaller > 1, smaller, 1.0)


def mean_correlation(x: Space, y: Space) -> Any:
    values = singular_values(transposed(x.basis) @ y.basis)
    return at_most_one(values).sum(-1) / fewest(x, y)


def own_correlation(x: Space) -> Any:
    """Mean correlation of a space with itself: 1, and 0 without directions."""
    invalid = 0 * held(x.basis).sum((-1, -2))
    return invalid + _check.cast(x.count > 0, x.count.dtype)


def mean_correlations(xs: list[Space], ys: list[Space] | None) -> Any:
    """(*batch, Lx, Ly): one product for all pairs and one batch of small matrices, where all bases are equally wide."""
    right = xs if ys is None else ys
    widths = {space.basis.shape[-1] for space in (*xs, *right)}
    if len(widths) > 1 or max(widths) > 64:  # no batch of small matrices
        return table(xs, ys, lambda i, j: mean_correlation(xs[i], right[j]), lambda i: own_correlation(xs[i]))
    xp = library(xs[0].basis)
    width = max(widths)
    X = xp.concatenate([space.basis for space in xs], -1)
    Y = X if ys is None else xp.concatenate([space.basis for space in right], -1)
    products = (transposed(X) @ Y).reshape(*X.shape[:-2], len(xs), width, len(right), width).swapaxes(-3, -2)
    values = at_most_one(singular_values(products))
    counts = [xp.stack([space.count for space in spaces], -1) for spaces in (xs, right)]
    return values.sum(-1) / fewest(Space(X, counts[0][..., :, None]), Space(Y, counts[1][..., None, :]))


def projection_weighted(X: Any, x: Space, y: Space, eps: float) -> Any:
    """Morcos et al. 2018: correlations weighted by sum_j |<h_i, x_j>| for X's canonical directions h_i."""
    xp = library(X)
    rows, _ = spectra.unit_norm(X, eps)
    M = transposed(x.basis) @ y.basis
    values, left, _ = singular_triplets(M)
    values = at_most_one(values)
    index = xp.cumsum(xp.ones_like(held(values)), -1)
    counted = _check.cast(index <= xp.minimum(x.count, y.count)[..., None], values.dtype)
    weights = abs(transposed(rows) @ (x.basis @ left)).sum(-2) * counted
    total = weights.sum(-1)
    return (weights * values).sum(-1) * apply_where(total != 0, total, lambda t: 1 / t)


# --- centred kernel alignment -----------------------------------------------------------------------------------------


def kernel_alignment(Xs: list[Any], Ys: list[Any] | None, debiased: bool, eps: float) -> Any:
    """(*batch, Lx, Ly) cosines between centred linear Gram matrices, with Ys None of Xs among themselves."""
    alike = all(X.shape[:-1] == Xs[0].shape[:-1] for X in (*Xs, *(Ys or ())))
    in_blocks = alike and Xs[0].shape[-2] > 2 * BLOCK and readable(*Xs, *(Ys or ()))
    xs = [spectra.unit_norm(X, eps)[0] for X in Xs]
    ys = None if Ys is None else [spectra.unit_norm(Y, eps)[0] for Y in Ys]
    samples = Xs[0].shape[-2]
    widths, others = [X.shape[-1] for X in xs], [Y.shape[-1] for Y in ys or ()]
    by_features = sum(widths) * sum(others or widths) + sum(d * d for d in (*widths, *others) if ys is not None)
    by_samples = samples * sum((*widths, *others)) * (0.6 if in_blocks else 1.0)
    if by_features <= by_samples:
        products = _products_of_features(xs, ys)
    else:
        products = _products_in_blocks(xs, ys) if in_blocks else _products_of_samples(xs, ys)
    if debiased:
        products = _debiased(products, xs, ys)
    xy, xx, yy = products
    xp = library(xy)
    inverse = [apply_where(norm > 0, norm, lambda x: 1 / xp.sqrt(x)) for norm in (xx, yy)]
    return xy * inverse[0][..., :, None] * inverse[1][..., None, :]


Products = tuple[Any, Any, Any]  # <K_i, L_j> (*batch, Lx, Ly), <K_i, K_i>, <L_j, L_j>


def _wide(array: Any) -> Any:
    """To float64, for sums of many terms."""
    xp = library(array)
    return array if xp is not np and array.device.type == "mps" else _check.cast(array, xp.float64)


def _products_of_features(xs: list[Any], ys: list[Any] | None) -> Products:
    """<X X^T, Y Y^T> = |X^T Y|^2."""

    def product(x: Any, y: Any) -> Any:
        inner = gram_of_columns(x) if x is y else transposed(x) @ y
        return _wide((inner**2).sum((-1, -2)))

    right = xs if ys is None else ys
    xp = library(xs[0])
    xy = table(xs, ys, lambda i, j: product(xs[i], right[j]))
    if ys is None:
        xx = xp.stack([xy[..., i, i] for i in range(len(xs))], -1)
        return xy, xx, xx
    xx, yy = (xp.stack([product(z, z) for z in zs], -1) for zs in (xs, ys))
    return xy, xx, yy


def _products_of_samples(xs: list[Any], ys: list[Any] | None) -> Products:
    """By Gram matrices, (*batch, L, n * n) of each list."""
    K = _flat_grams(xs)
    L = K if ys is None else _flat_grams(ys)
    xy, xx = _wide(K @ transposed(L)), _wide((K**2).sum(-1))
    return xy, xx, xx if ys is None else _wide((L**2).sum(-1))


def _flat_grams(xs: list[Any]) -> Any:
    grams = library(xs[0]).stack([gram_of_columns(transposed(x)) for x in xs], -3)
    return grams.reshape(*grams.shape[:-2], math.prod(grams.shape[-2:]))


def _products_in_blocks(xs: list[Any], ys: list[Any] | None) -> Products:
    """BLOCK rows of every Gram matrix at a time, and of these only what is in and right of the diagonal block: what is
    below equals what is right of it and counts twice. One product then makes all inner products of a block."""
    xp, count, networks = library(xs[0]), len(xs), [*xs, *(ys or ())]
    batch, samples = xs[0].shape[:-2], xs[0].shape[-2]
    options = {"device": xs[0].device} if _check.is_torch(xs[0]) else {}
    total: Any = 0.0
    for start in range(0, samples, BLOCK):
        stop = min(start + BLOCK, samples)
        rows = xp.empty((*batch, len(networks), stop - start, samples - start), dtype=xs[0].dtype, **options)
        for i, x in enumerate(networks):
            xp.matmul(x[..., start:stop, :], transposed(x[..., start:, :]), out=rows[..., i, :, :])
        rows[..., : stop - start] *= 0.5**0.5
        rows = rows.reshape(*batch, len(networks), math.prod(rows.shape[-2:]))
        total = total + 2 * _wide(rows @ transposed(rows))
    own = xp.diagonal(total, 0, -2, -1)
    if ys is None:
        return total, own, own
    return total[..., :count, count:], own[..., :count], own[..., count:]


def _debiased(products: Products, xs: list[Any], ys: list[Any] | None) -> Products:
    """n (n - 3) times Song et al.'s unbiased estimates. The rows of the Gram matrix of centred X sum to 0, those of it
    without its diagonal to -|x_i|^2, so that all corrections are made of the diagonals a and b:
    <K, L> - n / (n - 2) a.b + (sum a) (sum b) / ((n - 1) (n - 2))."""
    xp, n = library(xs[0]), xs[0].shape[-2]
    diagonals = [_wide(xp.stack([(z**2).sum(-1) for z in zs], -2)) for zs in (xs, xs if ys is None else ys)]
    a, b = diagonals
    sums = [d.sum(-1) for d in diagonals]
    pairs = (
        (products[0], a @ transposed(b), sums[0][..., :, None] * sums[1][..., None, :]),
        (products[1], (a * a).sum(-1), sums[0] ** 2),
        (products[2], (b * b).sum(-1), sums[1] ** 2),
    )
    xy, xx, yy = (full - n / (n - 2) * dot + both / ((n - 1) * (n - 2)) for full, dot, both in pairs)
    return xy, xx, yy


# --- Procrustes -------------------------------------------------------------------------------------------------------

#: A squared distance below this loses digits to the difference 2 - 2 |X^T Y|_*, above it at most three of sixteen.
NEAR = 1e-3


def shape_of(X: Any, eps: float) -> tuple[Any, Any]:
    """Centred X of unit norm, (*batch, n, d), and where it is not constant. With d > n and nothing to differentiate it
    is turned into n columns."""
    rows, varies = spectra.unit_norm(X, eps)
    if differentiated(X):  # the norm was a constant; this is 1 and gives its derivative
        return rows * apply_where(varies, (rows**2).sum((-1, -2)), lambda x: x**-0.5)[..., None, None], varies
    if X.shape[-1] > X.shape[-2] > 0:
        rows, valid = spectra.finite_items(rows)
        rows = transposed(library(X).linalg.qr(transposed(rows), mode="r" if _check.is_torch(X) else "reduced")[1])
        rows = rows * valid[..., None, None]
    return rows, varies


def procrustes(x: tuple[Any, Any], y: tuple[Any, Any], angular: bool) -> Any:
    (X, x_varies), (Y, y_varies) = x, y
    xp = library(X)
    M = transposed(X) @ Y
    if readable(X, Y):
        squared = 2 - 2 * singular_values(M).sum(-1)
        if not bool((squared < NEAR).any()):
            return _distance(squared, angular)
    values, left, right = singular_triplets(M)
    squared = 2 - 2 * values.sum(-1)
    # |X Q - Y|^2 is the same without the cancellation; Q may only turn the narrower representation into the wider one.
    rotation = held(left) @ transposed(held(right))
    turned = X.shape[-1] <= Y.shape[-1]
    residual = held(X) @ rotation - held(Y) if turned else held(Y) @ transposed(rotation) - held(X)
    constant = sum(xp.where(varies, 0.0, 1.0) for varies in (x_varies, y_varies))
    exact = (residual**2).sum((-1, -2)) + constant
    return _distance(squared + (exact - held(squared)), angular)


def own_distance(x: tuple[Any, Any], angular: bool) -> Any:
    """Of a representation to itself: 0, and for a constant one as to any other."""
    X, varies = x
    return _distance(0 * held(X).sum((-1, -2)) + library(X).where(varies, 0.0, 2.0), angular)


def _distance(squared: Any, angular: bool) -> Any:
    xp = library(squared)
    squared = xp.where(squared > 2, squared * 0 + 2, squared)
    distance = apply_where(squared != 0, squared, xp.sqrt)
    return 2 * xp.arcsin(distance / 2) if angular else distance


# --- entropy ----------------------------------------------------------------------------------------------------------


def entropy(H: Any, normalize: bool) -> Any:
    """-sum x log x over the eigenvalues x of H^T H / n, by the Gram matrix of the smaller side."""
    samples = H.shape[-2]
    if normalize:
        squared = (H**2).sum(-1)
        inverse = apply_where(squared != 0, squared, lambda x: 1 / library(H).sqrt(x))
        # A norm that overflows must not pass as infinitely long.
        H = H * library(H).where(held(squared) == math.inf, math.nan, inverse)[..., None]
    H = _wide(H)
    gram = gram_of_columns(transposed(H) if samples < H.shape[-1] else H) / max(samples, 1)
    if differentiated(H):
        return composite.entropy(gram)
    values = spectra.eigenvalues(gram)
    return -(values * apply_where(values != 0, values, library(values).log)).sum(-1)
