"""Sinkhorn's scaling: what it promises beyond the op table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

import subspan
from op_row import ORACLE_ERROR, SAFETY
from sample_arrays import normal
from sinkhorn_growth import log_growth, sum_size
from subspan.reference.sinkhorn import sinkhorn as reference

DOUBLE = torch.float64
REAL = pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
SHAPES = pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (1, 5), (5, 1), (1, 1), (70, 90)], ids=str)


def log_error(scores: Tensor, temperature: float, iterations: int) -> float:
    """Largest error of the logarithm of an entry, as in the op table."""
    growth = log_growth(scores.double().numpy(), temperature, iterations)
    return SAFETY * sum_size(scores.numpy()) * torch.finfo(scores.dtype).eps * growth


def cosines(seed: int, n: int) -> Tensor:
    """Scores as CPP has them: of unit vectors with each other."""
    features = torch.nn.functional.normalize(normal(seed, n, 16), dim=-1)
    return features @ features.mT


# --- the matrix -------------------------------------------------------------------------------------------------------


@REAL
@SHAPES
@pytest.mark.parametrize("iterations", [1, 2, 5, 8])
def test_rows_sum_to_one(shape: tuple[int, int], iterations: int, dtype: torch.dtype) -> None:
    P = subspan.sinkhorn(normal(1, *shape, dtype=dtype), 0.175, iterations)
    # Sum, reciprocal and product; the test's own sum is exact.
    assert ((P.double().sum(-1) - 1).abs() <= (shape[1] + 3) * torch.finfo(dtype).eps).all()


@SHAPES
def test_columns_converge_to_equal_amounts(shape: tuple[int, int]) -> None:
    scores, mass = normal(2, *shape), shape[0] / shape[1]
    errors = []
    for iterations in (1, 3, 11, 41, 801):
        P = subspan.sinkhorn(scores, 1.0, iterations)
        errors.append(float((P.sum(0) - mass).abs().max()))
    rounding = 100 * sum(shape) * torch.finfo(DOUBLE).eps
    assert all(later <= earlier + rounding for earlier, later in itertools.pairwise(errors)), errors
    assert errors[-1] <= rounding


@pytest.mark.parametrize(("iterations", "by_row", "by_column"), [(5, 3.0, 0.0), (4, 0.0, 3.0), (901, 3.0, 2.0)])
@pytest.mark.parametrize("shape", [(6, 6), (4, 9)], ids=str)
def test_constants_of_rows_and_columns_cancel(
    shape: tuple[int, int], iterations: int, by_row: float, by_column: float
) -> None:
    """Of what is scaled first after any number of half-steps, of both in the limit."""
    scores = normal(3, *shape)
    moved = scores + by_row * normal(4, shape[0], 1) + by_column * normal(5, shape[1])
    P, same = (subspan.sinkhorn(s, 1.0, iterations) for s in (scores, moved))
    bound = log_error(scores, 1.0, min(iterations, 51)) + log_error(moved, 1.0, min(iterations, 51))
    torch.testing.assert_close(P, same, rtol=bound, atol=1e-14)


@REAL
@pytest.mark.parametrize("temperature", [1e6, 1e20, 1e300])
def test_high_temperature_is_uniform(temperature: float, dtype: torch.dtype) -> None:
    scores = normal(6, 30, 20, dtype=dtype)
    P = subspan.sinkhorn(scores, temperature, 5)
    reach = 4 * float(scores.abs().max()) / temperature  # P is within exp(+-4 max|S| / T) of uniform
    assert ((20 * P.double() - 1).abs() <= reach + 60 * torch.finfo(dtype).eps).all()


@REAL
@pytest.mark.parametrize("grad", ["last", "unrolled", "implicit"])
@pytest.mark.parametrize("temperature", [5e-324, 1e-200, 1e-40, 1e-6, 1.0, 1e40, 1e308])
def test_nothing_overflows(temperature: float, grad: str, dtype: torch.dtype) -> None:
    """Scores up to a sixteenth of the largest number, at any temperature; one column that all rows prefer."""
    largest = torch.finfo(dtype).max
    for scale in (torch.finfo(dtype).tiny, 1.0, largest / 64):
        scores = scale * normal(7, 7, 5, dtype=dtype)
        for S in (scores, scale * torch.arange(5, dtype=dtype).expand(7, 5), scale * torch.ones(7, 5, dtype=dtype)):
            for iterations in (1, 4, 5):
                S = S.detach().clone().requires_grad_()
                P = subspan.sinkhorn(S, temperature, iterations, grad)
                assert P.isfinite().all(), (scale, iterations)
                torch.testing.assert_close(P.sum(-1), torch.ones_like(P[:, 0]))
                if grad != "implicit" or temperature > 1e-30:
                    (gradient,) = torch.autograd.grad(P.sum(), S)
                    assert not gradient.isnan().any(), (scale, iterations)


def exact_sinkhorn(scores: Tensor, temperature: float, iterations: int) -> np.ndarray:
    """In the logarithm, with 60 digits."""
    rows, columns = scores.shape
    with mpmath.workdps(60):
        S = [[mpmath.mpf(float(s)) / mpmath.mpf(temperature) for s in row] for row in scores]
        f, g = [mpmath.mpf(0)] * rows, [mpmath.mpf(0)] * columns

        def log_sum(values: list[mpmath.mpf]) -> mpmath.mpf:
            peak = max(values)
            return peak + mpmath.log(mpmath.fsum(mpmath.exp(v - peak) for v in values))

        for remaining in range(iterations, 0, -1):
            if remaining % 2:
                f = [-log_sum([S[i][j] + g[j] for j in range(columns)]) for i in range(rows)]
            else:
                mass = mpmath.log(mpmath.mpf(rows) / columns)
                g = [mass - log_sum([S[i][j] + f[i] for i in range(rows)]) for j in range(columns)]
        entries = [[float(mpmath.exp(S[i][j] + f[i] + g[j])) for j in range(columns)] for i in range(rows)]
    return np.array(entries)


@pytest.mark.parametrize(
    ("dtype", "temperature"),
    [*((DOUBLE, 10.0**-e) for e in range(7)), *((torch.float32, t) for t in (1.0, 0.1, 1e-2, 3e-3))],
    ids=str,
)
@pytest.mark.parametrize("kind", ["normal", "one column is preferred", "one row is preferred", "equal"])
@pytest.mark.parametrize("iterations", [1, 2, 5, 6])
def test_low_temperature(kind: str, iterations: int, temperature: float, dtype: torch.dtype) -> None:
    """Columns whose sum underflows after a row step still get their potential."""
    scores = {
        "normal": normal(8, 6, 5),
        "one column is preferred": normal(9, 6, 5) - 3 * torch.arange(5),
        "one row is preferred": normal(10, 6, 5) - 3 * torch.arange(6)[:, None],
        "equal": torch.ones(6, 5),
    }[kind].to(dtype)
    P = subspan.sinkhorn(scores, temperature, iterations).double().numpy()
    exact = exact_sinkhorn(scores, temperature, iterations)
    bound = exact * np.expm1(log_error(scores, temperature, iterations)) + 6 * torch.finfo(dtype).tiny
    assert (np.abs(P - exact) <= bound).all(), np.max(np.abs(P - exact) / bound)


@REAL
@pytest.mark.parametrize("temperature", [1e-3, 1e-4, 1e-5, 1e-6])
def test_low_temperature_is_the_best_matching(temperature: float, dtype: torch.dtype) -> None:
    """Whose margin exceeds the rounding of every exponent; each row likes its neighbour's column nearly as much."""
    n = 40
    partner = torch.from_numpy(np.random.default_rng(0).permutation(n))
    scores = torch.zeros(n, n, dtype=dtype)
    scores[torch.arange(n), partner] = 1.0
    scores[torch.arange(n), partner.roll(1)] = 0.75
    for iterations in (5, 6):
        P = subspan.sinkhorn(scores, temperature, iterations)
        torch.testing.assert_close(P, torch.nn.functional.one_hot(partner, n).to(dtype), rtol=0, atol=1e-100)


def test_one_row_and_one_column() -> None:
    scores = normal(11, 3, 1, 7)
    torch.testing.assert_close(subspan.sinkhorn(scores, 0.3, 1), (scores / 0.3).softmax(-1))
    torch.testing.assert_close(subspan.sinkhorn(scores, 0.3, 2), torch.full_like(scores, 1 / 7))
    assert torch.equal(subspan.sinkhorn(scores.mT, 0.3, 5), torch.ones(3, 7, 1, dtype=DOUBLE))


@pytest.mark.parametrize("grad", ["last", "unrolled", "implicit"])
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (0, 3, 3), (2, 0, 3), (2, 3, 0)], ids=str)
def test_empty(shape: tuple[int, ...], grad: str) -> None:
    scores = torch.zeros(shape, requires_grad=True)
    for iterations in (1, 2, 5):
        P = subspan.sinkhorn(scores, 0.3, iterations, grad)
        assert P.shape == shape
        assert torch.autograd.grad(P.sum(), scores)[0].shape == shape


@REAL
def test_cpp_formula(dtype: torch.dtype) -> None:
    """CPP's plan after five half-steps at temperature 0.175, times n: potentials of the cost over marginals 1/n."""
    n, eps = 48, 0.175
    scores = cosines(12, n).to(dtype).requires_grad_()
    C = -scores.detach().double().requires_grad_()
    log_mass, u, v = -math.log(n), torch.zeros(n, dtype=DOUBLE), torch.zeros(n, dtype=DOUBLE)

    def exponents(u: Tensor, v: Tensor) -> Tensor:
        return (-C + u[:, None] + v) / eps

    for half_step in range(5):
        if half_step % 2 == 0:
            u = eps * (log_mass - exponents(u, v).logsumexp(-1)) + u
        else:
            v = (eps * (log_mass - exponents(u, v).logsumexp(-2)) + v).detach()
    expected = n * exponents(u, v).exp()
    P = subspan.sinkhorn(scores, eps)
    bound = log_error(scores.detach(), eps, 5)
    torch.testing.assert_close(P.double(), expected, rtol=bound, atol=0)
    upstream = normal(13, n, n).clamp(-1, 1)
    (gradient,) = torch.autograd.grad(P, scores, upstream.to(dtype))
    (wanted,) = torch.autograd.grad(expected, C, upstream.to(dtype).double())
    limit = 3 * bound * expected.detach() / eps
    assert ((gradient.double() + wanted).abs() <= limit + ORACLE_ERROR).all()


@pytest.mark.parametrize("temperature", [0.02, 0.175, 1.0])
@pytest.mark.parametrize("grad", ["last", "unrolled"])
def test_float32_is_no_worse_than_twice_torch(grad: str, temperature: float) -> None:
    """The loop of torch.logsumexp that one would write, in value and gradient; errors in the Frobenius norm."""
    S, upstream = cosines(40, 200), normal(41, 200, 200)

    def loop(S: Tensor) -> Tensor:
        x = S / temperature
        g = torch.zeros_like(x[:1])
        for _ in range(2):
            g = -(x - (x + g).logsumexp(1, keepdim=True)).logsumexp(0, keepdim=True)
        return (x + (g.detach() if grad == "last" else g)).softmax(-1)

    def value_and_gradient(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        leaf = S.float().to(dtype).requires_grad_()
        value = function(leaf)
        return value.detach().double(), torch.autograd.grad(value, leaf, upstream.to(dtype))[0].double()

    exact = value_and_gradient(loop, DOUBLE)
    ours = value_and_gradient(lambda S: subspan.sinkhorn(S, temperature, 5, grad), torch.float32)
    theirs = value_and_gradient(loop, torch.float32)
    for right, got, other in zip(exact, ours, theirs, strict=True):
        assert (got - right).norm() <= 2 * (other - right).norm()


# --- forbidden pairings and NaN ---------------------------------------------------------------------------------------

GRADS = pytest.mark.parametrize("grad", ["last", "unrolled", "implicit"])


@GRADS
@pytest.mark.parametrize("iterations", [1, 2, 4, 5])
@pytest.mark.parametrize("column", [False, True], ids=["pairings", "pairings and a column"])
def test_forbidden_pairings(column: bool, iterations: int, grad: str) -> None:
    scores = normal(14, 3, 6, 5)
    scores[0, 2, 1] = scores[0, 3, 4] = scores[2, 0, 0] = -math.inf
    if column:
        scores[1, :, 3] = -math.inf
    forbidden = scores == -math.inf
    scores.requires_grad_()
    P = subspan.sinkhorn(scores, 0.5, iterations, grad)
    assert (P[forbidden] == 0).all() and (P[~forbidden] > 0).all()
    torch.testing.assert_close(P.sum(-1), torch.ones(3, 6, dtype=DOUBLE))
    torch.testing.assert_close(
        P.detach().numpy(), reference(scores.detach().numpy(), 0.5, iterations), check_dtype=False
    )
    (gradient,) = torch.autograd.grad(P, scores, normal(15, 3, 6, 5))
    assert (gradient[forbidden] == 0).all() and gradient.isfinite().all()
    formula = torch.autograd.grad(subspan.sinkhorn(scores, 0.5, iterations, grad), scores, normal(15, 3, 6, 5),
                                  create_graph=True)[0]  # fmt: skip
    torch.testing.assert_close(gradient, formula.detach())
    if not column:  # whose potential would follow the stand-in
        unlikely = torch.where(forbidden, -1e3, scores.detach()).requires_grad_()
        other = subspan.sinkhorn(unlikely, 0.5, iterations, grad)
        torch.testing.assert_close(P, other)
        torch.testing.assert_close(gradient, torch.autograd.grad(other, unlikely, normal(15, 3, 6, 5))[0])


@GRADS
@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
@pytest.mark.parametrize("bad", ["NaN", "inf", "forbidden row"])
@pytest.mark.parametrize("shape", [(6, 5), (80, 40)], ids=str)
def test_nan_is_of_its_item(shape: tuple[int, int], bad: str, iterations: int, grad: str) -> None:
    clean = normal(16, 3, *shape)
    scores = clean.clone()
    scores[1, 2] = {"NaN": math.nan, "inf": math.inf, "forbidden row": -math.inf}[bad]
    if bad != "forbidden row":
        scores[1, 2, 1:] = clean[1, 2, 1:]
    upstream = normal(17, 3, *shape)
    results = []
    for S in (scores.requires_grad_(), clean.requires_grad_()):
        P = subspan.sinkhorn(S, 0.5, iterations, grad)
        results.append((P.detach(), torch.autograd.grad(P, S, upstream)[0]))
    for changed, kept in zip(*results, strict=True):
        assert changed[1].isnan().all()
        assert torch.equal(changed[::2], kept[::2])


# --- the exponential --------------------------------------------------------------------------------------------------


@REAL
def test_exponential_is_accurate_to_a_rounding(dtype: torch.dtype) -> None:
    """A row (0, x) whose x is so low that the sum is exactly 1 gives 2^x as computed, at the temperature whose unit is
    bits."""
    precision = 24 if dtype == torch.float32 else 53
    lowest = -126 if dtype == torch.float32 else -1022
    generator = torch.Generator().manual_seed(0)
    x = -precision - 2 - (-lowest - precision - 3) * torch.rand(200_000, generator=generator, dtype=DOUBLE)
    x[:4000] = -precision - 3 - torch.arange(4000) / 4000
    x[4000:4100] = torch.arange(-precision - 2, -precision - 102, -1).clamp(min=lowest)
    x = x.to(dtype)
    temperature = 1 / math.log(2)
    assert 1.4426950408889634 / temperature == 1
    P = subspan.sinkhorn(torch.stack([torch.zeros_like(x), x], -1), temperature, 1)
    assert (P[:, 0] == 1).all()
    exact = np.exp2(x.double().numpy().astype(np.longdouble))
    error = np.abs(P[:, 1].double().numpy() - exact) / exact * 2.0**precision
    assert error.max() <= 2, error.max()  # half-units in the last place of the smallest number of a binade
    print(f"largest error {error.max() / 2:.3f} ulp")
