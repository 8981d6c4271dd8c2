"""Sparse embeddings as the papers write them, in float64 NumPy.

FLOPS:   Paria, Yeh, Yen, Xu, Ravikumar, Poczos, Minimizing FLOPs to Learn Efficient Sparse Representations, ICLR 2020,
         arXiv:2004.05665
JumpReLU: Rajamanoharan, Lieberum, Sonnerat, Conmy, Varma, Kramar, Nanda, Jumping Ahead: Improving Reconstruction
         Fidelity with JumpReLU Sparse Autoencoders, 2024, arXiv:2407.14435
PURSUIT: Mallat, Zhang, Matching Pursuits with Time-Frequency Dictionaries, IEEE Trans. Signal Processing 41(12), 1993
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def column_means(x: ArrayLike, row_mask: ArrayLike | None = None) -> Array:
    """FLOPS, section 3: the mean magnitude of each activation over the n rows; a masked row is a row of zeros."""
    sizes = np.abs(np.asarray(x, dtype=np.float64))
    if row_mask is not None:
        sizes = np.where(np.asarray(row_mask)[..., None], sizes, 0)
    return np.asarray(sizes.sum(-2) / max(sizes.shape[-2], 1))


def flops_loss(
    x: ArrayLike,
    *,
    y: ArrayLike | None = None,
    unbiased: bool = False,
    row_mask: ArrayLike | None = None,
    ema: tuple[ArrayLike, float] | None = None,
) -> Any:
    """FLOPS, equation (4): the sum of the squares of the means of the columns.

    unbiased: of the products of two different rows, over all pairs of them.
    """
    means = column_means(x, row_mask)
    if unbiased:
        n = np.shape(x)[-2]
        squares = column_means(np.square(np.asarray(x, dtype=np.float64)), row_mask) * n
        return _finite(((n * means) ** 2 - squares).sum(-1) / (n * (n - 1)) if n > 1 else np.zeros(means.shape[:-1]))
    if ema is None:
        return _finite((means * (means if y is None else column_means(y))).sum(-1))
    running, decay = ema
    means = decay * np.asarray(running, dtype=np.float64) + (1 - decay) * means
    return _finite((means**2).sum(-1)), means


def l1_loss(x: ArrayLike, *, row_mask: ArrayLike | None = None) -> Array:
    """The mean over the rows of their sums of magnitudes."""
    return _finite(column_means(x, row_mask).sum(-1))


def flops_metric(q: ArrayLike, d: ArrayLike | None = None) -> Array:
    """Mean number of columns in which both of two rows are not zero; with d None, of two different rows of q."""
    fired = (np.asarray(q) != 0).astype(np.float64)
    return np.asarray(flops_loss(fired, unbiased=True) if d is None else flops_loss(fired, y=np.asarray(d) != 0))


def r_sub(q: ArrayLike, d: ArrayLike | None = None) -> Array:
    """FLOPS, section 5: that number over what it would be if the same nonzeros were spread evenly over the columns."""
    nonzeros = [l1_loss(np.asarray(rows) != 0) for rows in (q, q if d is None else d)]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(flops_metric(q, d) * np.shape(q)[-1] / (nonzeros[0] * nonzeros[1]))


def _finite(loss: ArrayLike) -> Array:
    loss = np.asarray(loss, dtype=np.float64)
    return np.where(np.isfinite(loss), loss, np.nan)


def topk_rows(x: ArrayLike, k: int, by: str = "value", relu: bool = True) -> tuple[Array, NDArray[np.int64]]:
    """Values and columns of the k largest entries of each row, equal ones by lower column, NaN before all numbers."""
    x = np.asarray(x, dtype=np.float64)
    ranked = np.abs(x) if by == "abs" else x
    order = np.lexsort((-np.where(np.isnan(ranked), 0, ranked), ~np.isnan(ranked)), axis=-1)[..., :k]
    values = np.take_along_axis(x, order, -1)
    return np.where(values <= 0, 0, values) if relu else values, order


def linear_topk(
    x: ArrayLike, W: ArrayLike, b: ArrayLike | None, k: int, *, by: str = "value", relu: bool = True
) -> tuple[Array, NDArray[np.int64]]:
    """topk_rows of x W^T + b."""
    outputs = np.asarray(x, dtype=np.float64) @ np.swapaxes(np.asarray(W, dtype=np.float64), -1, -2)
    return topk_rows(outputs if b is None else outputs + np.asarray(b)[..., None, :], k, by, relu)


def batch_topk(x: ArrayLike, k: int, relu: bool = True) -> tuple[Array, NDArray[np.int64], NDArray[np.int64]]:
    """Values, columns and number in each row of the k n largest entries, as topk_rows of all rows in one."""
    x = np.asarray(x, dtype=np.float64)
    n, columns = x.shape
    places = np.sort(topk_rows(x.reshape(1, -1), k * n)[1][0])
    values = x.reshape(-1)[places]
    counts = np.bincount(places // columns, minlength=n)
    return np.where(values <= 0, 0, values) if relu else values, places % columns, counts


def jumprelu(x: ArrayLike, threshold: ArrayLike, bandwidth: float = 0.001) -> Array:
    """JumpReLU, equation (3)."""
    x, limits = np.asarray(x, dtype=np.float64), np.asarray(threshold, dtype=np.float64)[..., None, :]
    return x * (x > limits)


def jumprelu_gradient(g: ArrayLike, x: ArrayLike, threshold: ArrayLike, bandwidth: float) -> tuple[Array, Array]:
    """JumpReLU, equation (11) with the rectangle of width 1 for its kernel K."""
    x, g, limits = np.asarray(x, dtype=np.float64), np.asarray(g), np.asarray(threshold, dtype=np.float64)
    rectangle = np.abs((x - limits[..., None, :]) / bandwidth) < 0.5
    return g * (x > limits[..., None, :]), -limits / bandwidth * (rectangle * g).sum(-2)


def soft_threshold(x: ArrayLike, threshold: ArrayLike) -> Array:
    """FLOPS, section 5: relu(x - t) - relu(-x - t)."""
    x, limits = np.asarray(x, dtype=np.float64), np.asarray(threshold, dtype=np.float64)[..., None, :]
    return np.maximum(x - limits, 0) - np.maximum(-x - limits, 0)


# --- products with sparse rows, given by values (*batch, n, k) and columns ---


def gathered(W: ArrayLike, indices: ArrayLike) -> Array:
    """The row of W of every entry, (*batch, n, k, D)."""
    W, indices = np.asarray(W, dtype=np.float64), np.asarray(indices)
    batch = np.broadcast_shapes(W.shape[:-2], indices.shape[:-2])
    W, indices = np.broadcast_to(W, batch + W.shape[-2:]), np.broadcast_to(indices, batch + indices.shape[-2:])
    rows = np.zeros((*indices.shape, W.shape[-1]))
    for item in np.ndindex(batch):
        rows[item] = W[item][indices[item]]
    return rows


def sparse_decode(values: ArrayLike, indices: ArrayLike, W: ArrayLike, bias: ArrayLike | None = None) -> Array:
    """sum_m S_im W_m + b."""
    result = (np.asarray(values, dtype=np.float64)[..., None] * gathered(W, indices)).sum(-2)
    return np.asarray(result if bias is None else result + np.asarray(bias, dtype=np.float64)[..., None, :])


def sddmm(G: ArrayLike, W: ArrayLike, indices: ArrayLike) -> Array:
    """G_i . W_m of every entry (i, m)."""
    return np.asarray((np.asarray(G, dtype=np.float64)[..., None, :] * gathered(W, indices)).sum(-1))


def sparse_t_dense(values: ArrayLike, indices: ArrayLike, G: ArrayLike, columns: int) -> Array:
    """sum_i S_im G_i."""
    values, indices, G = np.asarray(values, dtype=np.float64), np.asarray(indices), np.asarray(G, dtype=np.float64)
    batch = np.broadcast_shapes(values.shape[:-2], G.shape[:-2])
    values, indices = (np.broadcast_to(a, batch + a.shape[-2:]) for a in (values, indices))
    products = values[..., None] * G[..., None, :]
    result = np.zeros((*batch, columns, G.shape[-1]))
    for item in np.ndindex(batch):
        np.add.at(result[item], indices[item], products[item])
    return result


def dense_rows(indices: ArrayLike, values: ArrayLike, columns: int, offsets: ArrayLike | None = None) -> Array:
    """The matrix of sparse rows, entry by entry; with offsets those of CSR."""
    indices, values = np.asarray(indices), np.asarray(values, dtype=np.float64)
    if offsets is not None:
        ends = np.asarray(offsets)
        dense = np.zeros((len(ends) - 1, columns))
        rows = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
        np.add.at(dense, (rows, indices), values)
        return dense
    dense = np.zeros((*values.shape[:-1], columns))
    for place in np.ndindex(values.shape):
        dense[place[:-1]][indices[place]] += values[place]
    return dense


def matching_pursuit(
    x: ArrayLike, W: ArrayLike, steps: int, by: str = "value", relu: bool = True
) -> tuple[Array, Array, NDArray[np.int64]]:
    """PURSUIT, section II.B: coefficients, last residual and atoms of every row, the residual formed anew each step."""
    residual, atoms = np.asarray(x, dtype=np.float64), np.asarray(W, dtype=np.float64)
    values, indices = [], []
    for _ in range(steps):
        products = residual @ atoms.swapaxes(-1, -2)
        index = (np.abs(products) if by == "abs" else products).argmax(-1)
        value = np.take_along_axis(products, index[..., None], -1)[..., 0]
        value = np.maximum(value, 0) if relu else value
        shape = np.broadcast_shapes(atoms.shape[:-2], residual.shape[:-2])
        chosen = np.take_along_axis(np.broadcast_to(atoms, (*shape, *atoms.shape[-2:])), index[..., None], -2)
        residual = residual - value[..., None] * chosen
        values.append(value)
        indices.append(index)
    return np.stack(values, -1), residual, np.stack(indices, -1)
