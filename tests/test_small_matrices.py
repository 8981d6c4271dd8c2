"""small_svd and small_eigh: residuals and orthonormality in units of rounding, as LAPACK's own tests measure them, and
gradients of functions that do not depend on which vectors were returned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import subspan
from op_row import same, within
from sample_arrays import normal

#: LAPACK's tests pass below 30.
UNITS = 30
DOUBLE = torch.float64


def matrices(m: int, n: int) -> dict[str, torch.Tensor]:
    """Where singular vectors are delicate: equal, vanishing, clustered and graded singular values, and both scales."""
    general = normal(m + 100 * n, m, n)
    k = min(m, n)
    left, right = torch.linalg.qr(normal(1, m, k)).Q, torch.linalg.qr(normal(2, n, k)).Q
    clustered = 1 + 1e-9 * torch.arange(k, dtype=DOUBLE)
    return {
        "general": general,
        "zero": torch.zeros(m, n, dtype=DOUBLE),
        "identity": torch.eye(m, n, dtype=DOUBLE),
        "rank one": general[:, :1] @ normal(3, 1, n),
        "equal": left @ right.mT,
        "clustered": left * clustered @ right.mT,
        "graded": left * 10.0 ** -torch.arange(k, dtype=DOUBLE) @ right.mT,
        "zero row": general * (torch.arange(m) > 0)[:, None],
        "zero column": general * (torch.arange(n) > 0),
        "ones": torch.ones(m, n, dtype=DOUBLE),
        "tiny": general * 1e-35,
        "huge": general * 1e35,
    }


def units(error: torch.Tensor, scale: Any, dtype: torch.dtype, size: int) -> float:
    """Largest entry in units of rounding of the scale."""
    scale = torch.as_tensor(scale).double().clamp(min=1e-300)
    return float((error.double().abs().amax((-2, -1)) / scale).max()) / torch.finfo(dtype).eps / max(size, 1)


SIZES = [
    (1, 1),
    (1, 5),
    (5, 1),
    (2, 2),
    (3, 3),
    (7, 4),
    (4, 7),
    (8, 8),
    (16, 16),
    (17, 33),
    (33, 17),
    (32, 32),
    (40, 40),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("m", "n"), SIZES)
def test_singular_value_decomposition(m: int, n: int, dtype: torch.dtype) -> None:
    M = torch.stack(list(matrices(m, n).values())).to(dtype)
    U, s, Vh, info = subspan.small_svd(M, return_info=True)
    k = min(m, n)
    assert (U.shape, s.shape, Vh.shape) == ((len(M), m, k), (len(M), k), (len(M), k, n))
    assert U.dtype == s.dtype == Vh.dtype == dtype
    assert not info.any()
    assert (s[:, :-1] >= s[:, 1:]).all() and (s >= 0).all()
    eye, wide, largest = torch.eye(k, dtype=DOUBLE), M.double(), s[:, 0].double()
    rebuilt = U.double() * s.double()[:, None] @ Vh.double()
    assert units(rebuilt - wide, largest, dtype, m + n) < UNITS
    assert units(U.double().mT @ U.double() - eye, torch.ones(len(M)), dtype, m) < UNITS
    assert units(Vh.double() @ Vh.double().mT - eye, torch.ones(len(M)), dtype, n) < UNITS
    exact = torch.linalg.svdvals(wide)
    assert units((s.double() - exact)[:, None], exact[:, 0], dtype, m + n) < UNITS


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 16, 17, 32, 40])
def test_eigen_decomposition(n: int, dtype: torch.dtype) -> None:
    M = torch.stack(list(matrices(n, n).values()))
    A = torch.cat([M + M.mT, M @ M.mT / M.abs().amax((-2, -1), keepdim=True).clamp(min=1e-300)]).to(dtype)
    values, vectors, info = subspan.small_eigh(A, return_info=True)
    assert values.dtype == vectors.dtype == dtype
    assert not info.any()
    assert (values[:, :-1] <= values[:, 1:]).all()
    eye, wide, largest = torch.eye(n, dtype=DOUBLE), A.double(), values.double().abs().amax(-1)
    rebuilt = vectors.double() * values.double()[:, None] @ vectors.double().mT
    assert units(rebuilt - wide, largest, dtype, 2 * n) < UNITS
    assert units(vectors.double().mT @ vectors.double() - eye, torch.ones(len(A)), dtype, n) < UNITS
    exact = torch.linalg.eigvalsh(wide)
    assert units((values.double() - exact)[:, None], exact.abs().amax(-1), dtype, 2 * n) < UNITS


def test_only_the_lower_triangle_is_read() -> None:
    A = normal(1, 6, 5, 5)
    upper = torch.full_like(A, torch.nan).triu(1)
    for part, expected in zip(subspan.small_eigh(A.tril() + upper), subspan.small_eigh(A.tril()), strict=True):
        same(part, expected, "lower triangle")


FUNCTIONS: dict[str, tuple[Callable[..., Any], int]] = {"svd": (subspan.small_svd, 5), "eigh": (subspan.small_eigh, 4)}
each_function = pytest.mark.parametrize(("function", "columns"), FUNCTIONS.values(), ids=FUNCTIONS.keys())


@each_function
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_neighbours_and_threads_do_not_matter(function: Any, columns: int, dtype: torch.dtype) -> None:
    M = normal(1, 37, 4, columns, dtype=dtype)
    together = function(M)
    spoiled = M.clone()
    spoiled[::3, 1, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf] * 5)[:13]
    for i in (0, 5, 16, 36):
        for part, alone in zip(together, function(M[i]), strict=True):
            same(part[i], alone, f"item {i}")
    for part, beside in zip(together, function(spoiled), strict=True):
        assert beside[::3].isnan().all()
        keep = torch.arange(37) % 3 != 0
        same(part[keep], beside[keep], "beside items that are not finite")
    torch.set_num_threads(1)
    for part, single in zip(together, function(M), strict=True):
        same(part, single, "one thread")


@each_function
def test_arrays_types_and_layouts(function: Any, columns: int) -> None:
    M = normal(1, 6, 4, columns)
    expected = function(M)
    for part, other in zip(expected, function(M.numpy()), strict=True):
        assert isinstance(other, np.ndarray)
        same(part, other, "NumPy")
    transposed = M.mT.contiguous().mT
    stepped = torch.zeros(12, 4, 2 * columns, dtype=DOUBLE)[::2, :, ::2].copy_(M)
    for layout in (transposed, stepped):
        for part, other in zip(expected, function(layout), strict=True):
            same(part, other, "layout")
    for dtype in (torch.float16, torch.bfloat16):
        for part, other in zip(function(M.to(dtype).float()), function(M.to(dtype)), strict=True):
            same(part, other, "half type")
    for part in function(M[:0]):
        assert part.shape[0] == 0


def gradient_of(function: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> torch.Tensor:
    at = at.clone().requires_grad_()
    return torch.autograd.grad(function(at).sum(), at)[0]


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5)], ids=str)
def test_gradients_at_simple_values(shape: tuple[int, int]) -> None:
    M = normal(4, 2, *shape).requires_grad_()

    def parts(M: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Free of the signs of vectors."""
        U, s, Vh = subspan.small_svd(M)
        return U**2, s, Vh**2, U[..., :1] @ Vh[..., :1, :]

    assert torch.autograd.gradcheck(parts, M)
    assert torch.autograd.gradgradcheck(parts, M)


def test_gradients_of_eigenvectors_at_simple_values() -> None:
    A = normal(5, 2, 4, 4).requires_grad_()

    def parts(A: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values, vectors = subspan.small_eigh(A + A.mT)
        return values, vectors**2

    assert torch.autograd.gradcheck(parts, A)
    assert torch.autograd.gradgradcheck(parts, A)


@pytest.mark.parametrize("name", ["equal", "identity", "zero", "rank one", "clustered"])
@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 6)], ids=str)
def test_gradients_at_equal_values(name: str, shape: tuple[int, int]) -> None:
    """Finite; and exact for functions of the values as a set, and of U V^T."""
    M, weights = matrices(*shape)[name], normal(9, *shape)
    within(gradient_of(lambda M: subspan.small_svd(M)[1] ** 2, M), 2 * M, 1e-14, "sum of squares")
    within(gradient_of(lambda M: subspan.small_svdvals(M) ** 2, M), 2 * M, 1e-14, "sum of squares of values alone")
    everything = gradient_of(lambda M: torch.cat([part.flatten() for part in subspan.small_svd(M)]), M)
    assert everything.isfinite().all()
    if name in ("zero", "rank one"):  # directions of zeros are not determined
        return

    def polar(M: torch.Tensor) -> torch.Tensor:
        U, _, Vh = subspan.small_svd(M)
        return U @ Vh * weights

    step, differences = 1e-5, torch.zeros_like(M)
    for i, j in np.ndindex(M.shape):
        moved = torch.zeros_like(M)
        moved[i, j] = step
        differences[i, j] = (polar(M + moved).sum() - polar(M - moved).sum()) / (2 * step)
    gap = 1e-9 if name == "clustered" else 1  # which vectors' roundings are divided by
    within(gradient_of(polar, M), differences, 1e-8 + 1e-15 / gap, "polar factor")


def test_gradients_of_functions_of_equal_eigenvalues() -> None:
    Q = torch.linalg.qr(normal(1, 5, 5)).Q
    A = Q * torch.tensor([1.0, 1.0, 2.0, 2.0, 2.0], dtype=DOUBLE) @ Q.mT
    within(gradient_of(lambda A: subspan.small_eigh(A)[0] ** 3, A), 3 * A @ A, 1e-13, "trace of the cube")
    within(gradient_of(lambda A: subspan.small_eigh(A)[0], A), torch.eye(5), 1e-14, "trace")


# Dynamo instantiates every autograd.Function that it traces, inductor uses torch.jit.
@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated:DeprecationWarning")
@each_function
def test_transforms(function: Any, columns: int) -> None:
    M = normal(1, 3, 4, columns)

    def total(M: torch.Tensor) -> torch.Tensor:
        return sum((part**2).sum() for part in function(M))

    expected = gradient_of(total, M)
    compiled = torch.compile(total, fullgraph=True)
    within(gradient_of(compiled, M), expected, 1e-12, "compiled")
    within(torch.func.vmap(torch.func.grad(total))(M), expected, 1e-12, "mapped")
    with torch.autocast("cpu"):
        within(gradient_of(total, M), expected, 1e-12, "autocast")


@each_function
@pytest.mark.parametrize(
    ("argument", "error"),
    [
        (torch.ones(4), ValueError),
        (torch.ones(4, 4).int(), TypeError),
        (torch.ones(4, 4).to_sparse(), TypeError),
        ([[1.0]], TypeError),
    ],
    ids=["vector", "integers", "sparse", "list"],
)
def test_wrong_arrays(function: Any, columns: int, argument: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^{function.__name__}: [MA]: expected "):
        function(argument)


def test_not_square() -> None:
    with pytest.raises(ValueError, match=r"^small_eigh: A: expected square matrices .* got shape \(4, 5\)"):
        subspan.small_eigh(torch.ones(4, 5))
