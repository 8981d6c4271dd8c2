"""Small decompositions at the ends of the range: extreme scales, gradings, partial SIMD groups, subspaces."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

import subspan
from angle_cases import DOUBLE, largest, orthogonal, unit
from sample_arrays import normal

REAL = pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
SHAPES = pytest.mark.parametrize(
    "shape",
    [(1, 1), (1, 5), (5, 1), (2, 2), (3, 3), (4, 7), (7, 4), (8, 8), (17, 17), (40, 12), (16, 64), (32, 32), (45, 45)],
    ids=str,
)
RATIO = 30  # LAPACK's own tests pass below it


def with_values(seed: int, m: int, n: int, values: Tensor) -> Tensor:
    k = min(m, n)
    return orthogonal(seed, m)[:, :k] * values @ orthogonal(seed + 1, n)[:, :k].mT


def matrices(m: int, n: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """One of every kind, all of them representable in the type."""
    k = min(m, n)
    ones, ramp = torch.ones(k, dtype=DOUBLE), torch.arange(k, dtype=DOUBLE)
    noise = normal(1, m, n)
    huge, tiny = (1e300, 1e-290) if dtype == DOUBLE else (1e36, 1e-32)
    kinds = {
        "normal": noise,
        "zero": 0 * noise,
        "identity": torch.eye(m, n, dtype=DOUBLE),
        "orthogonal": with_values(2, m, n, ones),
        "two clusters": with_values(3, m, n, torch.where(ramp < k / 2, 2.0, 0.5)),
        "tight cluster": with_values(4, m, n, 1 + unit(dtype) * ramp),
        "graded": with_values(5, m, n, torch.logspace(0, -15, k, dtype=DOUBLE)),
        "graded columns": noise * torch.logspace(0, -25, n, dtype=DOUBLE),
        "graded rows": noise * torch.logspace(-25, 0, m, dtype=DOUBLE)[:, None],
        "rank one": noise[:, :1] @ noise[:1],
        "half the rank": noise[:, : (k + 1) // 2] @ noise[: (k + 1) // 2],
        "one entry": torch.zeros_like(noise).index_put_(
            (torch.tensor(m - 1), torch.tensor(n - 1)), torch.tensor(3.0).double()
        ),
        "unsorted diagonal": torch.diag_embed(1 + ramp)[:k, :k].new_zeros(m, n).diagonal_scatter(1 + ramp),
        "equal columns": noise[:, :1].expand(m, n).clone(),
        "zero column": noise * (torch.arange(n) != n // 2),
        "huge": noise * huge,
        "tiny": noise * tiny,
        "huge and tiny": noise * torch.logspace(math.log10(huge), math.log10(tiny), n, dtype=DOUBLE),
        "signs": noise.sign(),
    }
    return {name: matrix.to(dtype) for name, matrix in kinds.items()}


def norm(M: Tensor) -> Tensor:
    """Frobenius, in float64, without overflow."""
    M = M.double()
    size = M.abs().amax((-2, -1)).clamp(min=5e-324) if M.numel() else M.new_ones(M.shape[:-2])
    return size * (M / size[..., None, None]).square().sum((-2, -1)).sqrt()


def orthonormality(Q: Tensor) -> float:
    """Of columns, in units of LAPACK's test."""
    Q = Q.double()
    return largest(norm(Q.mT @ Q - torch.eye(Q.shape[-1], dtype=DOUBLE)))


# --- residuals --------------------------------------------------------------------------------------------------------


@REAL
@SHAPES
def test_singular_values_and_vectors(shape: tuple[int, int], dtype: torch.dtype) -> None:
    kinds = matrices(*shape, dtype)
    M = torch.stack(list(kinds.values()))
    U, s, Vh, info = subspan.small_svd(M, return_info=True)
    assert (info == 0).all()
    assert (s[..., :-1] >= s[..., 1:]).all() and (s >= 0).all()
    allowed = RATIO * max(shape) * unit(dtype)
    assert orthonormality(U) <= allowed and orthonormality(Vh.mT) <= allowed
    for i, name in enumerate(kinds):
        size = norm(M[i]).item()
        scale = size if size > 0 else 1.0
        error = norm((M[i].double() / scale) - U[i].double() * (s[i].double() / scale) @ Vh[i].double()).item()
        assert error <= allowed, name
        exact = np.linalg.svd(M[i].double().numpy() / scale, compute_uv=False)
        assert np.abs(s[i].double().numpy() / scale - exact).max() <= allowed, name
    values, info = subspan.small_svdvals(M, return_info=True)
    assert (info == 0).all()
    size = norm(M).clamp(min=5e-324)[:, None]
    assert largest((values - s).double() / size) <= allowed


@REAL
@SHAPES
def test_eigenvalues_and_vectors(shape: tuple[int, int], dtype: torch.dtype) -> None:
    n = shape[0]
    kinds = {
        name: (matrix.double() / 2 + matrix.double().mT / 2).to(dtype) for name, matrix in matrices(n, n, dtype).items()
    }
    kinds["negative"] = -torch.eye(n, dtype=dtype)
    kinds["Gram"] = (normal(9, n, 2 * n) @ normal(9, n, 2 * n).mT).to(dtype)
    A = torch.stack(list(kinds.values()))
    values, Q, info = subspan.small_eigh(A, return_info=True)
    assert (info == 0).all()
    assert (values[..., :-1] <= values[..., 1:]).all()
    allowed = RATIO * n * unit(dtype)
    assert orthonormality(Q) <= allowed
    for i, name in enumerate(kinds):
        size = norm(A[i]).item()
        scale = size if size > 0 else 1.0
        scaled = A[i].double() / scale
        error = norm(scaled @ Q[i].double() - Q[i].double() * (values[i].double() / scale)).item()
        assert error <= allowed, name
        assert np.abs(values[i].double().numpy() / scale - np.linalg.eigvalsh(scaled.numpy())).max() <= allowed, name


def test_graded_matrices_keep_small_values() -> None:
    """One-sided rotations are accurate for each singular value where columns are graded, by the condition of the
    matrix of unit columns (Demmel and Veselic 1992)."""
    columns = normal(2, 6, 20, 8)
    columns = columns / columns.norm(dim=-2, keepdim=True)
    scales = torch.logspace(0, -30, 8, dtype=DOUBLE)
    got = subspan.small_svdvals(columns * scales)
    R = torch.linalg.qr(columns * scales).R
    # From the product of the values, and from the values of the inverse.
    volume = R.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    torch.testing.assert_close(got.log().sum(-1), volume, rtol=1e-13, atol=0)
    smallest = 1 / torch.linalg.svdvals(torch.linalg.solve_triangular(R, torch.eye(8, dtype=DOUBLE), upper=True))[:, 0]
    torch.testing.assert_close(got[:, -1], smallest, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(0, 3, 3), (4, 0, 3), (4, 3, 0), (0, 0), (2, 0, 0)], ids=str)
def test_empty(shape: tuple[int, ...]) -> None:
    M = torch.ones(shape, dtype=DOUBLE, requires_grad=True)
    *batch, m, n = shape
    k = min(m, n)
    U, s, Vh, info = subspan.small_svd(M, return_info=True)
    assert U.shape == (*batch, m, k) and s.shape == (*batch, k) and Vh.shape == (*batch, k, n)
    assert info.shape == tuple(batch)
    assert subspan.small_svdvals(M).shape == (*batch, k)
    (gradient,) = torch.autograd.grad(U.sum() + s.sum() + Vh.sum() + subspan.small_svdvals(M).sum(), M)
    assert gradient.shape == shape
    if m == n:
        values, Q = subspan.small_eigh(M)
        assert values.shape == (*batch, n) and Q.shape == (*batch, n, n)
        assert torch.autograd.grad(values.sum() + Q.sum(), M)[0].shape == shape


# --- independence -----------------------------------------------------------------------------------------------------

DECOMPOSITIONS: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "small_svd": subspan.small_svd,
    "small_svdvals": lambda M: (subspan.small_svdvals(M),),
    "small_eigh": subspan.small_eigh,
}
every_decomposition = pytest.mark.parametrize("decompose", DECOMPOSITIONS.values(), ids=DECOMPOSITIONS.keys())


@every_decomposition
@REAL
@pytest.mark.parametrize("count", range(1, 18))
def test_neighbours_change_nothing(
    decompose: Callable[..., tuple[Tensor, ...]], dtype: torch.dtype, count: int
) -> None:
    """Items share SIMD lanes and stop together, yet each is as it is alone, to the bit, for full and partial groups."""
    kinds = list(matrices(5, 5, dtype).values())
    M = torch.stack([kinds[(7 * i) % len(kinds)] for i in range(count)])
    together = decompose(M)
    for i in range(count):
        for whole, alone in zip(together, decompose(M[i]), strict=True):
            assert torch.equal(whole[i], alone), i


# --- derivatives ------------------------------------------------------------------------------------------------------


def repeated(m: int = 4, n: int = 4) -> dict[str, Tensor]:
    return {
        "identity": torch.eye(m, n, dtype=DOUBLE),
        "orthogonal": with_values(8, m, n, torch.full((min(m, n),), 3.0, dtype=DOUBLE)),
        "two pairs": with_values(9, m, n, torch.tensor([2.0, 2.0, 0.5, 0.5], dtype=DOUBLE)[: min(m, n)]),
        "a pair": with_values(10, m, n, torch.tensor([2.0, 2.0, 1.0, 0.3], dtype=DOUBLE)[: min(m, n)]),
    }


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 5)], ids=str)
def test_repeated_singular_values(shape: tuple[int, int]) -> None:
    """Smooth functions of the matrix that depend on the values, and on bases of whole singular subspaces."""

    def polar(M: Tensor) -> Tensor:
        U, _, Vh = subspan.small_svd(M)
        return U @ Vh

    def of_two(M: Tensor) -> tuple[Tensor, ...]:
        U, _, Vh = subspan.small_svd(M)
        first, second = U[..., :2], Vh[..., :2, :]
        return first @ first.mT, second.mT @ second, first @ second

    for name, M in repeated(*shape).items():
        M = M.requires_grad_()
        U, s, Vh = subspan.small_svd(M)
        (gradient,) = torch.autograd.grad(s.square().sum(), M, retain_graph=True)
        assert largest(gradient - 2 * M) <= 1e-14 * 10, name
        for values in (s, subspan.small_svdvals(M)):
            (gradient,) = torch.autograd.grad(values.log().sum(), M, retain_graph=True)
            assert largest(gradient - torch.linalg.pinv(M).mT) <= 1e-13, name
            (gradient,) = torch.autograd.grad(values.sum(), M, retain_graph=True)
            assert largest(gradient - U @ Vh) <= 1e-14 * 10, name
        assert gradcheck(polar, M), name
        if name in ("two pairs", "a pair") and min(shape) > 2:
            assert gradcheck(of_two, M), name


def test_repeated_eigenvalues() -> None:
    Q = orthogonal(11, 4)
    for values in ((2.0, 2.0, 2.0, 2.0), (1.0, 1.0, 3.0, 3.0), (-1.0, -1.0, 0.0, 2.0)):
        A = (Q * torch.tensor(values, dtype=DOUBLE)) @ Q.mT
        A = ((A + A.mT) / 2).requires_grad_()
        found, _ = subspan.small_eigh(A)
        (gradient,) = torch.autograd.grad(found.pow(3).sum(), A)
        assert largest(gradient - 3 * A @ A) <= 1e-13
        (gradient,) = torch.autograd.grad(subspan.small_eigh(A)[0].exp().sum(), A)
        assert largest(gradient - torch.linalg.matrix_exp(A)) <= 1e-12
        if values[0] == values[1] != values[2]:

            def projection(A: Tensor) -> Tensor:
                lower = subspan.small_eigh((A + A.mT) / 2)[1][:, :2]
                return lower @ lower.mT

            assert gradcheck(projection, A)


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 5)], ids=str)
def test_gradients_are_finite(shape: tuple[int, int]) -> None:
    """For every kind of matrix and any upstream gradient, by both ways that backward may take."""
    kinds = matrices(*shape, DOUBLE)
    for name in ("huge", "tiny", "huge and tiny"):
        kinds[name] = kinds[name].sign() * kinds[name].abs() ** 0.5  # derivatives are as large as 1 / s
    for name, M in (kinds | repeated(*shape)).items():
        for graph in (False, True):
            M = M.detach().clone().requires_grad_()
            outputs = [*subspan.small_svd(M), subspan.small_svdvals(M)]
            if shape[0] == shape[1]:
                outputs += subspan.small_eigh(M)
            total = sum((torch.cos(torch.arange(o.numel())).reshape(o.shape) * o).sum() for o in outputs)
            (gradient,) = torch.autograd.grad(total, M, create_graph=graph)
            assert gradient.isfinite().all(), (name, graph)
