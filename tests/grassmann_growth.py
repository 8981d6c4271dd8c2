"""Growth of rounding errors of the maps of the Grassmann manifold, from the norms of the factors of each product.

The functions of G = D^T D have bounded derivatives: |cos'| <= 1/2, |sinc'| <= 1/6 as functions of G, |cos''| <= 1/12,
|sinc''| <= 1/60; of the versine (1 - cos) / G the value is at most 1/2, |versine'| <= 1/24, |versine''| <= 1/360. An
error of G is at most of the size of gamma = ||D||_F^2.
"""

from __future__ import annotations

import numpy as np

from op_row import Bounds


def columns(basis: np.ndarray, layout: str) -> np.ndarray:
    return basis.T if layout == "rows" else basis


def row_norms(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.norm(matrix, axis=1, keepdims=True)


def exp_growth(X: np.ndarray, D: np.ndarray, project: bool = False, layout: str = "columns") -> Bounds:
    x, given = columns(X, layout), columns(D, layout)
    n, k = x.shape
    ones, size = np.ones((k, k)), np.abs(x)
    of_tangent = np.abs(given)  # error of what is used as D
    d = given
    if project:
        of_tangent = of_tangent + size @ (size.T @ np.abs(given))
        d = given - x @ (x.T @ given)
    gamma = np.linalg.norm(d) ** 2 + 2 * np.linalg.norm(d) * np.linalg.norm(of_tangent) * project
    value = size @ ones + of_tangent @ ones + row_norms(x) * gamma / 2 + row_norms(d) * gamma / 6
    g = np.ones_like(x)
    with_x, with_d = np.linalg.norm(size.T @ g), np.linalg.norm(of_tangent.T @ g)
    of_gram = (with_x / 2 + with_d / 6) + gamma * (with_x / 12 + with_d / 60)
    d_x = row_norms(g) * (1 + gamma / 2) * np.ones_like(x)
    d_d = row_norms(g) * (1 + gamma / 6) + 2 * (row_norms(d) + row_norms(of_tangent)) * of_gram * np.ones_like(x)
    if project:
        along = size.T @ d_d
        d_x = d_x + d_d @ (size.T @ np.abs(given)).T + np.abs(given) @ along.T
        d_d = d_d + size @ along
    outputs = columns(value, layout)
    return Bounds(n + 4 * k + 8, (outputs,), {"X": columns(d_x, layout), "D": columns(d_d, layout)})


def transport_growth(X: np.ndarray, D: np.ndarray, V: np.ndarray, layout: str = "columns") -> Bounds:
    x, d, v = (columns(array, layout) for array in (X, D, V))
    n, k = x.shape
    ones, g = np.ones((k, k)), np.ones_like(x)
    gamma, H = np.linalg.norm(d) ** 2, np.linalg.norm(np.abs(d).T @ np.abs(v))
    with_d, with_x = np.linalg.norm(np.abs(d).T @ g), np.linalg.norm(np.abs(x).T @ g)
    sine, versine = 1 + gamma / 6, 1 / 2 + gamma / 24  # with their errors
    value = np.abs(v) + (row_norms(d) * versine + row_norms(x) * sine) * H
    J = versine * with_d + sine * with_x
    K = (with_d * (1 / 24 + gamma / 360) + with_x * (1 / 6 + gamma / 60)) * H
    d_x = row_norms(g) * sine * H * g
    d_d = (row_norms(v) * J + row_norms(g) * versine * H + 2 * row_norms(d) * K) * g
    d_v = g @ ones + row_norms(d) * J
    gradients = {"X": d_x, "D": d_d, "V": d_v}
    return Bounds(
        n + 6 * k + 8,
        (columns(value, layout),),
        {name: columns(gradient, layout) for name, gradient in gradients.items()},
    )
