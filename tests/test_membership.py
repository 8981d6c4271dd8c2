"""Soft membership (k, n) in place of n labels: what it means, its derivative through the masses, precision and memory.

Row j belongs to class j and column i to sample i, always: memberships here are never symmetric, and square ones, whose
transpose would be accepted too, are compared with what the transpose would give.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils._python_dispatch import TorchDispatchMode

import subspan
from coding_rate_growth import class_growth, reduction_growth, soft_class_growth, soft_reduction_growth
from coding_rate_points import gradient_bound, nearly_collapsed, value_bound
from op_row import SAFETY, within
from resident_memory import extra_bytes, needs_counter
from sample_arrays import normal, uniform
from subspan.composite import grams, khatri_rao
from subspan.composite import membership as composite
from subspan.reference import coding_rate as reference

EPS2 = 0.3
REAL = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)

#: Classes, samples, features: a Gram matrix for each class, all of them as one product from 24 classes on, one Gram
#: matrix of the samples; with as many classes as samples, and others.
SQUARE = [(9, 9, 4), (30, 30, 6), (7, 7, 12)]
SHAPES = [*SQUARE, (4, 11, 5), (26, 40, 5), (9, 6, 13), (1, 8, 3)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@dataclasses.dataclass(frozen=True)
class Path:
    """Rates and rate reduction as functions of (Z, membership, eps2, ...), and how their gradients are asked for."""

    rates: Callable[..., Tensor]
    reduction: Callable[..., Tensor]
    create_graph: bool = False

    def gradients(self, value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        keywords = {"retain_graph": True, "create_graph": self.create_graph}
        return tuple(gradient.detach() for gradient in torch.autograd.grad(value, inputs, **keywords))


#: The kernels; torch operations that torch differentiates; and the closed forms that second derivatives start from.
KERNEL = Path(
    lambda Z, membership, eps2=EPS2: subspan.class_coding_rates(Z, membership, eps2)[0],
    lambda Z, membership, eps2=EPS2, gamma=1.0: subspan.rate_reduction(Z, membership, eps2, gamma=gamma),
)
COMPOSITE = Path(
    lambda Z, membership, eps2=EPS2: composite.soft_class_coding_rates(Z, membership, eps2)[0],
    lambda Z, membership, eps2=EPS2, gamma=1.0: composite.soft_rate_reduction(Z, membership, eps2, gamma)[0],
)
CLOSED_FORM = dataclasses.replace(KERNEL, create_graph=True)
PATHS = {"kernel": KERNEL, "composite": COMPOSITE, "closed form": CLOSED_FORM}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
each_value = pytest.mark.parametrize("path", [KERNEL, COMPOSITE], ids=["kernel", "composite"])


def problem(shape: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    k, n, d = shape
    return normal(1, n, d, dtype=dtype).requires_grad_(), uniform(2, k, n, dtype=dtype).requires_grad_()


def arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().double().numpy() for tensor in tensors)


def by_singular_values(Z: Tensor, membership: Tensor, eps2: float = EPS2) -> np.ndarray:
    """Rate of each row of the membership: 1/2 sum log(1 + d / (t_j eps2) sigma^2), sigma those of diag(pi_j)^1/2 Z."""
    rows, classes = arrays(Z, membership)
    spectra = ((pi.sum(), np.linalg.svd(np.sqrt(pi)[:, None] * rows, compute_uv=False)) for pi in classes)
    return np.array([np.log1p(rows.shape[1] / (mass * eps2) * sigma**2).sum() / 2 for mass, sigma in spectra])


@REAL
@each_path
@pytest.mark.parametrize("shape", [(5, 30, 4), (28, 60, 5), (6, 9, 20)], ids=str)
def test_one_hot_membership_is_labels(shape: tuple[int, int, int], path: Path, dtype: torch.dtype) -> None:
    """Values and gradients to the features; the last class is empty."""
    k, n, d = shape
    Z, labels = normal(3, n, d, dtype=dtype).requires_grad_(), torch.arange(n) * 7 % (k - 1)
    membership = one_hot(labels, k).mT.to(dtype)
    hard, soft = (arrays(Z)[0], labels.numpy(), EPS2), (*arrays(Z, membership), EPS2)
    rates, mass = subspan.class_coding_rates(Z, labels, EPS2, num_classes=k)
    assert torch.equal(subspan.class_coding_rates(Z, membership, EPS2)[1], mass)
    reduction = subspan.rate_reduction(Z, labels, EPS2, num_classes=k, gamma=0.4)
    rate_growths = class_growth(*hard, num_classes=k), soft_class_growth(*soft)
    reduction_growths = reduction_growth(*hard, num_classes=k, gamma=0.4), soft_reduction_growth(*soft, gamma=0.4)
    comparisons = (
        (path.rates(Z, membership), rates, *rate_growths),
        (path.reduction(Z, membership, gamma=0.4), reduction, *reduction_growths),
    )
    for value, expected, *growths in comparisons:
        within(value, expected, sum(value_bound(growth, dtype) for growth in growths), "value")
        upstream = torch.linspace(-1, 1, expected.numel(), dtype=dtype).reshape(expected.shape)
        pair = (path.gradients((each * upstream).sum(), Z)[0] for each in (value, expected))
        within(*pair, sum(gradient_bound(growth, dtype) for growth in growths), "gradient")


# --- orientation ---


@REAL
@each_value
@each_shape
def test_a_row_is_a_class(shape: tuple[int, int, int], path: Path, dtype: torch.dtype) -> None:
    """Both orientations of a square membership have a value; each gets its own, in memory of either order."""
    Z, membership = (tensor.detach() for tensor in problem(shape, dtype))
    whole = by_singular_values(Z, torch.ones(1, shape[1]))[0]
    square = shape[0] == shape[1]
    for given in (membership, membership.mT, membership.mT.contiguous()) if square else (membership,):
        mass, expected = arrays(given)[0].sum(1), by_singular_values(Z, given)
        bound = value_bound(soft_class_growth(*arrays(Z, given), EPS2), dtype)
        within(path.rates(Z, given), expected, bound, "rates")
        rounding = torch.finfo(dtype).eps + shape[1] * torch.finfo(torch.float64).eps  # summed in float64, both
        within(subspan.class_coding_rates(Z, given, EPS2)[1], mass, rounding * mass, "mass")
        if square:
            assert np.abs(expected - by_singular_values(Z, given.mT)).max() > 10 * np.max(bound)
        reduction = whole - mass @ expected / shape[1]
        bound = value_bound(soft_reduction_growth(*arrays(Z, given), EPS2), dtype)
        within(path.reduction(Z, given), reduction, bound, "reduction")
        if square:
            other = whole - arrays(given)[0].sum(0) @ by_singular_values(Z, given.mT) / shape[1]
            assert abs(reduction - other) > 10 * bound


@each_path
@pytest.mark.parametrize("shape", SQUARE, ids=str)
def test_a_class_sees_its_samples_alone(shape: tuple[int, int, int], path: Path) -> None:
    """Class j has the samples 0 ... j: no gradient beyond, one for each of these."""
    Z, membership = problem(shape)
    membership = membership.detach().tril().requires_grad_()
    rates = path.rates(Z, membership)
    growth = soft_class_growth(*arrays(Z, membership), EPS2)
    assert (rates > 0).all()
    for j in range(shape[0]):
        d_Z, d_membership = path.gradients(rates[j], Z, membership)
        assert (d_Z[: j + 1].abs().sum(1) > 0).all() and not d_Z[j + 1 :].any()
        assert d_membership[j].any() or j == 0  # one sample has the rate of any multiple of it
        assert not d_membership[:j].any() and not d_membership[j + 1 :].any()
        alone = path.rates(Z[: j + 1], membership[j : j + 1, : j + 1])
        within(alone[0], rates[j], 2 * value_bound(growth, torch.float64)[j], "class alone")


# --- identities and inequalities ---


@REAL
@each_value
@each_shape
def test_reduction_of_shares_is_not_negative(shape: tuple[int, int, int], path: Path, dtype: torch.dtype) -> None:
    """Where every column sums to 1: log det is concave, so coding classes alone never costs more; and saves nothing
    where every sample is shared out alike."""
    k, n, _ = shape
    Z, _ = problem(shape, dtype)
    for sharpness in (0.1, 1.0, 10.0):
        shares = torch.softmax(sharpness * normal(4, k, n), 0).to(dtype)
        bound = value_bound(soft_reduction_growth(*arrays(Z, shares), EPS2), dtype)
        assert path.reduction(Z, shares).item() >= (10 * bound if k > 1 and sharpness >= 1 else -bound)
    alike = torch.softmax(normal(5, k), 0).to(dtype)[:, None].expand(k, n)
    bound = value_bound(soft_reduction_growth(*arrays(Z, alike), EPS2), dtype)
    rate = subspan.coding_rate(Z, EPS2).item()
    # The shares themselves are rounded: their sum is 1 to k roundings.
    assert abs(path.reduction(Z, alike).item()) <= bound + k * torch.finfo(dtype).eps * rate
    assert abs(path.reduction(Z, 3 * alike).item() + 2 * rate) <= 3 * (bound + k * torch.finfo(dtype).eps * rate)


@REAL
@each_path
@each_shape
def test_scaled_membership(shape: tuple[int, int, int], path: Path, dtype: torch.dtype) -> None:
    """t_j takes the scale out of a rate, so the rate's derivative along its own membership is 0; R_c keeps it, and has
    -gamma t_j / n R_j. Euler's identity for functions of degree 0 and 1: without the terms through t_j both fail."""
    Z, membership = problem(shape, dtype)
    growth = soft_class_growth(*arrays(Z, membership), EPS2)
    rates = path.rates(Z, membership)
    assert torch.equal(path.rates(Z, 16 * membership), rates)  # a power of two, as is its root, rounds nothing
    (d_membership,) = path.gradients(rates.sum(), membership)
    along = (membership * d_membership).sum(1)
    within(
        along,
        torch.zeros(len(rates)),
        (arrays(membership)[0] * gradient_bound(growth, dtype, "labels")).sum(1),
        "rates",
    )
    (d_membership,) = path.gradients(path.reduction(Z, membership, gamma=0.7), membership)
    expected = -0.7 * arrays(membership)[0].sum(1) / len(Z) * by_singular_values(Z, membership)
    growth = soft_reduction_growth(*arrays(Z, membership), EPS2, gamma=0.7)
    bound = (arrays(membership)[0] * gradient_bound(growth, dtype, "labels")).sum(1)
    within((membership * d_membership).sum(1), expected, bound, "reduction")
    assert (np.abs(expected) > 10 * bound).all()


@REAL
@each_path
@each_shape
def test_class_without_mass(shape: tuple[int, int, int], path: Path, dtype: torch.dtype) -> None:
    """Rate 0 without a gradient, in either argument, while its mass keeps one; the other classes do not notice."""
    Z, membership = problem(shape, dtype)
    j, others = shape[0] // 2, torch.arange(shape[0]) != shape[0] // 2
    with torch.no_grad():
        membership[j] = 0
    rates = path.rates(Z, membership)
    assert rates[j] == 0 and (rates[others] > 0).all()
    for value in (rates[j], rates.sum(), path.reduction(Z, membership)):
        assert not path.gradients(value, membership)[0][j].any()
    assert not path.gradients(rates[j], Z)[0].any()
    mass = subspan.class_coding_rates(Z, membership, EPS2)[1]
    expected = (~others).to(dtype)[:, None].expand(shape[:2])
    assert mass[j] == 0 and torch.equal(path.gradients(mass[j], membership)[0], expected)
    if others.any():
        growth = soft_reduction_growth(*arrays(Z, membership[others]), EPS2)
        one, other = path.reduction(Z, membership), path.reduction(Z, membership[others])
        within(one, other, 2 * value_bound(growth, dtype), "reduction")
        within(path.gradients(one, Z)[0], path.gradients(other, Z)[0], 2 * gradient_bound(growth, dtype), "gradient")


# --- derivative through the masses ---


@each_path
@pytest.mark.parametrize("shape", [(3, 6, 2), (24, 5, 2), (3, 3, 4)], ids=str)
def test_membership_gradient_against_differences(shape: tuple[int, int, int], path: Path) -> None:
    """Differences of the reference, which takes negative memberships too, hence at zeros as well. They see t_j wherever
    it is; the derivative at constant t_j is far from them."""
    Z, membership = problem(shape)
    with torch.no_grad():
        membership[0, ::2] = 0
    rows, classes = arrays(Z, membership)
    upstream, alphas = np.cos(np.arange(shape[0])), shape[2] / (classes.sum(1) * EPS2)
    sums = differences(lambda moved, _: reference.class_coding_rates(rows, moved, EPS2)[0] @ upstream, classes)
    reductions = differences(lambda moved, _: reference.rate_reduction(rows, moved, EPS2, gamma=0.7), classes)
    values = path.rates(Z, membership) @ torch.from_numpy(upstream), path.reduction(Z, membership, gamma=0.7)
    for value, expected in zip(values, (sums, reductions), strict=True):
        within(path.gradients(value, membership)[0], expected, 1e-8 * np.abs(expected).max(), "gradient")
    constant_mass = differences(
        lambda moved, j: upstream[j] * reference.coding_rate(rows, None, alpha=alphas[j], weights=moved[j]), classes
    )
    assert (np.abs(constant_mass - sums).max(1) > 1e-6 * np.abs(sums).max()).all()


def differences(function: Callable[[np.ndarray, int], Any], classes: np.ndarray) -> np.ndarray:
    """Five-point differences in every entry. For log(1 + q x) they err by (step * q)^4 of the derivative, q < 100."""
    step, result = 1e-4, np.zeros(classes.shape)
    for j, i in np.ndindex(classes.shape):
        for steps, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            moved = classes.copy()
            moved[j, i] += steps * step
            result[j, i] += weight * function(moved, j) / (12 * step)
    return result


# --- exact arithmetic ---


def exact_values(Z: Tensor, membership: Tensor, eps2: float) -> tuple[list[Any], Any]:
    """Rates and rate reduction of these binary numbers."""
    rows, classes = mpmath.matrix(Z.tolist()), mpmath.matrix(membership.tolist())
    n, d = rows.rows, rows.cols

    def rate(weights: list[Any], mass: Any) -> Any:
        gram = d / (mass * mpmath.mpf(eps2)) * rows.T * mpmath.diag(weights) * rows
        return mpmath.log(mpmath.det(mpmath.eye(d) + gram)) / 2

    weights = [[classes[j, i] for i in range(n)] for j in range(classes.rows)]
    masses = [mpmath.fsum(row) for row in weights]
    rates = [rate(row, mass) for row, mass in zip(weights, masses, strict=True)]
    compressed = mpmath.fsum(mass * value for mass, value in zip(masses, rates, strict=True)) / n
    return rates, rate([mpmath.mpf(1)] * n, mpmath.mpf(n)) - compressed


@REAL
@each_value
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 2), (3, 3, 3), (2, 2, 4), (26, 4, 2)], ids=str)
@pytest.mark.parametrize("eps2", [1e9, 1.0, 1e-3])
def test_exact_arithmetic(eps2: float, shape: tuple[int, int, int], path: Path, dtype: torch.dtype) -> None:
    """Rates keep all their digits even where alpha is 1e-9; the reduction is a difference of such rates."""
    Z, membership = (tensor.detach() for tensor in problem(shape, dtype))
    if shape[0] > 1:
        membership[0, 0] = 0
    growth, whole = (g(*arrays(Z, membership), eps2) for g in (soft_class_growth, soft_reduction_growth))
    factor = SAFETY * torch.finfo(dtype).eps
    with mpmath.workdps(50):
        rates, reduction = exact_values(Z.double(), membership.double(), eps2)
        values = path.rates(Z, membership, eps2).tolist()
        for value, expected, output in zip(values, rates, growth.outputs[0], strict=True):
            assert abs(value - expected) <= factor * (growth.size * output + abs(expected))
        error = abs(path.reduction(Z, membership, eps2).item() - reduction)
        assert error <= factor * whole.size * whole.outputs[0]


# --- promotion to float64 ---


def collapsed_among_many(ratio: float, noise: float, k: int = 30, d: int = 16) -> tuple[Tensor, Tensor]:
    """Rows 3 and 17 of the membership hold the 40 samples of nearly one direction, of unit length; the other classes
    share 80 random samples, so short that float32 holds their Gram matrices whatever the ratio d / eps2."""
    Z = torch.cat([nearly_collapsed(40, d, noise).double(), normal(6, 80, d) / math.sqrt(d * max(ratio / 100, 1))])
    membership = uniform(7, k, 120)
    membership[:, :40] = 0
    membership[[3, 17]] = torch.cat([uniform(8, 2, 40), torch.zeros(2, 80)], 1)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    return Z.float()[order], membership.float()[:, order]


@each_value
@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-2])
@pytest.mark.parametrize("ratio", [1e2, 9e3, 1.1e4, 1e6])
@pytest.mark.parametrize(("k", "d"), [(24, 16), (60, 40), (23, 16)])
def test_collapsed_classes_among_many(k: int, d: int, ratio: float, noise: float, path: Path) -> None:
    """Every float32 rate is within 1e-5 of the float64 rate of the same input, and so is the gradient of a class whose
    trace asks for float64; the others have the bound of rounding a Gram matrix to float32."""
    Z, membership = collapsed_among_many(ratio, noise, k, d)
    eps2 = d / ratio
    single = Z.clone().requires_grad_(), membership.clone().requires_grad_()
    double = Z.double().requires_grad_(), membership.double().requires_grad_()
    rates, expected = path.rates(*single, eps2), KERNEL.rates(*double, eps2)
    torch.testing.assert_close(rates.double(), expected, rtol=1e-5, atol=0)
    whole = path.reduction(*single, eps2), KERNEL.reduction(*double, eps2)
    compressed = float(expected.detach() @ double[1].detach().sum(1)) / len(Z)
    assert abs(whole[0].item() - whole[1].item()) <= 1e-5 * (whole[1].item() + 2 * compressed)  # of R + R_c
    growth = soft_class_growth(*arrays(*single), eps2)
    collapsed = torch.isin(torch.arange(k), torch.tensor([3, 17]))
    for value, wanted, promoted, limits in (
        (rates[collapsed].sum(), expected[collapsed].sum(), ratio > 1e4, growth),
        (rates[~collapsed].sum(), expected[~collapsed].sum(), False, growth),
        (
            *whole,
            ratio / 4 > 1e4,
            soft_reduction_growth(*arrays(*single), eps2),
        ),  # the trace of all samples is a third of the ratio
    ):
        pair = path.gradients(value, *single), path.gradients(wanted, *double)
        for name, one, other in zip(("Z", "labels"), *pair, strict=True):
            bound = 1e-5 * other.abs().max().item() if promoted else gradient_bound(limits, torch.float32, name)
            within(one, other, bound, f"gradient of {name}")


def test_collapsed_classes_need_float64() -> None:
    """What the test above is for: the same computation in float32 is not within 1e-5."""
    Z, membership = collapsed_among_many(1e6, 1e-4)
    grams = torch.einsum("kn,na,nb->kab", membership, Z, Z) * (1e6 / membership.sum(1))[:, None, None]
    naive = torch.linalg.slogdet(torch.eye(16) + grams)[1] / 2
    assert abs(naive[3].item() / by_singular_values(Z, membership, 16 / 1e6)[3] - 1) > 1e-5


# --- memory ---


MEMORY_SHAPES = [(512, 512, 64), (16, 8192, 64), (200, 64, 1024)]


def step(function: str, Z: Tensor, membership: Tensor) -> None:
    if function == "k copies":
        value = (membership[:, :, None] * Z).sum()
    else:
        value = getattr(KERNEL, function)(Z.requires_grad_(), membership.requires_grad_()).sum()
        torch.autograd.grad(value, (Z, membership))


@pytest.mark.no_sanitizer
@needs_counter
def test_kernels_need_no_copy_of_the_features_for_every_class() -> None:
    """Not even half of k n d numbers, with gradients; measured in a fresh process, along with k copies themselves."""
    environment = os.environ | {"SUBSPAN_DISABLE": "0"}
    answer = subprocess.run([sys.executable, __file__], env=environment, check=True, capture_output=True, text=True)
    for (k, n, d), peaks in zip(MEMORY_SHAPES, json.loads(answer.stdout), strict=True):
        copies = 8 * k * n * d
        assert peaks["k copies"] > 0.9 * copies, "the counter sees nothing"
        for function in ("rates", "reduction"):
            assert peaks[function] < copies / 2, f"{function} {(k, n, d)}: {peaks[function] / copies:.2f} of k copies"


class LargestArray(TorchDispatchMode):
    """Numbers in the largest piece of memory that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for output in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(output, Tensor):
                self.numbers = max(self.numbers, output.untyped_storage().nbytes() // output.element_size())
        return result


@pytest.mark.parametrize("path", [COMPOSITE, CLOSED_FORM], ids=["composite", "closed form"])
@pytest.mark.parametrize("function", ["rates", "reduction"])
@pytest.mark.parametrize("shape", [(20, 200, 4), (60, 60, 8), (60, 12, 16)], ids=str)
def test_composites_take_some_classes_at_a_time(
    shape: tuple[int, int, int], function: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No array of k n d numbers in forward or backward, where that is more than a chunk; chunks change no value."""
    k, n, d = shape
    Z, membership = problem(shape)
    value = getattr(path, function)(Z, membership)
    expected = value, *path.gradients(value.sum(), Z, membership)
    chunk = k * n * d // 8
    monkeypatch.setattr(composite, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(grams, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(khatri_rao, "FULL_ELEMENTS", chunk)
    with LargestArray() as largest:
        value = getattr(path, function)(Z, membership)
        found = value, *path.gradients(value.sum(), Z, membership)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
    matrices = k * d * d if k < composite.PRODUCT_CLASSES else max(k, n) * d * (d + 1) // 2  # packed
    assert chunk // 2 < largest.numbers <= max(chunk, matrices, k * n) < k * n * d


if __name__ == "__main__":  # one line of JSON: for each shape the peaks, forward and backward
    peaks: list[dict[str, int]] = []
    for k, n, d in MEMORY_SHAPES:
        peaks.append({})
        for function in ("rates", "reduction", "k copies"):
            step(function, normal(3, 8, 4), uniform(4, 3, 8))
            peaks[-1][function] = extra_bytes(functools.partial(step, function, normal(1, n, d), uniform(2, k, n)))
    print(json.dumps(peaks))
