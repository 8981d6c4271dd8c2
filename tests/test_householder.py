"""Products of Householder reflectors: what they promise beyond the op table."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

import subspan
from subspan.composite import householder as composite
from subspan.reference import householder as reference

DOUBLE = torch.float64
REAL = [torch.float32, DOUBLE]


def normal(seed: int, *shape: int, dtype: torch.dtype = DOUBLE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def deviation(Q: torch.Tensor) -> float:
    """||Q^T Q - I||_2, from sums in extended precision: those of float64 would add as much."""
    bases = Q.double().numpy().astype(np.longdouble)
    gram = np.einsum("...ji,...jk->...ik", bases, bases) - np.eye(Q.shape[-1])
    return float(np.linalg.norm(gram.astype(np.float64), 2, axis=(-2, -1)).max())


# --- the product ---


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("shape", [(3, 2048, 8), (200, 200), (300, 31), (64, 65), (20, 1)], ids=str)
def test_columns_are_orthonormal_to_rounding(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The bound for k reflectors is c k eps; errors of random signs add up as the root of k. LAPACK's reflectors, which
    are unit triangular and not random, err by about 1.5 sqrt(k) eps."""
    Q = subspan.householder_product(normal(1, *shape, dtype=dtype))
    assert deviation(Q) < 4 * shape[-1] ** 0.5 * torch.finfo(dtype).eps


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e12])
def test_length_of_reflectors_does_not_matter(scale: float) -> None:
    """Not in float32 either, whose squares would leave its range."""
    V = normal(1, 40, 35, dtype=torch.float32)
    V[:, ::3] *= scale
    Q, expected = subspan.householder_product(V), reference.householder_product(V.numpy())
    assert deviation(Q) < 20 * torch.finfo(torch.float32).eps
    np.testing.assert_allclose(Q.numpy(), expected, atol=1e-5)
    V.requires_grad_()
    subspan.householder_product(V).square().cos().sum().backward()
    small, other = V.grad[:, ::3] * scale, V.grad[:, 1::3]
    assert small.isfinite().all() and 1e-2 < small.norm() / other.norm() < 1e2


@pytest.mark.parametrize("free", [False, True], ids=["default tau", "LAPACK's tau"])
def test_lapack_is_what_torch_computes(free: bool) -> None:
    A, tau = torch.geqrf(normal(1, 3, 50, 40))
    if not free:
        unit = A.tril(-1) + torch.eye(50, 40, dtype=DOUBLE)
        tau = 2 / unit.square().sum(-2)
    expected = torch.linalg.householder_product(A, tau)
    Q = subspan.householder_product(A, tau if free else None, lapack=True)
    torch.testing.assert_close(Q, expected, rtol=0, atol=50 * 2.0**-52)
    rows = subspan.householder_product(A.mT, tau if free else None, lapack=True, layout="rows")
    torch.testing.assert_close(rows.mT, expected, rtol=0, atol=50 * 2.0**-52)


def test_lapack_reads_nothing_above_the_ones() -> None:
    A, tau = torch.geqrf(normal(1, 40, 35))
    filled = torch.where(torch.ones(40, 35).triu().bool(), torch.nan, A).requires_grad_()
    Q = subspan.householder_product(filled, tau, lapack=True)
    assert torch.equal(Q, subspan.householder_product(A, tau, lapack=True))
    (gradient,) = torch.autograd.grad(Q.sum(), filled)
    assert gradient.isfinite().all() and not gradient.triu().any() and gradient.tril(-1).any()


@pytest.mark.parametrize("zeros", [0, 1, 4])
@pytest.mark.parametrize("count", [5, 40])
def test_sign_of_the_determinant_counts_the_reflectors(count: int, zeros: int) -> None:
    V = normal(1, 40, count)
    V[:, 1 : 1 + zeros] = 0
    Q = subspan.householder_product(V, columns=40)
    assert np.linalg.det(Q.numpy()) == pytest.approx((-1) ** (count - zeros), abs=1e-10)


def test_no_columns_are_missing() -> None:
    V = normal(1, 20, 6)
    full = subspan.householder_product(V, columns=20)
    for columns in (1, 6, 13):
        assert torch.equal(subspan.householder_product(V, columns=columns), full[:, :columns].contiguous())


# --- applying ---


def test_apply_is_the_product_in_every_direction() -> None:
    V, X, tau = normal(1, 30, 37), normal(2, 30, 8), normal(3, 37) / 30
    for given in (None, tau):
        Q = subspan.householder_product(V, given, columns=30)
        for transpose in (False, True):
            M = Q.mT if transpose else Q
            left = subspan.householder_apply(V, X, given, transpose=transpose)
            right = subspan.householder_apply(V, X.mT, given, transpose=transpose, side="right")
            size = M.abs().max().item() * 30
            torch.testing.assert_close(left, M @ X, rtol=0, atol=size * 1e-14)
            torch.testing.assert_close(right, X.mT @ M, rtol=0, atol=size * 1e-14)


def test_transpose_takes_back() -> None:
    V, X = normal(1, 3, 64, 70), normal(2, 3, 64, 9)
    there = subspan.householder_apply(V, X)
    torch.testing.assert_close(subspan.householder_apply(V, there, transpose=True), X, rtol=0, atol=1e-13)
    assert (there - X).abs().max() > 0.1


def test_tau_of_the_default() -> None:
    V, X = normal(1, 25, 40), normal(2, 25, 3)
    tau = 2 / V.square().sum(-2)
    torch.testing.assert_close(
        subspan.householder_apply(V, X, tau), subspan.householder_apply(V, X), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("count", [3, 40])
def test_a_reflector_of_zeros_is_the_identity(dtype: torch.dtype, count: int) -> None:
    V, X = normal(1, 24, count, dtype=dtype), normal(2, 24, 5, dtype=dtype)
    V[:, 1] = 0
    V.requires_grad_()
    Y = subspan.householder_apply(V, X)
    without = torch.cat([V[:, :1], V[:, 2:]], -1).detach()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(Y.detach(), subspan.householder_apply(without, X), rtol=0, atol=40 * eps)
    (gradient,) = torch.autograd.grad(Y.square().cos().sum(), V, create_graph=True)
    assert not gradient[:, 1].any() and gradient[:, 0].any() and gradient.isfinite().all()
    (second,) = torch.autograd.grad(gradient.square().sum(), V)
    assert not second[:, 1].any() and second.isfinite().all()


def test_gradients_do_not_see_the_length() -> None:
    """With the default tau v and 2 v are one reflection: the gradient is orthogonal to v."""
    V = normal(1, 30, 36).requires_grad_()
    (gradient,) = torch.autograd.grad(subspan.householder_apply(V, normal(2, 30, 4)).cos().sum(), V)
    along = (gradient * V).sum(0) / (gradient.norm(dim=0) * V.norm(dim=0))
    assert along.abs().max() < 1e-13


@pytest.mark.parametrize("free", [False, True])
def test_composite_is_the_kernel(free: bool) -> None:
    """What runs on devices without a kernel, and its gradient by torch."""
    V, X = normal(1, 2, 20, 35).requires_grad_(), normal(2, 2, 20, 6).requires_grad_()
    tau = (normal(3, 2, 35) / 20).requires_grad_() if free else None
    leaves = [t for t in (V, X, tau) if t is not None]
    for transpose in (False, True):
        ours = subspan.householder_apply(V, X, tau, transpose=transpose)
        (theirs,) = composite.householder_apply(V, X, tau, transpose, False, False)
        size = ours.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13 * size)
        for one, two in zip(
            torch.autograd.grad(ours.sin().sum(), leaves), torch.autograd.grad(theirs.sin().sum(), leaves), strict=True
        ):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-12 * one.abs().max().item())


def test_items_that_share_reflectors_are_rows_of_one_product() -> None:
    V, X = normal(1, 16, 8).requires_grad_(), normal(2, 4, 5, 16)
    Y = subspan.householder_apply(V, X, side="right")
    assert Y.shape == X.shape
    one_by_one = torch.stack([subspan.householder_apply(V, x, side="right") for x in X])
    assert torch.equal(Y, one_by_one)
    (gradient,) = torch.autograd.grad(Y.sin().sum(), V)
    (expected,) = torch.autograd.grad(one_by_one.sin().sum(), V)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_rows_are_read_in_place() -> None:
    """No NumPy copy of V or of the result is made on the way."""
    V = normal(1, 32, 4096, dtype=torch.float32).numpy()
    subspan.householder_product(V, layout="rows")
    tracemalloc.start()
    Q = subspan.householder_product(V, layout="rows")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert Q.nbytes <= peak < 1.1 * Q.nbytes + 1e5


# --- chains of few reflectors, which are worked on by columns ---


def _value_and_gradient(V: torch.Tensor, X: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    V = V.detach().requires_grad_()
    Q = subspan.householder_product(V) if X is None else subspan.householder_apply(V, X)
    return Q.detach(), *torch.autograd.grad(Q.sin().sum(), V)


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("count", [1, 2, 4, 7, 8])
@pytest.mark.parametrize("columns", [None, 5, 19])
def test_few_long_reflectors_do_not_depend_on_layout_and_threads(
    count: int, columns: int | None, dtype: torch.dtype
) -> None:
    """Long enough for several blocks of rows and for a team, and not in whole tiles."""
    length = 33333 // count
    V = normal(1, length, count, dtype=dtype)
    X = None if columns is None else normal(2, length, columns, dtype=dtype)
    expected = _value_and_gradient(V, X)
    wide = V.new_full((length, count + 3), torch.nan)
    wide[:, :count] = V
    sparse = V.new_full((length, 2 * count), torch.nan)
    sparse[:, ::2] = V
    for layout in (wide[:, :count], sparse[:, ::2], V.mT.contiguous().mT):
        for one, other in zip(_value_and_gradient(layout, X), expected, strict=True):
            assert torch.equal(one, other)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for one, other in zip(_value_and_gradient(V, X), expected, strict=True):
            assert torch.equal(one, other)
    exact = _value_and_gradient(V.double(), None if X is None else X.double())
    for one, other in zip(expected, exact, strict=True):
        size = other.abs().max().item()
        torch.testing.assert_close(one.double(), other, rtol=0, atol=200 * torch.finfo(dtype).eps * size)
    if X is None:
        assert deviation(expected[0]) < 4 * count**0.5 * torch.finfo(dtype).eps


def test_few_reflectors_of_half_types_and_rows() -> None:
    V = normal(1, 3, 1000, 6, dtype=torch.float32).to(torch.bfloat16)
    Q = subspan.householder_product(V)
    assert torch.equal(Q, subspan.householder_product(V.float()))
    assert torch.equal(subspan.householder_product(V.mT.contiguous(), layout="rows").mT, Q)


# --- memory ---


def saved_elements(output: torch.Tensor) -> int:
    """Of everything the graph holds for the backward pass, inputs included."""
    node = output.grad_fn
    return sum(t.numel() for t in (*node.saved_tensors, *node.saved) if t is not None)


@pytest.mark.parametrize(("m", "k", "p"), [(512, 200, 64), (300, 300, 300)])
def test_backward_holds_nothing_of_the_size_of_k_results(m: int, k: int, p: int) -> None:
    """V, X, k coefficients for each column, and the triangular factors."""
    V, X = normal(1, m, k, dtype=torch.float32).requires_grad_(), normal(2, m, p, dtype=torch.float32).requires_grad_()
    assert saved_elements(subspan.householder_apply(V, X)) == m * k + m * p + k * p + 34 * k
    product = subspan.householder_product(V, columns=p)
    assert saved_elements(product) == m * k + k * p + 34 * k


RESIDENT = """
import resource, sys, torch, subspan
torch.set_num_threads(2)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
V = torch.randn(4, 4096, 8, requires_grad=True)
subspan.householder_product(V[:, :64]).sum().backward()
before = peak()
subspan.householder_product(V).square().sum().backward()
print(peak() - before, V.numel() * 4)
"""


def test_peak_memory_of_the_backward_pass() -> None:
    """torch.linalg.householder_product takes 550 MB here: m x m matrices. Results, gradients and working memory of
    both threads are less than 16 MB, of the size of 32 arrays V."""
    import subprocess
    import sys

    answer = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True, timeout=300)
    grown, own = (int(word) for word in answer.stdout.split())
    assert grown < 32 * own


# --- vectors of a basis ---


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("shape", [(7, 4), (6, 6), (3, 40, 17), (5, 1), (1, 1), (2, 90, 90)], ids=str)
def test_vectors_have_the_basis_as_their_product(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    Q = torch.linalg.qr(normal(1, *shape)).Q.to(dtype)
    bound = 16 * shape[-1] ** 0.5 * torch.finfo(dtype).eps
    V = subspan.householder_vectors(Q)
    assert V.shape == Q.shape and V.dtype == dtype and not V.triu(1).any()
    torch.testing.assert_close(subspan.householder_product(V), Q, rtol=0, atol=bound)
    as_numpy = subspan.householder_vectors(Q.numpy())
    assert isinstance(as_numpy, np.ndarray)
    np.testing.assert_allclose(as_numpy, V.numpy(), atol=bound)
    rows = subspan.householder_vectors(Q.mT, layout="rows")
    torch.testing.assert_close(rows, V.mT, rtol=0, atol=bound)


def test_vectors_of_bases_that_share_axes() -> None:
    """A column that is an axis, one that is its opposite, and a turn of 1e-9 that 1 - q would lose."""
    axes = torch.eye(5, 3, dtype=DOUBLE)
    V = subspan.householder_vectors(axes)
    assert not V.any() and torch.equal(subspan.householder_product(V), axes)
    signs = axes * torch.tensor([-1.0, 1.0, -1.0]).double()
    torch.testing.assert_close(
        subspan.householder_product(subspan.householder_vectors(signs)), signs, rtol=0, atol=1e-15
    )
    angle = 1e-9
    turned = axes.clone()
    turned[0, 0], turned[4, 0] = np.cos(angle), np.sin(angle)
    back = subspan.householder_product(subspan.householder_vectors(turned))
    torch.testing.assert_close(back, turned, rtol=0, atol=1e-16)


def test_vectors_are_differentiable() -> None:
    skew = normal(1, 6, 6)

    def around(A: torch.Tensor) -> torch.Tensor:
        return subspan.householder_vectors(torch.matrix_exp(A - A.mT)[:, :3])

    assert torch.autograd.gradcheck(around, skew.requires_grad_())
    assert torch.autograd.gradgradcheck(around, skew)


@pytest.mark.parametrize(
    ("Q", "layout", "error", "argument"),
    [
        (torch.ones(3, 4), "columns", ValueError, "Q"),
        (torch.ones(4, 3), "rows", ValueError, "Q"),
        (torch.ones(4), "columns", ValueError, "Q"),
        (torch.ones(4, 3).int(), "columns", TypeError, "Q"),
        ([[1.0]], "columns", TypeError, "Q"),
        (torch.ones(4, 3), "row", ValueError, "layout"),
    ],
)
def test_vectors_refuse(Q: object, layout: str, error: type[Exception], argument: str) -> None:
    with pytest.raises(error, match=f"householder_vectors: {argument}: expected .+, got .+"):
        subspan.householder_vectors(Q, layout=layout)
