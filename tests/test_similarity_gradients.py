"""Gradients of the similarity of representations: differences of first and second order where singular values coincide
or vanish, and what cannot be differentiated further says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import subspan
from sample_arrays import delicate_features, normal
from similarity_points import related, with_angles

DOUBLE = torch.float64

POINTS: dict[str, tuple[Tensor, Tensor]] = {
    "generic": related(1, 12, 4, 3),
    "d > n": (normal(2, 6, 9), normal(3, 6, 3)),
    "equal angles": with_angles(0.3, 0.3, 0.3),
    "equal spaces": with_angles(0.0, 0.0, 0.0),
    "some equal": with_angles(0.0, 0.0, 0.7, 1.2, 1.2),
    "batch": (normal(4, 2, 9, 3), normal(5, 2, 9, 2)),
    "one feature": (normal(6, 7, 1), normal(7, 7, 3)),
}
#: Smooth everywhere but at a distance or correlation of 0.
SMOOTH: dict[str, Callable[..., Any]] = {
    "sum of cca": lambda X, Y: subspan.cca(X, Y).sum(-1),
    "linear_cka": subspan.linear_cka,
    "debiased linear_cka": lambda X, Y: subspan.linear_cka(X, Y, debiased=True),
    "procrustes": subspan.procrustes_distance,
    "procrustes angle": lambda X, Y: subspan.procrustes_distance(X, Y, metric="angular"),
    "pairwise_cca": lambda X, Y: subspan.pairwise_cca([X, Y, X[..., :1] + Y[..., :1]]),
    "pairwise_linear_cka": lambda X, Y: subspan.pairwise_linear_cka([X, Y]),
    "pairwise_procrustes": lambda X, Y: subspan.pairwise_procrustes([X, Y, X[..., :1] + Y[..., :1]]),
}
#: With a first derivative where the singular space, or each direction, is one.
ONCE: dict[str, Callable[..., Any]] = {
    "svcca by energy": lambda X, Y: subspan.svcca(X, Y, energy=0.8),
    "svcca by rank": lambda X, Y: subspan.svcca(X, Y, rank=2),
    "pwcca": subspan.pwcca,
    "pairwise_svcca": lambda X, Y: subspan.pairwise_svcca([X, Y], rank=2),
    "pairwise_pwcca": lambda X, Y: subspan.pairwise_pwcca([X, Y]),
}


def leaves(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.clone().requires_grad_() for tensor in tensors)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", SMOOTH)
def test_first_and_second_derivative(name: str, point: str) -> None:
    arguments = leaves(*POINTS[point])
    assert gradcheck(SMOOTH[name], arguments, fast_mode=True)
    assert gradgradcheck(SMOOTH[name], arguments, fast_mode=True)


@pytest.mark.parametrize("point", ["generic", "d > n", "batch"])
@pytest.mark.parametrize("name", ONCE)
def test_first_derivative_only(name: str, point: str) -> None:
    arguments = leaves(*POINTS[point])
    assert gradcheck(ONCE[name], arguments)
    (gradient,) = torch.autograd.grad(ONCE[name](*arguments).sum(), arguments[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="cca: second derivatives are not available"):
        torch.autograd.grad(gradient.square().sum(), arguments[0])


def test_every_correlation_has_its_own_gradient() -> None:
    arguments = leaves(*with_angles(0.2, 0.5, 1.1))
    assert gradcheck(lambda X, Y: subspan.cca(X, Y).square(), arguments)
    assert gradgradcheck(lambda X, Y: subspan.cca(X, Y).square(), arguments)


def test_third_derivatives_raise() -> None:
    for function, arguments in (
        (SMOOTH["sum of cca"], leaves(*POINTS["generic"])),
        (lambda X, _: subspan.von_neumann_entropy(X), leaves(*POINTS["generic"])),
    ):
        (first,) = torch.autograd.grad(function(*arguments), arguments[0], create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), arguments[0], create_graph=True)
        with pytest.raises(NotImplementedError, match="third derivatives are not available"):
            torch.autograd.grad(second.sum(), arguments[0])


@pytest.mark.parametrize("name", [*SMOOTH, *ONCE])
def test_coinciding_singular_values_give_finite_gradients(name: str) -> None:
    """Where autograd of torch.linalg.svd is NaN: equal singular values in X, in Y and in their product."""
    function = {**SMOOTH, **ONCE}[name]
    X, _ = with_angles(0.4, 0.4, 0.4)
    for Y in (X, -2 * X, with_angles(0.4, 0.4, 0.4)[1]):
        arguments = leaves(X, Y.clone())
        for gradient in torch.autograd.grad(function(*arguments).sum(), arguments):
            assert gradient.isfinite().all()


def test_dependent_features_that_stay_dependent() -> None:
    """At constant rank there is a derivative, along what keeps the rank: here a change of Z."""
    Y, repeat = normal(8, 11, 3), normal(9, 2, 5)
    (Z,) = leaves(normal(10, 11, 2))
    for name in ("sum of cca", "linear_cka", "procrustes"):
        function = SMOOTH[name]
        assert gradcheck(lambda Z, f=function: f(Z @ repeat, Y), (Z,))
        assert gradgradcheck(lambda Z, f=function: f(Z @ repeat, Y), (Z,))


def test_gradient_of_cca_is_orthogonal_to_maps_of_the_features() -> None:
    """Along X A nothing changes, nor along constants."""
    X, Y = leaves(*related(11, 20, 4, 3))
    (gradient,) = torch.autograd.grad(subspan.cca(X, Y)[0], X)
    assert (X.detach().mT @ gradient).abs().max() < 1e-12 and gradient.sum(0).abs().max() < 1e-12
    assert gradient.norm() > 1e-3


def test_gradient_of_procrustes_at_small_distances() -> None:
    """Of length 1 / |X|, however small the distance: minus the direction to the other shape."""
    X = with_angles(*(0.1,) * 4)[0]
    towards = torch.linalg.qr(with_angles(*(1.57079632679,) * 4)[1])[0]
    for step in (1e-2, 1e-6, 1e-10):
        Y = np.cos(step) * X + np.sin(step) * towards
        (leaf,) = leaves(X)
        (gradient,) = torch.autograd.grad(subspan.procrustes_distance(leaf, Y, metric="angular"), leaf)
        expected = -towards / X.norm() / towards.norm()
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-4 if step < 1e-9 else 1e-8)
    (leaf,) = leaves(X)
    distance = subspan.procrustes_distance(leaf, leaf.detach().clone())
    (gradient,) = torch.autograd.grad(distance, leaf)
    assert gradient.isfinite().all() and gradient.norm() < 10


# --- von Neumann entropy ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["orthonormal", "rank two", "one entry", "one sample", "no samples"])
@pytest.mark.parametrize("normalize", [False, True])
def test_entropy_where_eigenvalues_coincide_or_vanish(name: str, normalize: bool) -> None:
    """Where the rank can grow, the second derivative is infinite and is checked along what keeps it."""
    features = delicate_features()[name]
    if name == "rank two":
        left, right = leaves(normal(3, 5, 2), normal(4, 2, 4))
        arguments, function = (left, right), lambda A, B: subspan.von_neumann_entropy(A @ B, normalize=normalize)
    else:
        arguments, function = leaves(features), lambda H: subspan.von_neumann_entropy(H, normalize=normalize)
    assert gradcheck(function, arguments)
    assert gradgradcheck(function, arguments)


@pytest.mark.parametrize("shape", [(3, 8, 4), (2, 4, 8)], ids=str)
def test_entropy_of_generic_features(shape: tuple[int, ...]) -> None:
    arguments = leaves(normal(12, *shape))
    assert gradcheck(subspan.von_neumann_entropy, arguments)
    assert gradgradcheck(subspan.von_neumann_entropy, arguments)


def test_entropy_gradient_is_the_limit_in_vanishing_directions() -> None:
    """-2/n H (log C + I): zero where an eigenvalue is, and near it as small as x log x."""
    H = torch.diag(torch.tensor([1.0, 1.0, 1e-9, 0.0], dtype=DOUBLE)).requires_grad_()
    (gradient,) = torch.autograd.grad(subspan.von_neumann_entropy(H, normalize=False), H)
    x = H.detach().diagonal().square() / 4
    expected = -0.5 * H.detach().diagonal() * (torch.log(torch.where(x > 1e-16, x, 1 / np.e)) + 1)
    torch.testing.assert_close(gradient, expected.diag(), rtol=1e-12, atol=1e-12)


def test_entropy_of_collapsed_and_of_zero_rows() -> None:
    for name, value in (("collapsed", 0.0), ("zero", 0.0)):
        (H,) = leaves(delicate_features()[name])
        entropy = subspan.von_neumann_entropy(H)
        (gradient,) = torch.autograd.grad(entropy, H)
        assert abs(float(entropy.detach()) - value) < 1e-14 and gradient.abs().max() < 1e-12
    (H,) = leaves(torch.eye(4, dtype=DOUBLE)[:, :3])
    (gradient,) = torch.autograd.grad(subspan.von_neumann_entropy(H), H)
    assert gradient[3].eq(0).all() and gradient.isfinite().all()


# --- transformations --------------------------------------------------------------------------------------------------

EVERY = {**SMOOTH, **ONCE, "von_neumann_entropy": lambda X, Y: subspan.von_neumann_entropy(X) + 0 * Y.sum()}


@pytest.mark.no_sanitizer
@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", EVERY)
def test_compiled_and_mapped(name: str) -> None:
    def loss(X: Tensor, Y: Tensor) -> Tensor:
        return EVERY[name](X, Y).sum()

    X, Y = related(13, 11, 4, 3)
    arguments = leaves(X, Y)
    value = loss(*arguments)
    expected = torch.autograd.grad(value, arguments)
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    result = compiled(*arguments)
    torch.testing.assert_close(result, value, rtol=0, atol=1e-12)
    for gradient, wanted in zip(torch.autograd.grad(result, arguments), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-11)
    torch._dynamo.reset()
    torch.testing.assert_close(compiled(X, Y), value.detach(), rtol=0, atol=1e-12)
    stacked = (torch.stack([X, 2 * X.flip(0)]), torch.stack([Y, Y]))
    values = torch.vmap(loss)(*stacked)
    torch.testing.assert_close(values[0], value.detach(), rtol=0, atol=1e-12)
    gradients = torch.vmap(torch.func.grad(loss, (0, 1)))(*stacked)
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient[0], wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["sum of cca", "procrustes", "svcca by energy", "pwcca", "von_neumann_entropy"])
def test_forward_mode_raises(name: str) -> None:
    X, Y = related(14, 11, 4, 3)
    with pytest.raises(NotImplementedError):
        torch.func.jvp(EVERY[name], (X, Y), (X, Y))
