"""What Newton-Schulz iterations promise beyond every op: coefficients, orthogonality, lists of matrices, accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import subspan
from sample_arrays import normal
from subspan.ops.newton_schulz import POLYNOMIALS, newton_schulz_unrounded, polynomials
from subspan.reference import newton_schulz as reference

REAL = [torch.float32, torch.float64]
MIXED = [(9, 16), (64, 27), (1, 40), (40, 1), (130, 300), (33, 33), (3, 20, 12), (0, 7), (5, 0), (2, 0, 3), (300, 140)]


def matrices(dtype: torch.dtype, shapes: list[tuple[int, ...]] = MIXED) -> list[Tensor]:
    return [normal(seed, *shape, dtype=dtype) for seed, shape in enumerate(shapes)]


def with_values(seed: int, rows: int, columns: int, values: Tensor) -> Tensor:
    """A matrix of given singular values, in float64."""
    k = min(rows, columns)
    U, V = (torch.linalg.qr(normal(seed + i, size, k)).Q for i, size in enumerate((rows, columns)))
    return (U * values) @ V.mT


def exact(G: Tensor, steps: int, coefficients: Any) -> Tensor:
    return torch.from_numpy(reference.newton_schulz(G.double().numpy(), polynomials(steps, coefficients)))


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


# --- coefficients ---


def test_polar_express_is_the_optimal_composition() -> None:
    """The constants are those that the exchange algorithm finds, with the safety factor; published with fewer correct
    digits where the interval has nearly closed."""
    optimal = reference.polar_express(1e-3, 8)
    for k, (given, computed) in enumerate(zip(POLYNOMIALS["polar_express"], optimal, strict=True)):
        safety = 1.01 if k < 7 else 1.0
        scaled = [coefficient * safety**power for coefficient, power in zip(given, (1, 3, 5), strict=True)]
        np.testing.assert_allclose(scaled, computed, rtol=1e-14 if k < 5 else 1e-8)


@pytest.mark.parametrize("ends", [(0.05, 1.0), (0.3, 1.2), (0.9, 1.1)], ids=str)
def test_optimal_quintic_equioscillates(ends: tuple[float, float]) -> None:
    """Chebyshev: four extrema of alternating sign prove that no other odd quintic is closer to 1."""
    x = np.linspace(*ends, 200001)
    error = 1 - reference.compose(x, [reference.optimal_quintic(*ends)])
    size = np.abs(error).max()
    signs = np.sign(error[np.abs(error) > size * (1 - 1e-6)])
    assert (np.diff(signs) != 0).sum() == 3


@pytest.mark.parametrize(
    ("name", "steps", "low", "high"),
    [
        ("polar_express", 5, 0.84, 1.13),
        ("polar_express", 6, 0.994, 1.002),
        ("polar_express", 8, 1 - 1e-14, 1 + 1e-14),
        ("polar_express", 12, 1 - 1e-14, 1 + 1e-14),
        ("quintic", 16, 1 - 1e-14, 1 + 1e-14),
        ("cubic", 25, 1 - 1e-14, 1 + 1e-14),
    ],
)
def test_composed_polynomials_lead_to_one(name: str, steps: int, low: float, high: float) -> None:
    """All singular values from 1e-3 to 1."""
    composed = reference.compose(np.geomspace(1e-3, 1, 20001), polynomials(steps, name))
    assert low <= composed.min() <= composed.max() <= high


def test_muon_leads_near_one() -> None:
    """Not to one: the docstring's numbers."""
    composed = reference.compose(np.geomspace(3e-3, 1, 20001), polynomials(5, "muon"))
    assert 0.68 < composed.min() < 0.69 and 1.20 < composed.max() < 1.21
    assert reference.compose(np.array([1e-9]), polynomials(5, "muon")) == pytest.approx(4.849e-7, rel=1e-3)


def test_last_polynomial_serves_later_steps_and_more_than_steps_are_ignored() -> None:
    first, second = (2.0, -1.5, 0.5), (1.5, -0.5, 0.0)
    assert polynomials(4, [first, second]) == [first, second, second, second]
    assert polynomials(1, [first, second]) == [first]
    assert polynomials(2, first) == [first, first]
    assert polynomials(9, "polar_express")[-2:] == [(15 / 8, -10 / 8, 3 / 8)] * 2
    G = normal(0, 6, 4)
    assert torch.equal(
        subspan.newton_schulz(G, 3, [first, second]),
        subspan.newton_schulz(G, coefficients=(first, second, second), steps=3),
    )


# --- values ---


@pytest.mark.parametrize("shape", [(256, 256), (100, 700), (700, 100)], ids=str)
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_eight_steps_of_polar_express_are_orthonormal(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """To the rounding of the last product, and they are the polar factor U V^T: of values that are graded down to a
    fiftieth, all of them above 1e-3 of the norm."""
    k = min(shape)
    G = with_values(0, *shape, torch.logspace(0, math.log10(0.02), k, dtype=torch.float64)).to(dtype)
    assert torch.linalg.svdvals(G.double())[-1] / torch.linalg.matrix_norm(G.double()) > 1e-3
    Q = subspan.newton_schulz(G, 8, "polar_express")
    short = Q if shape[0] <= shape[1] else Q.mT
    eps = torch.finfo(dtype).eps
    identity = torch.eye(k, dtype=torch.float64)
    assert torch.linalg.matrix_norm(short.double() @ short.double().mT - identity, 2) < 30 * eps
    U, _, Vh = torch.linalg.svd(G.double(), full_matrices=False)
    # Rounding of X by eps is amplified like the smallest singular value, and the polar factor moves by eps / s_min.
    assert torch.linalg.matrix_norm(Q.double() - U @ Vh, 2) < 30 * eps / 1e-3


@pytest.mark.parametrize("steps", [5, 20])
def test_bfloat16_input_cannot_diverge(steps: int) -> None:
    """Without the safety factor the iteration in bfloat16 is known to reach 1e14; here it is in float32."""
    G = normal(3, 200, 200, dtype=torch.bfloat16)
    values = torch.linalg.svdvals(subspan.newton_schulz(G, steps, "polar_express").double())
    assert values.max() < 1.13 if steps == 5 else values.max() < 1.01


SPECTRA: dict[str, Callable[[int], Tensor]] = {
    "graded": lambda k: torch.logspace(0, -5, k, dtype=torch.float64),
    "power law": lambda k: 1 / torch.arange(1, k + 1, dtype=torch.float64),
    "one large": lambda k: torch.tensor([1.0] + [3e-3] * (k - 1)).double(),
    "one huge": lambda k: torch.tensor([1.0] + [1e-4] * (k - 1)).double(),
    "rank one": lambda k: torch.tensor([1.0] + [0.0] * (k - 1)).double(),
}


def in_torch(G: Tensor, steps: int, coefficients: Any) -> Tensor:
    """The iteration as it is written, on X itself."""
    X = G / torch.linalg.matrix_norm(G)
    X = X.mT if G.shape[0] > G.shape[1] else X
    for a, b, c in polynomials(steps, coefficients):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return X.mT if G.shape[0] > G.shape[1] else X


@pytest.mark.parametrize("shape", [(96, 96), (96, 160), (64, 400), (300, 80)], ids=str)
@pytest.mark.parametrize(("steps", "name"), [(5, "muon"), (5, "polar_express"), (8, "polar_express"), (12, "cubic")])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_small_singular_values_are_not_lost_on_the_shorter_side(
    shape: tuple[int, int], steps: int, name: str, spectrum: str
) -> None:
    """A Gram matrix in float32 does not know of singular values below 3e-4 of the largest. The error stays within twice
    that of the iteration on X in float32."""
    G = with_values(1, *shape, SPECTRA[spectrum](min(shape))).float()
    expected = exact(G, steps, name)
    error = torch.linalg.matrix_norm(subspan.newton_schulz(G, steps, name) - expected)
    plain = torch.linalg.matrix_norm(in_torch(G, steps, name) - expected)
    assert error <= 2 * plain + 2 * torch.finfo(torch.float32).eps * torch.linalg.matrix_norm(expected)


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (1, 4), (4, 1), (2, 3, 3)], ids=str)
@pytest.mark.parametrize("name", POLYNOMIALS)
def test_zero_gives_zero(dtype: torch.dtype, shape: tuple[int, ...], name: str) -> None:
    G = torch.zeros(shape, dtype=dtype, requires_grad=True)
    result = subspan.newton_schulz(G, 8, name)
    assert torch.equal(result, torch.zeros(shape, dtype=dtype))
    (gradient,) = torch.autograd.grad(result.sum(), G)
    assert torch.equal(gradient, torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (40, 60)], ids=str)
def test_scale_does_not_matter(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Bitwise for powers of two whose squares fit into the type; also where they do not."""
    G = normal(5, *shape, dtype=dtype)
    result = subspan.newton_schulz(G)
    largest = 120 if dtype == torch.float32 else 1000
    for exponent in (-largest, -largest // 2, -8, 8, largest // 2, largest):
        scaled = subspan.newton_schulz(torch.ldexp(G, torch.tensor(exponent)))
        if abs(exponent) == 8:
            assert torch.equal(scaled, result)
        else:
            torch.testing.assert_close(scaled, result, rtol=0, atol=64 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32_and_rounded_once(half: torch.dtype) -> None:
    G = normal(6, 20, 33, dtype=half)
    result = subspan.newton_schulz(G, 6, "polar_express")
    assert result.dtype == half
    assert torch.equal(result, subspan.newton_schulz(G.float(), 6, "polar_express").to(half))
    assert newton_schulz_unrounded(G).dtype == torch.float32
    assert [X.dtype for X in subspan.newton_schulz([G, G.double(), G.float()])] == [half, torch.float64, torch.float32]


def test_numpy_keeps_its_type() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        G = np.random.default_rng(0).standard_normal((4, 6)).astype(dtype)
        assert subspan.newton_schulz(G).dtype == dtype
        (result,) = subspan.newton_schulz([G])
        assert isinstance(result, np.ndarray) and result.dtype == dtype
        np.testing.assert_array_equal(result, subspan.newton_schulz(G))


# --- lists ---


@pytest.mark.parametrize("dtype", [*REAL, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["muon", "polar_express"])
def test_list_is_one_by_one_bitwise_in_its_order(dtype: torch.dtype, name: str) -> None:
    Gs = matrices(dtype)
    one_by_one = [subspan.newton_schulz(G, 6, name) for G in Gs]
    assert equal(subspan.newton_schulz(Gs, 6, name), one_by_one)
    assert equal(subspan.newton_schulz(tuple(Gs[::-1]), 6, name), one_by_one[::-1])
    assert equal(subspan.newton_schulz(Gs * 3, 6, name), one_by_one * 3)
    batch = torch.stack([Gs[0]] * 4)
    assert equal(list(subspan.newton_schulz(batch, 6, name)), [one_by_one[0]] * 4)


def test_lists_of_nothing() -> None:
    assert subspan.newton_schulz([]) == [] and subspan.newton_schulz(()) == []
    assert [tuple(X.shape) for X in subspan.newton_schulz([torch.ones(0, 3), torch.ones(2, 4, 0)])] == [
        (0, 3),
        (2, 4, 0),
    ]


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_list_does_not_depend_on_threads(dtype: torch.dtype) -> None:
    """Large matrices are shared by all threads, small ones are not; which is which depends on their number."""
    Gs = matrices(dtype, [*MIXED, (400, 500), (260, 1100), (1100, 260), (2, 300, 310)])
    previous = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(subspan.newton_schulz(Gs, 5))
    finally:
        torch.set_num_threads(previous)
    assert all(equal(result, results[0]) for result in results)


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_strides_do_not_matter_in_lists(dtype: torch.dtype) -> None:
    Gs = [G for G in matrices(dtype) if G.ndim == 2]
    expected = subspan.newton_schulz(Gs)
    layouts = {
        "transposed": lambda G: G.mT.contiguous().mT,
        "every other": lambda G: torch.stack([G, G + 1], -1).flatten(-2)[:, ::2],
        "rows of a larger one": lambda G: torch.cat([G, G], 1)[:, : G.shape[1]],
    }
    for layout in layouts.values():
        assert equal(subspan.newton_schulz([layout(G) for G in Gs]), expected)
    reversed_rows = subspan.newton_schulz([G.numpy()[::-1].copy()[::-1] for G in Gs])
    assert equal([torch.from_numpy(X) for X in reversed_rows], expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_nan_stays_in_its_matrix(bad: float) -> None:
    Gs = matrices(torch.float32, [(9, 16), (20, 12), (3, 20, 12), (300, 140)])
    expected = subspan.newton_schulz(Gs)
    spoilt = [G.clone() for G in Gs]
    spoilt[1][3, 4] = bad
    spoilt[2][1, 0, 5] = bad
    results = subspan.newton_schulz(spoilt)
    assert torch.equal(results[0], expected[0]) and torch.equal(results[3], expected[3])
    assert results[1].isnan().all() and results[2][1].isnan().all()
    assert torch.equal(results[2][::2], expected[2][::2])


def test_some_of_a_list_require_gradients() -> None:
    Gs = matrices(torch.float64, [(4, 6), (5, 3), (2, 3, 4)])
    expected = subspan.newton_schulz(Gs)
    alone = Gs[1].clone().requires_grad_()
    subspan.newton_schulz(alone).sin().sum().backward()
    Gs[1].requires_grad_()
    results = subspan.newton_schulz(Gs)
    assert equal([X.detach() for X in results], expected)
    assert [X.requires_grad for X in results] == [False, True, False]
    results[1].sin().sum().backward()
    assert torch.equal(Gs[1].grad, alone.grad)
    with torch.no_grad():
        assert not subspan.newton_schulz(Gs)[1].requires_grad


def test_gradients_of_a_list() -> None:
    Gs = [G.requires_grad_() for G in matrices(torch.float64, [(3, 5), (4, 2), (2, 2, 3)])]

    def function(*matrices: Tensor) -> Any:
        return tuple(subspan.newton_schulz(list(matrices), 3, "polar_express"))

    assert torch.autograd.gradcheck(function, Gs)
    assert torch.autograd.gradgradcheck(function, Gs)


@pytest.mark.parametrize("name", ["muon", "polar_express", "cubic"])
@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (2, 3, 3), (1, 3)], ids=str)
def test_composite(name: str, shape: tuple[int, ...]) -> None:
    """What devices without a kernel run: value and derivatives."""
    from subspan.composite.newton_schulz import newton_schulz

    numbers = [number for polynomial in polynomials(5, name) for number in polynomial]
    G = normal(8, *shape).requires_grad_()

    def function(G: Tensor) -> Tensor:
        return newton_schulz(G, numbers)[0]

    torch.testing.assert_close(function(G).detach(), exact(G.detach(), 5, name), rtol=0, atol=1e-11)
    assert torch.autograd.gradcheck(function, G)
    assert torch.autograd.gradgradcheck(function, G)


def test_composite_starts_anew_in_float32() -> None:
    from subspan.composite.newton_schulz import newton_schulz

    G = with_values(1, 64, 80, SPECTRA["one huge"](64)).float()
    numbers = [number for polynomial in polynomials(8, "polar_express") for number in polynomial]
    expected = exact(G, 8, "polar_express")
    error = torch.linalg.matrix_norm(newton_schulz(G, numbers)[0] - expected)
    assert error <= 4 * torch.linalg.matrix_norm(in_torch(G, 8, "polar_express") - expected)


def test_stacks_of_equal_shape() -> None:
    from subspan.composite.newton_schulz import by_shape

    calls = []

    def double(stack: Tensor) -> Tensor:
        calls.append(tuple(stack.shape))
        return 2 * stack

    Gs = [torch.ones(2, 3), torch.ones(3, 2) * 2, torch.ones(2, 3) * 3, torch.ones(2, 3).double()]
    assert equal(by_shape(Gs, double), [2 * G for G in Gs])
    assert sorted(calls) == [(1, 2, 3), (1, 3, 2), (2, 2, 3)]


def test_meta_list_has_shapes() -> None:
    Gs = [torch.empty(shape, device="meta", dtype=torch.bfloat16) for shape in MIXED]
    results = subspan.newton_schulz(Gs)
    assert [(tuple(X.shape), X.dtype, X.device.type) for X in results] == [
        (shape, torch.bfloat16, "meta") for shape in MIXED
    ]


@pytest.mark.no_sanitizer
@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated:DeprecationWarning")
def test_list_compiles_in_one_graph() -> None:
    Gs = matrices(torch.float64, [(9, 16), (20, 12), (3, 5, 4)])
    compiled = torch.compile(lambda Gs: subspan.newton_schulz(Gs, 5, "polar_express"), fullgraph=True)
    assert equal(compiled(Gs), subspan.newton_schulz(Gs, 5, "polar_express"))
    G = Gs[1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(compiled([Gs[0], G])[1].sin().sum(), G)
    (expected,) = torch.autograd.grad(subspan.newton_schulz(G, 5, "polar_express").sin().sum(), G)
    torch.testing.assert_close(gradient, expected)


def test_vmap_of_a_list() -> None:
    first, second = normal(0, 3, 4, 6), normal(1, 3, 5, 2)
    results = torch.vmap(lambda G, H: tuple(subspan.newton_schulz([G, H])))(first, second)
    assert equal(list(results), subspan.newton_schulz([first, second]))


@pytest.mark.parametrize(
    ("Gs", "error", "message"),
    [
        ([torch.ones(2, 2), 3.0], TypeError, r"newton_schulz: G: expected arrays in a list, got float at position 1"),
        ([torch.ones(2, 2), torch.ones(2)], ValueError, r"newton_schulz: G\[1\]: expected at least 2 dimensions"),
        ([torch.ones(2, 2), torch.ones(2, 2).int()], TypeError, r"newton_schulz: G\[1\]: expected float64, "),
        (
            [torch.ones(2, 2), np.ones((2, 2))],
            TypeError,
            r"newton_schulz: G\[1\]: expected the array library of G\[0\]",
        ),
        ([torch.ones(2, 2), torch.ones(2, 2).to("meta")], ValueError, r"newton_schulz: G\[1\]: expected the device of"),
        ({"G": torch.ones(2, 2)}, TypeError, r"newton_schulz: G: expected .+, got dict"),
    ],
)
def test_bad_lists(Gs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        subspan.newton_schulz(Gs)
