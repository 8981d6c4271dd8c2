"""The Stiefel manifold: what makes a retraction one, its inverse, tangent vectors and how they are carried along."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import subspan
from grassmann_rows import basis
from op_row import same, within
from sample_arrays import normal
from stiefel_rows import tangent
from subspan.composite import stiefel as composite
from subspan.reference import skew
from subspan.reference import stiefel as reference

DOUBLE = torch.float64
METHODS = ["qr", "polar", "cayley", "exp"]
SHAPES = [(9, 4), (4, 4), (6, 1), (1, 1), (40, 17)]
EPS = torch.finfo(DOUBLE).eps
every_method = pytest.mark.parametrize("method", METHODS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def point(seed: int, *shape: int, length: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    X = basis(seed, *shape)
    V = tangent(X, normal(seed + 1000, *shape))
    return X, V * (length / torch.linalg.matrix_norm(V, keepdim=True).clamp(min=1e-3))


def defect(Q: torch.Tensor) -> float:
    return float((Q.mT.double() @ Q.double() - torch.eye(Q.shape[-1], dtype=DOUBLE)).abs().max())


# --- retractions ---


@every_method
@every_shape
def test_value_is_the_reference(method: str, shape: tuple[int, int]) -> None:
    for length in (0.0, 1e-3, 1.0, 20.0):
        X, V = point(1, 3, *shape, length=length)
        Y = subspan.retract(X, V, method)
        within(Y, reference.retract(X.numpy(), V.numpy(), method), 100 * (1 + length) * EPS, f"length {length}")
        assert defect(Y) <= 100 * (1 + length) * EPS


@every_method
def test_of_a_vector_that_is_not_tangent(method: str) -> None:
    X, V = basis(1, 3, 9, 4), normal(2, 3, 9, 4)
    Y = subspan.retract(X, V, method)
    within(Y, reference.retract(X.numpy(), V.numpy(), method), 1e-13, "value")
    assert defect(Y) < 1e-13
    if method in ("cayley", "exp"):
        within(Y, subspan.retract(X, tangent(X, V), method), 1e-13, "its tangent part")


@every_method
@every_shape
def test_derivative_at_zero_is_the_vector(method: str, shape: tuple[int, int]) -> None:
    """At ten points, by central differences: (R(tV) - R(-tV)) / 2t = V + O(t^2)."""
    X, V = point(2, 10, *shape)
    t = 1e-5
    slope = (subspan.retract(X, t * V, method) - subspan.retract(X, -t * V, method)) / (2 * t)
    within(slope, V, 1e-9, "slope")
    within(subspan.retract(X, 0 * V, method), X, 100 * EPS, "origin")


def christoffel(X: torch.Tensor, V: torch.Tensor, metric: str) -> torch.Tensor:
    """The acceleration of the geodesic with velocity V: Edelman eq. 2.7 (Euclidean) and 2.41 (canonical)."""
    one = torch.eye(X.shape[-2], dtype=DOUBLE)
    if metric == "euclidean":
        return -X @ V.mT @ V
    along = X.mT @ V
    return -(V @ V.mT @ X + X @ (along @ along + V.mT @ (one - X @ X.mT) @ V))


@pytest.mark.parametrize(("method", "metric"), [("polar", "euclidean"), ("exp", "canonical"), ("cayley", "canonical")])
@every_shape
def test_second_order(method: str, metric: str, shape: tuple[int, int]) -> None:
    """The tangent part of the second derivative at 0 is that of the geodesic of the metric, at ten points."""
    X, V = point(3, 10, *shape)
    t = 1e-4
    second = (subspan.retract(X, t * V, method) - 2 * X + subspan.retract(X, -t * V, method)) / t**2
    within(tangent(X, second), tangent(X, christoffel(X, V, metric)), 1e-6, "acceleration")


@every_shape
def test_exp_is_the_canonical_geodesic_of_edelman(shape: tuple[int, int]) -> None:
    """Edelman eq. 2.42: [X Q] exp(t [[A, -R^T], [R, 0]]) [I; 0] for the QR factorisation of (I - X X^T) V."""
    for seed in range(10):
        X, V = (array.numpy() for array in point(seed, *shape))
        k = shape[1]
        A = X.T @ V
        Q, R = np.linalg.qr(V - X @ A)
        block = np.block([[A, -R.T], [R, np.zeros((len(R), len(R)))]])
        moved = np.hstack([X, Q]) @ skew.skew_expm(block)[:, :k]
        within(subspan.retract(torch.from_numpy(X), torch.from_numpy(V), "exp"), moved, 1e-13, f"point {seed}")


@every_method
def test_rank_of_the_direction_does_not_matter(method: str) -> None:
    X, _ = point(1, 8, 3)
    V = tangent(X, torch.outer(normal(2, 8), normal(3, 3)))
    within(subspan.retract(X, V, method), reference.retract(X.numpy(), V.numpy(), method), 1e-13, "rank")


@pytest.mark.parametrize("method", ["cayley", "exp"])
def test_long_frames_in_float32(method: str) -> None:
    """Gram matrices of 5000 rows are summed in float64: frames stay as orthonormal as they came."""
    X = basis(1, 2, 5000, 8).float()
    V = tangent(X, normal(2, 2, 5000, 8).float() / 50)
    Y = subspan.retract(X, V, method)
    assert defect(Y) <= defect(X) + 4 * torch.finfo(torch.float32).eps


def test_cayley_of_wide_frames_uses_the_whole_rotation() -> None:
    for n, k in ((40, 20), (41, 20), (40, 17), (33, 33)):
        X, V = point(1, 2, n, k)
        expected = reference.retract(X.numpy(), V.numpy(), "cayley")
        within(subspan.retract(X, V, "cayley"), expected, 1e-13, f"{n} x {k}")
        within(subspan.retract(X.mT, V.mT, "cayley", layout="rows").mT, expected, 1e-13, f"{n} x {k} as rows")


# --- the way back ---


@pytest.mark.parametrize("method", ["qr", "polar", "cayley"])
@every_shape
def test_inverse_retract_inverts(method: str, shape: tuple[int, int]) -> None:
    for length in (0.0, 1e-6, 0.5):
        X, V = point(4, 10, *shape, length=length)
        back = subspan.inverse_retract(X, subspan.retract(X, V, method), method)
        within(back, V, 1e-12, f"length {length}")
        within(tangent(X, back), back, 1e-12, "tangent")


@pytest.mark.parametrize("method", ["qr", "polar", "cayley"])
def test_inverse_retract_between_frames(method: str) -> None:
    X, V = point(5, 10, 9, 3, length=0.3)
    Y = subspan.retract(X, V, "exp")
    within(subspan.retract(X, subspan.inverse_retract(X, Y, method), method), Y, 1e-12, "end")


# --- tangent vectors ---


@every_shape
def test_projection(shape: tuple[int, int]) -> None:
    X, V = basis(6, 10, *shape), normal(7, 10, *shape)
    P = subspan.project_tangent(X, V)
    within(X.mT @ P, -(P.mT @ X), 1e-14 * 10, "tangent")
    within(subspan.project_tangent(X, P), P, 1e-14, "idempotent")
    W = tangent(X, normal(8, 10, *shape))
    within(((V - P) * W).sum((-2, -1)), torch.zeros(10), 1e-12, "what is taken away is normal")


@every_shape
@pytest.mark.parametrize("metric", ["euclidean", "canonical"])
def test_gradient_represents_the_derivative(shape: tuple[int, int], metric: str) -> None:
    """<grad, W> in the metric is the derivative along W, for every tangent W (Edelman eq. 2.52)."""
    X, G, W = basis(6, 10, *shape), normal(7, 10, *shape), tangent(basis(6, 10, *shape), normal(8, 10, *shape))
    gradient = subspan.egrad_to_rgrad(X, G, metric)
    within(X.mT @ gradient, -(gradient.mT @ X), 1e-13, "tangent")
    weighted = W if metric == "euclidean" else W - X @ (X.mT @ W) / 2
    within((gradient * weighted).sum((-2, -1)), (G * W).sum((-2, -1)), 1e-12, "inner product")


@every_method
@every_shape
def test_transport(method: str, shape: tuple[int, int]) -> None:
    X, V = point(9, 10, *shape)
    W, other = tangent(X, normal(10, 10, *shape)), tangent(X, normal(11, 10, *shape))
    Y = subspan.retract(X, V, method)
    moved, beside = subspan.transport(X, V, W, method), subspan.transport(X, V, other, method)
    within(Y.mT @ moved, -(moved.mT @ Y), 1e-12, "tangent at the end")
    within(subspan.transport(X, 0 * V, W, method), W, 1e-13, "nowhere")
    if method in ("cayley", "exp"):
        within((moved * beside).sum((-2, -1)), (W * other).sum((-2, -1)), 1e-12, "inner product")
        rotation = (skew.cayley if method == "cayley" else skew.skew_expm)(reference.generator(X.numpy(), V.numpy()))
        within(moved, rotation @ W.numpy(), 1e-12, "value")
    else:
        within(moved, tangent(Y, W), 1e-13, "value")


def test_velocity_is_carried_along_the_geodesic() -> None:
    """d/dt exp(tW) X = exp(tW) V."""
    X, V = point(12, 10, 9, 4)
    t = 1e-5
    later, before = subspan.retract(X, (1 + t) * V, "exp"), subspan.retract(X, (1 - t) * V, "exp")
    within((later - before) / (2 * t), subspan.transport(X, V, V, "exp"), 1e-9, "velocity")


# --- all functions alike ---

FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"retract {m}": lambda X, V, m=m, **kw: subspan.retract(X, V, m, **kw) for m in METHODS},
    **{
        f"inverse_retract {m}": lambda X, V, m=m, **kw: subspan.inverse_retract(
            X, subspan.retract(X, 0.25 * V, "exp", **kw), m, **kw
        )
        for m in METHODS[:3]
    },
    "project_tangent": subspan.project_tangent,
    "egrad_to_rgrad": subspan.egrad_to_rgrad,
    "egrad_to_rgrad canonical": lambda X, V, **kw: subspan.egrad_to_rgrad(X, V, "canonical", **kw),
    **{f"transport {m}": lambda X, V, m=m, **kw: subspan.transport(X, V, V, m, **kw) for m in METHODS},
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())


@every_function
def test_layouts_types_and_libraries(function: Callable[..., Any]) -> None:
    X, V = point(13, 3, 7, 3)
    value = function(X, V)
    rows = function(X.mT, V.mT, layout="rows")
    within(rows.mT, value, 1e-13, "rows")
    assert rows.is_contiguous() or rows.mT.is_contiguous()
    array = function(X.numpy(), V.numpy())
    assert isinstance(array, np.ndarray)
    within(array, value, 1e-12, "NumPy")
    within(
        function(X.numpy().swapaxes(-1, -2), V.numpy().swapaxes(-1, -2), layout="rows"), value.mT, 1e-12, "NumPy rows"
    )
    single = function(X.float(), V.float())
    assert single.dtype == torch.float32
    within(single, function(X.float().double(), V.float().double()), 1e-5, "float32")
    half = function(X.bfloat16(), V.bfloat16())
    assert half.dtype == torch.float32
    within(half, function(X.bfloat16().double(), V.bfloat16().double()), 1e-5, "bfloat16")
    within(function(X[0], V), function(X[:1].expand(3, 7, 3), V), 1e-13, "broadcast")
    for empty in ((0, 4, 3), (3, 4, 0)):
        assert function(torch.zeros(empty), torch.zeros(empty)).shape == empty
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within(function(X.float(), V.float()), single, 1e-6, "autocast")


@every_function
def test_nan_stays_in_its_item(function: Callable[..., Any]) -> None:
    X, V = point(14, 3, 7, 3)
    clean = function(X, V)
    for array, value in itertools.product((0, 1), (float("nan"), float("inf"))):
        bad = [X.clone(), V.clone()]
        bad[array][1, 2, 0] = value
        result = function(*bad)
        assert result[1].isnan().all()
        within(result[::2], clean[::2], 1e-14, "others")
        with np.errstate(all="raise"):
            numpy_result = function(*(item.numpy() for item in bad))
        assert np.isnan(numpy_result[1]).all() and np.isfinite(numpy_result[::2]).all()


@every_function
@pytest.mark.parametrize("shape", [(5, 3), (3, 3), (4, 1)], ids=str)
@pytest.mark.parametrize("kind", ["general", "zero", "not tangent"])
def test_derivatives(function: Callable[..., Any], shape: tuple[int, int], kind: str) -> None:
    X, V = point(15, *shape)
    V = 0 * V if kind == "zero" else V + 0.2 * normal(16, *shape) if kind == "not tangent" else V
    inputs = (X.requires_grad_(), V.requires_grad_())
    assert torch.autograd.gradcheck(function, inputs, atol=1e-6, rtol=1e-5)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True, atol=1e-6, rtol=1e-5)


@every_function
def test_vmap(function: Callable[..., Any]) -> None:
    X, V = point(17, 3, 6, 2)
    within(torch.vmap(function)(X, V), function(X, V), 1e-13, "vmap")


@every_function
@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated:DeprecationWarning")
def test_compiled(function: Callable[..., Any]) -> None:
    X, V = point(18, 3, 6, 2)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    leaves, others = ([X.clone().requires_grad_(), V.clone().requires_grad_()] for _ in range(2))
    value, expected = compiled(*leaves), function(*others)
    within(value.detach(), expected.detach(), 1e-13, "value")
    value.square().sum().backward()
    expected.square().sum().backward()
    for leaf, other in zip(leaves, others, strict=True):
        assert leaf.grad is not None and other.grad is not None
        within(leaf.grad, other.grad, 1e-11, "gradient")
    torch._dynamo.reset()


def test_threads_give_the_same_bits() -> None:
    X, V = (array.float().requires_grad_() for array in point(19, 5, 3000, 8))
    upstream = normal(20, 5, 3000, 8).float()
    for method in ("cayley", "exp"):
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            Y = subspan.retract(X, V, method)
            results.append((Y, *torch.autograd.grad(Y, (X, V), upstream)))
        for others in results[1:]:
            for other, first in zip(others, results[0], strict=True):
                same(other, first, method)


@pytest.mark.parametrize("shape", [(50, 4), (300, 8), (2000, 17), (40, 33), (5, 5), (7, 1)], ids=str)
@pytest.mark.parametrize("method", ["cayley", "exp"])
def test_gradient_is_that_of_the_composite(method: str, shape: tuple[int, int]) -> None:
    X, V = point(21, 2, *shape)
    V = V + 0.3 * normal(22, 2, *shape)  # not tangent
    upstream = normal(23, 2, *shape)
    expected = composite.retract_gradient(upstream, X, V, ["cayley", "exp"].index(method), False)
    for layout, strided in itertools.product(("columns", "rows"), (False, True)):
        arrays = [array.mT if layout == "rows" else array for array in (X, V, upstream)]
        if strided:
            arrays = [torch.stack([array, 0 * array], -1)[..., 0] for array in arrays]
        leaves = [array.requires_grad_() for array in arrays[:2]]
        Y = subspan.retract(*leaves, method, layout=layout)
        for own, other in zip(torch.autograd.grad(Y, leaves, arrays[2]), expected, strict=True):
            within(own.mT if layout == "rows" else own, other, 1e-12 * other.abs().max().item(), f"{layout} {strided}")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda X: subspan.retract(X, X, "svd"),
            "retract: method: expected one of 'qr', 'polar', 'cayley', 'exp', got",
        ),
        (lambda X: subspan.inverse_retract(X, X, "exp"), "inverse_retract: method: expected one of 'qr', 'polar', 'ca"),
        (lambda X: subspan.transport(X, X, X, 3), "transport: method: expected"),
        (lambda X: subspan.egrad_to_rgrad(X, X, "flat"), "egrad_to_rgrad: metric: expected one of 'euclidean', 'cano"),
        (lambda X: subspan.project_tangent(X, X[:2]), r"project_tangent: V: expected \(\*batch, n, k\) as X \(4, 2\)"),
        (lambda X: subspan.transport(X, X, X[:2]), "transport: W: expected"),
        (lambda X: subspan.retract(X, X, layout="row"), "retract: layout: expected"),
    ],
)
def test_wrong_arguments(call: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.eye(4, 2))


@pytest.mark.parametrize("layout", ["columns", "rows"])
@pytest.mark.parametrize("method", ["qr", "polar", "cayley", "exp"])
def test_retract_tells_the_status_of_each_item(method: str, layout: str) -> None:
    X = torch.linalg.qr(torch.randn(3, 9, 2, dtype=torch.float64)).Q
    V = subspan.project_tangent(X, torch.randn(3, 9, 2, dtype=torch.float64))
    V[1, 2, 0] = float("nan")
    if layout == "rows":
        X, V = X.mT, V.mT
    alone = subspan.retract(X, V, method, layout=layout)
    for arrays in ((X, V), (X.numpy(), V.numpy())):
        Y, info = subspan.retract(*arrays, method, layout=layout, return_info=True)
        assert info.tolist() == [0, -1, 0] and str(info.dtype).endswith("int32")
        torch.testing.assert_close(torch.as_tensor(Y), alone, rtol=0, atol=1e-14, equal_nan=True)


def test_retract_tells_of_missing_rank() -> None:
    X = torch.eye(5, 2, dtype=torch.float64)
    V = torch.zeros(5, 2, dtype=torch.float64)
    V[:, 1] = X[:, 0] - X[:, 1]  # X + V has two equal columns
    assert subspan.retract(X, V, "qr", return_info=True)[1] == 2
    assert subspan.retract(X, V, "polar", return_info=True)[1] == 1


@pytest.mark.parametrize(
    ("method", "units"), [("qr", 4), ("polar", 4), ("cayley", 16 * 1e5**0.5), ("exp", 16 * 1e5**0.5)]
)
def test_a_hundred_thousand_steps(method: str, units: float) -> None:
    """Orthonormal factors forget the errors of earlier steps. Those of rotations add up like a random walk, not in
    proportion to the number of steps."""
    generator = torch.Generator().manual_seed(0)
    X = torch.linalg.qr(torch.randn(6, 2, generator=generator)).Q.contiguous()
    directions = 0.1 * torch.randn(16, 6, 2, generator=generator)
    for step in range(100_000):
        X = subspan.retract(X, directions[step % 16], method)
    error = (X.double().mT @ X.double() - torch.eye(2, dtype=torch.float64)).abs().max()
    assert error < units * torch.finfo(torch.float32).eps
