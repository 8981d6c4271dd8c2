"""Hypercomplex products: algebras and their identities, every method against Kronecker products, memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import subspan
from resident_memory import extra_bytes, needs_counter
from sample_arrays import normal
from subspan.composite import phm as composite
from subspan.reference import phm as reference

# --- algebras ---

BASIS = np.eye(16)
CAYLEY_DICKSON = {"complex": 2, "quaternion": 4, "octonion": 8, "sedenion": 16}


def times(A: np.ndarray, w: np.ndarray, x: np.ndarray) -> np.ndarray:
    product: np.ndarray = np.einsum("ipq,i,q->p", A, w, x)
    return product


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, atol=1e-13)


def numbers(n: int, count: int) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((count, n))


@pytest.mark.parametrize("name", ["complex", "quaternion", "octonion"])
def test_norms_of_division_algebras_multiply(name: str) -> None:
    n = CAYLEY_DICKSON[name]
    w, x = numbers(n, 2)
    for side in ("left", "right"):
        A = subspan.algebra(name, n, side)
        assert abs(np.linalg.norm(times(A, w, x)) - np.linalg.norm(w) * np.linalg.norm(x)) < 1e-13


def test_sedenions_have_zero_divisors() -> None:
    """Norms do not multiply: (e_3 + e_10)(e_6 - e_15) = 0 is the usual example."""
    A = subspan.algebra("sedenion", 16)
    w, x = numbers(16, 2)
    assert abs(np.linalg.norm(times(A, w, x)) / np.linalg.norm(w) / np.linalg.norm(x) - 1) > 1e-2
    zero = [
        (i, j, k, m, sign)
        for i in range(1, 8)
        for j in range(9, 16)
        for k in range(1, 8)
        for m in range(9, 16)
        for sign in (1, -1)
        if not times(A, BASIS[i] + BASIS[j], BASIS[k] + sign * BASIS[m]).any()
    ]
    assert len(zero) == 2 * 84  # pairs of this shape with either sign of both factors, Moreno 1998


@pytest.mark.parametrize("name", CAYLEY_DICKSON)
def test_units(name: str) -> None:
    n = CAYLEY_DICKSON[name]
    A, e = subspan.algebra(name, n), np.eye(n)
    for i in range(n):
        np.testing.assert_array_equal(times(A, e[0], e[i]), e[i])
        np.testing.assert_array_equal(times(A, e[i], e[0]), e[i])
        if i:
            np.testing.assert_array_equal(times(A, e[i], e[i]), -e[0])
    for i in range(1, n):
        for j in range(1, n):
            if i != j:
                np.testing.assert_array_equal(times(A, e[i], e[j]), -times(A, e[j], e[i]))


def test_quaternions_of_hamilton() -> None:
    A, (one, i, j, k) = subspan.algebra("quaternion", 4), np.eye(4)
    for left, right, product in ((i, j, k), (j, k, i), (k, i, j), (k, j, -i), (i, i, -one)):
        np.testing.assert_array_equal(times(A, left, right), product)


def test_octonions_are_alternative_and_not_associative() -> None:
    A = subspan.algebra("octonion", 8)
    a, b, c = numbers(8, 3)
    np.testing.assert_allclose(times(A, a, times(A, a, b)), times(A, times(A, a, a), b), atol=1e-13)
    np.testing.assert_allclose(times(A, times(A, a, b), b), times(A, a, times(A, b, b)), atol=1e-13)
    assert abs(times(A, a, times(A, b, c)) - times(A, times(A, a, b), c)).max() > 0.1


def test_sedenions_are_not_alternative() -> None:
    A = subspan.algebra("sedenion", 16)
    a, b = numbers(16, 2)
    assert abs(times(A, a, times(A, a, b)) - times(A, times(A, a, a), b)).max() > 0.1


def test_cyclic_is_circular_convolution() -> None:
    w, x = numbers(6, 2)
    expected = np.fft.ifft(np.fft.fft(w) * np.fft.fft(x)).real
    np.testing.assert_allclose(times(subspan.algebra("cyclic", 6), w, x), expected, atol=1e-13)


def test_klein_is_diagonal_for_walsh() -> None:
    w, x = numbers(4, 2)
    H = np.array([[1, 1], [1, -1]])
    H = np.kron(H, H)
    np.testing.assert_allclose(H @ times(subspan.algebra("klein", 4), w, x), (H @ w) * (H @ x), atol=1e-13)


@pytest.mark.parametrize(("name", "n"), [*CAYLEY_DICKSON.items(), ("cyclic", 5), ("klein", 8)])
def test_sides_and_conjugates(name: str, n: int) -> None:
    w, x = numbers(n, 2)
    left = subspan.algebra(name, n)
    close(times(subspan.algebra(name, n, "right"), w, x), times(left, x, w))
    conjugate = w.copy()
    conjugate[1:] *= -1
    if name == "cyclic":
        conjugate = np.roll(w[::-1], 1)
    if name == "klein":
        conjugate = w
    close(times(subspan.algebra(name, n, conjugate=True), w, x), times(left, conjugate, x))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("quaternion", 5), ValueError, "n: expected 4 for 'quaternion', got 5"),
        (("klein", 6), ValueError, "n: expected a power of two for 'klein', got 6"),
        (("reals", 1), ValueError, "name: expected one of 'complex', 'quaternion'"),
        (("cyclic", 4, "middle"), ValueError, "side: expected one of 'left', 'right'"),
        (("cyclic", 4.0), TypeError, "n: expected an integer"),
        (("cyclic", 4, "left", 1), TypeError, "conjugate: expected True or False"),
    ],
)
def test_wrong_arguments_of_algebra(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^algebra: {message}"):
        subspan.algebra(*arguments)


# --- products ---


def kronecker(A: Tensor, S: Tensor) -> Tensor:
    return torch.stack([torch.kron(a, s) for a, s in zip(A.double(), S.double(), strict=True)]).sum(0)


def bound(x: Tensor, A: Tensor, S: Tensor) -> Tensor:
    """Of the rounding errors of sums of in + terms products, and of the operations on both."""
    terms = x.shape[-1] + len(A) + 2
    return 2 * torch.finfo(x.dtype).eps * terms * (x.abs().double() @ kronecker(A.abs(), S.abs()).mT)


SIZES = [1, 2, 3, 4, 5, 8, 12, 16]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("rows", [1, 14, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_method_is_the_sum_of_kronecker_products(n: int, rows: int, dtype: torch.dtype) -> None:
    for inner, outer in ((45, 50), (6, 125), (16, 1)):
        x, A = normal(rows, rows, n * inner, dtype=dtype), normal(n, n, n, n, dtype=dtype)
        S, bias = normal(n + 1, n, outer, inner, dtype=dtype), normal(2, n * outer, dtype=dtype)
        W = kronecker(A, S)
        expected, limit = x.double() @ W.mT + bias.double(), bound(x, A, S) + 4 * torch.finfo(dtype).eps * bias.abs()
        for method in ("auto", "direct", "compose"):
            error = (subspan.phm_linear(x, A, S, bias, method=method).double() - expected).abs()
            assert (error <= limit).all(), f"{method}: {(error / limit).max():.3g} times the bound"
        for method in (0, 1, 2):
            error = (composite.phm_linear(x, A, S, bias, method)[0].double() - expected).abs()
            assert (error <= limit).all(), f"composite {method}: {(error / limit).max():.3g} times the bound"
        limit = 2 * (n + 1) * torch.finfo(dtype).eps * kronecker(A.abs(), S.abs())
        assert ((subspan.phm_weight(A, S).double() - W).abs() <= limit).all()


@pytest.mark.parametrize("rows", [3, 5, 32, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_components_longer_than_a_block(rows: int, dtype: torch.dtype) -> None:
    """Values and gradients on both sides of every change of method, with parts of blocks and of vectors."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    x, A = normal(1, rows, 600, dtype=dtype), normal(2, 3, 4, 2, dtype=compute)
    S, upstream = normal(3, 3, 270, 300, dtype=compute), normal(4, rows, 1080, dtype=compute)
    leaves = [t.requires_grad_() for t in (x, A, S)]

    def exact(*arrays: Tensor) -> tuple[Tensor, ...]:
        a, b, c, g = (t.detach().double().requires_grad_() for t in arrays)
        y = a @ torch.einsum("ipq,ilk->plqk", b, c).reshape(1080, 600).mT
        return y.detach(), *torch.autograd.grad(y, (a, b, c), g)

    y = subspan.phm_linear(*leaves)
    ours = (y, *torch.autograd.grad(y, leaves, upstream))
    sizes = exact(*(t.detach().abs() for t in (*leaves, upstream)))  # of all that is summed
    for value, wanted, size in zip(ours, exact(*leaves, upstream), sizes, strict=True):
        rounding = torch.finfo(value.dtype).eps * wanted.norm()  # of a gradient, to the type of x
        assert (value.double() - wanted).norm() <= rounding + 4 * torch.finfo(compute).eps * size.norm()


def test_one_term_of_one_is_a_linear_layer() -> None:
    x, W, bias = normal(1, 5, 7), normal(2, 3, 7), normal(3, 3)
    expected = torch.nn.functional.linear(x, W, bias)
    torch.testing.assert_close(subspan.phm_linear(x, torch.ones(1, 1, 1).double(), W[None], bias), expected)


def test_matrix_units_make_a_block_diagonal_layer() -> None:
    A = torch.diag_embed(torch.eye(3).double())
    S = normal(1, 3, 2, 4)
    torch.testing.assert_close(subspan.phm_weight(A, S), torch.block_diag(*S), rtol=0, atol=0)


def test_features_are_components_and_then_entries() -> None:
    """kron(A, S) and not kron(S, A), which has the same shape."""
    A, S = normal(1, 1, 2, 2), normal(2, 1, 3, 2)
    torch.testing.assert_close(subspan.phm_weight(A, S), torch.kron(A[0], S[0]), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 0, 8), (2, 3, 5, 8)])
def test_leading_dimensions_of_x(shape: tuple[int, ...]) -> None:
    x, A, S, bias = normal(1, *shape), normal(2, 2, 2, 2), normal(3, 2, 3, 4), normal(4, 6)
    expected = reference.phm_linear(x.numpy(), A.numpy(), S.numpy(), bias.numpy())
    assert subspan.phm_linear(x, A, S, bias).shape == (*shape[:-1], 6)
    np.testing.assert_allclose(subspan.phm_linear(x, A, S, bias), expected, atol=1e-14)
    np.testing.assert_allclose(subspan.phm_linear(x.numpy(), A.numpy(), S.numpy(), bias.numpy()), expected, atol=1e-14)


def test_factors_of_other_types_are_read_as_the_type_of_x() -> None:
    """A learned rule of 1e-4, as Compacter's is, would lose its digits in a half-precision W."""
    x = normal(1, 5, 8, dtype=torch.bfloat16)
    A, S = normal(2, 2, 2, 2, dtype=torch.float32, scale=1e-4), normal(3, 2, 3, 4, dtype=torch.float16)
    expected = reference.phm_linear(*(t.double().numpy() for t in (x, A, S)))
    result = subspan.phm_linear(x, A, S)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result, expected, atol=1e-6 * abs(expected).max())


@needs_counter
@pytest.mark.parametrize("rows", [1, 4, 64])
def test_weight_is_never_in_memory(rows: int) -> None:
    """W has 64 MB; beside the result a call takes rows of x, and a step its gradients, which are 16 MB."""
    shapes = [(rows, 4096), (4, 4, 4), (4, 1024, 1024)]
    x, A, S = (normal(i, *shape, dtype=torch.float32) for i, shape in enumerate(shapes))
    assert extra_bytes(lambda: subspan.phm_linear(x, A, S)) < 12 * 2**20
    for array in (x, A, S):
        array.requires_grad_()

    def step() -> None:
        subspan.phm_linear(x, A, S).sum().backward()

    assert extra_bytes(step) < 40 * 2**20


@needs_counter
def test_memory_of_the_whole_weight_would_be_seen() -> None:
    A, S = normal(1, 4, 4, 4, dtype=torch.float32), normal(2, 4, 1024, 1024, dtype=torch.float32)
    assert extra_bytes(lambda: subspan.phm_weight(A, S)) > 48 * 2**20
