"""subspace_logits: the published head, layouts of the bases, the kink at 0, scales of float32, memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import subspan
from resident_memory import extra_bytes, needs_counter
from sample_arrays import normal
from subspan import _native
from subspan.composite import subspace_logits as composite

REAL = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
LAYOUT = pytest.mark.parametrize("layout", ["columns", "rows"])


def published_head(x: Tensor, weight: Tensor, classes: int, k: int) -> Tensor:
    """GCR's: a linear layer of classes * k outputs, whose groups of k are normed."""
    return 25 * torch.nn.functional.linear(x / x.norm(dim=-1, keepdim=True), weight).reshape(-1, classes, k).norm(dim=2)


@pytest.mark.parametrize(
    ("classes", "k", "n", "rows"), [(7, 3, 20, 9), (5, 8, 33, 70), (12, 16, 300, 20), (3, 1, 8, 4)]
)
@pytest.mark.parametrize("inside", [False, True], ids=["normalised before", "normalize"])
def test_is_the_published_head(classes: int, k: int, n: int, rows: int, inside: bool) -> None:
    weight, x = normal(1, classes * k, n).requires_grad_(), normal(2, rows, n).requires_grad_()
    features = x if inside else x / x.norm(dim=-1, keepdim=True)
    W = weight.view(classes, k, n)
    actual = subspan.subspace_logits(features, W, scale=25.0, layout="rows", normalize=inside)
    expected = published_head(x, weight, classes, k)
    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)
    upstream = normal(3, rows, classes)
    gradients = torch.autograd.grad(actual, [x, weight], upstream)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, [x, weight], upstream), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-11, atol=1e-11)


@REAL
@pytest.mark.parametrize(("k", "n"), [(1, 5), (3, 17), (8, 48), (8, 50), (16, 64), (24, 33)])
def test_both_layouts_give_the_same_bits(k: int, n: int, dtype: torch.dtype) -> None:
    """So do bases that are part of a larger array, in every order of its dimensions."""
    x, bases, upstream = normal(1, 37, n, dtype=dtype), normal(2, 6, n, k, dtype=dtype), normal(3, 37, 6, dtype=dtype)

    def results(W: Tensor, layout: str) -> list[Tensor]:
        given, W = x.clone().requires_grad_(), W.detach().requires_grad_()
        logits = subspan.subspace_logits(given, W, layout=layout)
        d_x, d_W = torch.autograd.grad(logits, [given, W], upstream)
        return [logits.detach(), d_x, d_W if layout == "columns" else d_W.mT]

    expected = results(bases, "columns")
    wider = normal(4, 7, n + 3, k + 2, dtype=dtype)
    wider[1:, 2 : 2 + n, 1 : 1 + k] = bases
    for W, layout in [
        (bases.mT.contiguous(), "rows"),
        (bases.mT, "rows"),
        (bases.mT.contiguous().mT, "columns"),
        (wider[1:, 2 : 2 + n, 1 : 1 + k], "columns"),
        (wider.transpose(0, 1).contiguous().transpose(0, 1)[1:, 2 : 2 + n, 1 : 1 + k], "columns"),
        (wider.permute(2, 0, 1).contiguous().permute(1, 0, 2)[1:, 1 : 1 + k, 2 : 2 + n], "rows"),
    ]:
        for result, wanted in zip(results(W, layout), expected, strict=True):
            assert torch.equal(result, wanted)


@LAYOUT
def test_gradient_lies_in_memory_like_the_bases(layout: str) -> None:
    """An optimiser's buffers follow the parameter: a gradient in another order would be copied at every step."""
    W = normal(1, 4, 6, 5).requires_grad_()
    subspan.subspace_logits(normal(2, 3, 6 if layout == "columns" else 5), W, layout=layout).sum().backward()
    assert W.grad is not None and W.grad.stride() == W.stride()


def test_bases_broadcast_with_features() -> None:
    x = normal(1, 2, 5, 6)
    for own in [(), (5,), (2, 1), (2, 5), (1, 1)]:
        W = normal(2, *own, 3, 6, 2)
        expected = torch.einsum("ban,bacnk->back", x, W.expand(2, 5, 3, 6, 2)).norm(dim=-1)
        torch.testing.assert_close(subspan.subspace_logits(x, W), expected)
    expected = torch.einsum("n,bcnk->bck", x[0, 0], W := normal(3, 4, 3, 6, 2)).norm(dim=-1)
    torch.testing.assert_close(subspan.subspace_logits(x[0, 0], W), expected)


# --- the kink ---


def kinks() -> dict[str, tuple[Tensor, Tensor]]:
    """Features and bases with projections of length 0: a zero feature, a class it is orthogonal to, a zero basis."""
    x, W = normal(1, 3, 4), normal(2, 3, 4, 2)
    zero_feature = x.clone()
    zero_feature[1] = 0
    axes = torch.eye(4, dtype=torch.float64)
    zero_basis = W.clone()
    zero_basis[2] = 0
    return {
        "zero feature": (zero_feature, W),
        "orthogonal": (axes, torch.stack([axes[:, :2], axes[:, 2:]])),
        "zero basis": (x, zero_basis),
    }


@REAL
@pytest.mark.parametrize("name", kinks())
def test_gradient_is_zero_where_the_projection_is(name: str, dtype: torch.dtype) -> None:
    """Finite in every order; torch's norm has a second derivative of NaN there. The other classes are not affected."""
    x, W = (t.to(dtype).requires_grad_() for t in kinks()[name])
    logits = subspan.subspace_logits(x, W, scale=3.0)
    zero = logits == 0
    assert zero.any() and not zero.all()
    d_x, d_W = torch.autograd.grad(logits, [x, W], zero.to(dtype), retain_graph=True)
    assert not d_x.any() and not d_W.any()
    z = torch.einsum("bn,cnk->bck", x, W)
    directions = torch.where(zero[..., None], 0, z) / torch.where(zero, 1, z.norm(dim=-1))[..., None]
    upstream = normal(3, *logits.shape, dtype=dtype)
    u = 3 * upstream[..., None] * directions
    expected = torch.einsum("bck,cnk->bn", u, W), torch.einsum("bck,bn->cnk", u, x)
    gradients = torch.autograd.grad(logits, [x, W], upstream, create_graph=True)
    plain = torch.autograd.grad(subspan.subspace_logits(x, W, scale=3.0), [x, W], upstream)
    for gradient, kernel, wanted in zip(gradients, plain, expected, strict=True):
        torch.testing.assert_close(gradient, wanted)
        torch.testing.assert_close(kernel, wanted)
    second = torch.autograd.grad(sum(g.square().sum() for g in gradients), [x, W])
    assert all(derivative.isfinite().all() for derivative in second)
    lengths = composite.subspace_logits(x, W.mT, 3.0, False)[0]
    for gradient, wanted in zip(torch.autograd.grad(lengths, [x, W], upstream), expected, strict=True):
        torch.testing.assert_close(gradient, wanted)


# --- scales ---


@pytest.mark.parametrize("size", [1e-37, 1e-25, 1e-12, 1e12, 1e25, 1e37])
def test_no_length_of_float32_overflows_or_vanishes(size: float) -> None:
    """Nor does a direction: the gradient in x does not depend on the size of x. torch's norm over a dimension gives
    infinity at 1e25 and 0 at 1e-25."""
    x, W = normal(1, 5, 6).float(), normal(2, 3, 6, 4).float()
    scaled = (x.double() * size).float().requires_grad_()
    expected = torch.einsum("bn,cnk->bck", scaled.detach().double(), W.double()).norm(dim=-1)
    d_expected = torch.autograd.grad(subspan.subspace_logits(x.requires_grad_(), W).sum(), x)[0]
    for logits in (subspan.subspace_logits(scaled, W), composite.subspace_logits(scaled, W.mT, 1.0, False)[0]):
        assert logits.isfinite().all()
        torch.testing.assert_close(logits.detach().double(), expected, rtol=1e-5, atol=1e-43)
        (d_x,) = torch.autograd.grad(logits.sum(), scaled)
        torch.testing.assert_close(d_x, d_expected, rtol=1e-5, atol=1e-5)


def test_float32_is_no_worse_than_torch() -> None:
    x, W = normal(1, 64, 768).float(), normal(2, 40, 8, 768).float()
    exact = torch.einsum("bn,ckn->bck", x.double(), W.double()).norm(dim=-1)
    plain = (x @ W.flatten(0, 1).T).reshape(64, 40, 8).norm(dim=-1)
    ours = subspan.subspace_logits(x, W, layout="rows")
    assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max()


# --- memory ---


@needs_counter
def test_no_projections_are_stored_without_a_gradient() -> None:
    """Neither as an array nor in the kernel's own memory, which is some strips. With a gradient they are: the measure
    sees them."""
    rows, n, classes, k = 800, 64, 2000, 16
    projections = 4 * rows * classes * k
    x, W = torch.ones(rows, n), torch.ones(classes, n, k)
    assert extra_bytes(lambda: subspan.subspace_logits(x, W)) < projections / 4
    W.requires_grad_()
    with torch.no_grad():
        assert extra_bytes(lambda: subspan.subspace_logits(x, W)) < projections / 4
    assert extra_bytes(lambda: subspan.subspace_logits(x, W)) > projections / 2


def test_only_the_gradient_asked_for_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    from subspan import _route

    wanted: list[tuple[bool, bool]] = []
    kernel = _route._ENTRIES["subspace_logits_gradient"]
    module = __import__("subspan.ops.subspace_logits", fromlist=["_subspace_logits_gradient"])
    monkeypatch.setattr(
        module, "_subspace_logits_gradient", lambda count, *args: wanted.append(args[-2:]) or kernel(count, *args)
    )
    x, W = normal(1, 5, 6), normal(2, 3, 6, 2)
    subspan.subspace_logits(x.clone().requires_grad_(), W).sum().backward()
    subspan.subspace_logits(x, W.clone().requires_grad_()).sum().backward()
    assert wanted == [(True, False), (False, True)]


def test_compiled_functions_check_their_arrays() -> None:
    x, W = np.ones((4, 5)), np.ones((3, 2, 5))
    logits, z = np.empty((4, 3)), np.empty((6, 4))
    _native.cpu.subspace_logits(x, W, logits, z, 1.0, False, 1)
    np.testing.assert_allclose(logits, 5 * math.sqrt(2))
    for arguments in [
        (x, W[:, :, :4], logits, z),
        (x, W, logits[:, :2], z),
        (x, W, logits, z[:5]),
        (x, W[0], logits, z),
        (x, W, logits.astype(np.float32), z),
    ]:
        with pytest.raises(ValueError, match=r"^subspace_logits: "):
            _native.cpu.subspace_logits(*arguments, 1.0, False, 1)
    d_x, d_W, nothing = np.empty((4, 5)), np.empty((3, 2, 5)), np.empty(0)
    _native.cpu.subspace_logits_gradient(x, W, z, logits, d_x, nothing, 1.0, False, False, True, False, 1)
    for arguments in [(z[:4], logits, d_x, d_W), (z, logits.T, d_x, d_W), (z, logits, d_x, nothing)]:
        with pytest.raises(ValueError, match=r"^subspace_logits: "):
            _native.cpu.subspace_logits_gradient(x, W, *arguments, 1.0, False, False, True, True, 1)
