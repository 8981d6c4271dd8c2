"""Products of quaternions, and vector-symbolic architectures: identities, and capacity against published bounds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import subspan
from sample_arrays import normal

# --- quaternions ---


def test_hamilton_product_is_the_quaternions_algebra() -> None:
    A = subspan.algebra("quaternion", 4)
    x, y = normal(1, 2, 3, 20), normal(2, 3, 20)
    parts = [t.numpy().reshape(*t.shape[:-1], 4, 5) for t in (x, y)]
    expected = np.einsum("ipq,...ik,...qk->...pk", A, *parts).reshape(2, 3, 20)
    np.testing.assert_allclose(subspan.hamilton_product(x, y), expected, atol=1e-14)
    np.testing.assert_allclose(subspan.hamilton_product(x.numpy(), y.numpy()), expected, atol=1e-14)


def test_hamilton_product_is_associative_and_norms_multiply() -> None:
    x, y, z = (normal(i, 7, 4) for i in range(3))
    product = subspan.hamilton_product
    torch.testing.assert_close(product(product(x, y), z), product(x, product(y, z)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(product(x, y).norm(dim=-1), x.norm(dim=-1) * y.norm(dim=-1))
    assert (product(x, y) - product(y, x)).abs().max() > 0.1


def test_hamilton_product_is_the_layer_of_one_quaternion() -> None:
    layer, x = subspan.nn.QuaternionLinear(4, 4, bias=False).double(), normal(1, 5, 4)
    torch.testing.assert_close(layer(x), subspan.hamilton_product(layer.S.detach().reshape(4), x))


# --- vector-symbolic architectures ---


def test_binding_is_the_product_of_the_cyclic_algebra() -> None:
    a, b = normal(1, 3, 7), normal(2, 7)
    expected = np.einsum("ipq,...i,q->...p", subspan.algebra("cyclic", 7), a.numpy(), b.numpy())
    np.testing.assert_allclose(subspan.bind(a, b), expected, atol=1e-13)
    np.testing.assert_allclose(subspan.bind(a.numpy(), b.numpy()), expected, atol=1e-13)


@pytest.mark.parametrize("n", [1, 6, 7])
def test_unbinding_is_the_adjoint_of_binding(n: int) -> None:
    """<bind(a, b), s> = <b, unbind(s, a)>: circular correlation."""
    a, b, s = (normal(i, n) for i in range(3))
    torch.testing.assert_close((subspan.bind(a, b) * s).sum(), (b * subspan.unbind(s, a)).sum())


def test_unbinding_is_exact_for_unitary_keys_and_signs() -> None:
    phases = torch.fft.rfft(normal(1, 16))
    key = torch.fft.irfft(phases / phases.abs(), 16)
    value = normal(2, 16)
    torch.testing.assert_close(subspan.unbind(subspan.bind(key, value), key), value, rtol=1e-12, atol=1e-12)
    key = normal(3, 16).sign()
    bound = subspan.bind(key, value, architecture="map")
    torch.testing.assert_close(subspan.unbind(bound, key, architecture="map"), value, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ["hrr", "map"])
def test_binding_distributes_over_bundles(architecture: str) -> None:
    a, items = normal(1, 8), normal(2, 5, 8)
    together = subspan.bind(a, subspan.bundle(items), architecture=architecture)
    one_by_one = subspan.bundle(subspan.bind(a, items, architecture=architecture))
    torch.testing.assert_close(together, one_by_one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("architecture", ["hrr", "map"])
def test_gradients(architecture: str) -> None:
    a, b = normal(1, 2, 6).requires_grad_(), normal(2, 6).requires_grad_()
    for function in (subspan.bind, subspan.unbind):
        assert torch.autograd.gradcheck(lambda *t, f=function: f(*t, architecture=architecture), (a, b))
        assert torch.autograd.gradgradcheck(lambda *t, f=function: f(*t, architecture=architecture), (a, b))
    assert torch.autograd.gradcheck(subspan.hamilton_product, (normal(3, 8).requires_grad_(), normal(4, 8)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_types(dtype: torch.dtype) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    a = normal(1, 3, 8, dtype=dtype)
    for result in (subspan.bind(a, a), subspan.unbind(a, a), subspan.hamilton_product(a, a), subspan.bundle(a)):
        assert result.dtype == wide
    if dtype not in (torch.bfloat16, torch.float16):
        assert subspan.bind(a.numpy(), a.numpy()).dtype == a.numpy().dtype


def recalled(architecture: str, n: int, pairs: int, items: int, trials: int, seed: int) -> float:
    """How often the value bound to a key, in a bundle of pairs, is the item of memory nearest to what is unbound."""
    rng = np.random.default_rng(seed)
    right = total = 0
    for _ in range(trials):
        if architecture == "map":
            memory, keys = (rng.choice([-1.0, 1.0], (count, n)) for count in (items, pairs))
        else:
            memory, keys = (rng.standard_normal((count, n)) / math.sqrt(n) for count in (items, pairs))
        values = rng.choice(items, pairs, replace=False)
        trace = subspan.bundle(subspan.bind(keys, memory[values], architecture=architecture))
        found = (subspan.unbind(trace, keys, architecture=architecture) @ memory.T).argmax(1)
        right, total = right + int((found == values).sum()), total + pairs
    return right / total


def capacity(n: int, pairs: int, items: int) -> float:
    """Frady, Kleyko, Sommer 2018, equation 2.13 with a sensitivity of sqrt(n / pairs): the probability that the right
    one of `items` inner products, normal about 1, exceeds all others, normal about 0."""
    s = math.sqrt(n / pairs)
    h = np.linspace(-9, 9, 4001)
    below = np.vectorize(lambda t: 0.5 * math.erfc(-t / math.sqrt(2)))(h + s)
    density = np.exp(-h * h / 2) / math.sqrt(2 * math.pi)
    return float(np.trapezoid(density * below ** (items - 1), h))


@pytest.mark.parametrize(("n", "pairs"), [(128, 8), (256, 20), (512, 20), (512, 60)])
def test_capacity_of_map(n: int, pairs: int) -> None:
    """To four standard deviations of the count, and the O(1 / n) by which signs are not normal."""
    trials, items = 4000 // pairs, 200
    expected = capacity(n, pairs, items)
    deviation = math.sqrt(expected * (1 - expected) / (trials * pairs))
    assert 0.3 < expected < 0.9999
    assert abs(recalled("map", n, pairs, items, trials, n + pairs) - expected) < 4 * deviation + 2 / n + 0.01


@pytest.mark.parametrize(("pairs", "items"), [(3, 50), (6, 200), (10, 500)])
def test_capacity_of_hrr(pairs: int, items: int) -> None:
    """Plate 1995, appendix E: with n = 4.5 (k + 0.7) ln(m / (30 q^4)) all k pairs of m items are recalled with an error
    of at most q in each; and a quarter of that many dimensions does not do."""
    q = 0.01
    n = math.ceil(4.5 * (pairs + 0.7) * math.log(items / (30 * q**4)))
    assert 1 - recalled("hrr", n, pairs, items, 3000 // pairs, pairs) <= q
    assert 1 - recalled("hrr", n // 8, pairs, items, 3000 // pairs, pairs) > q


BAD: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "length": (subspan.bind, (torch.ones(3), torch.ones(4)), {}, ValueError, r"bind: b: expected \(\*batch, 3\)"),
    "name": (subspan.bind, (torch.ones(3),) * 2, {"architecture": "fhrr"}, ValueError, "bind: architecture: expected"),
    "list": (subspan.unbind, ([1.0], torch.ones(1)), {}, TypeError, "unbind: bound: expected a torch tensor"),
    "library": (subspan.unbind, (torch.ones(1), np.ones(1)), {}, TypeError, "unbind: key: expected the array library"),
    "batch": (subspan.bind, (torch.ones(2, 3), torch.ones(4, 3)), {}, ValueError, "bind: b: expected batch dimensions"),
    "axis": (subspan.bundle, (torch.ones(2, 3),), {"axis": 2}, ValueError, "bundle: axis: expected one of the 2"),
    "axis type": (subspan.bundle, (torch.ones(2, 3),), {"axis": 0.0}, TypeError, "bundle: axis: expected an integer"),
    "one vector": (subspan.bundle, (torch.ones(3),), {}, ValueError, "bundle: items: expected at least 2 dimensions"),
    "no quaternions": (
        subspan.hamilton_product,
        (torch.ones(6),) * 2,
        {},
        ValueError,
        r"hamilton_product: x: expected a length that 4 divides \(4 and 8 are the nearest\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_arguments(name: str) -> None:
    function, arguments, options, error, message = BAD[name]
    with pytest.raises(error, match=message):
        function(*arguments, **options)
