"""Losses of column means beyond the op table: masks, running means, zeros, batches' bias; and what they estimate."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import subspan
from sample_arrays import normal
from subspan.reference import sparse as reference

DOUBLE = torch.float64


def sparse(seed: int, *shape: int, density: float = 0.3) -> torch.Tensor:
    values = normal(seed, *shape)
    return torch.where(torch.from_numpy(np.random.default_rng(seed + 99).random(shape) < density), values, 0.0)


def gradient(function: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = x.clone().requires_grad_()
    value = function(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


FORMS = {
    "flops": (subspan.flops_loss, reference.flops_loss),
    "unbiased": (partial(subspan.flops_loss, unbiased=True), partial(reference.flops_loss, unbiased=True)),
    "l1": (subspan.l1_loss, reference.l1_loss),
}


@pytest.mark.parametrize("form", FORMS)
def test_masked_row_is_a_row_of_zeros_whatever_it_holds(form: str) -> None:
    loss, formula = FORMS[form]
    x, mask = normal(1, 9, 5), torch.tensor([1, 1, 0, 1, 0, 1, 1, 1, 0]).bool()
    zeroed = torch.where(mask[:, None], x, 0.0)
    value, grad = gradient(lambda t: loss(t, row_mask=mask), x)
    assert abs(float(value) - formula(x.numpy(), row_mask=mask.numpy())) < 1e-14
    expected, expected_grad = gradient(loss, zeroed)
    assert value == expected and torch.equal(grad, expected_grad)
    garbage = torch.where(mask[:, None], x, torch.nan)
    again, grad = gradient(lambda t: loss(t, row_mask=mask), garbage)
    assert again == value and torch.equal(grad, expected_grad)
    assert torch.autograd.gradcheck(lambda t: loss(t, row_mask=mask), x.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda t: loss(t, row_mask=mask), x)


@pytest.mark.parametrize("form", FORMS)
def test_masks_of_any_batch_stride_and_library(form: str) -> None:
    loss, formula = FORMS[form]
    x = normal(2, 2, 6, 4)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()[:, None].mT.contiguous().mT
    values = loss(x, row_mask=mask)
    assert values.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            assert abs(float(values[i, j]) - formula(x[j].numpy(), row_mask=mask[i, 0].numpy())) < 1e-14
    numpy = loss(x.numpy(), row_mask=mask.numpy())
    assert isinstance(numpy, np.ndarray) and np.array_equal(numpy, values.numpy())
    mapped = torch.vmap(lambda m: loss(x, row_mask=m))(mask)
    assert torch.allclose(mapped, values, rtol=1e-14)


@pytest.mark.parametrize(("name", "size"), [("flops_loss", 1e19), ("l1_loss", 1e38)])
def test_loss_beyond_the_largest_number_is_nan(name: str, size: float) -> None:
    x = torch.full((1, 16), size, requires_grad=True)
    loss = getattr(subspan, name)(x)
    (grad,) = torch.autograd.grad(loss, x)
    assert loss.isnan() and grad.isnan().all()


@pytest.mark.parametrize("form", FORMS)
def test_gradient_of_zeros_is_zero(form: str) -> None:
    """Where relu has cut an activation off, the subgradient of its magnitude leaves it there."""
    loss, _ = FORMS[form]
    x = sparse(3, 40, 30)
    x[:, 4] = 0
    x[5] = 0
    x[7, 2] = -0.0
    _, grad = gradient(loss, x)
    assert not grad[x == 0].any()
    # A magnitude that is alone in its column pairs with no other row.
    alone = (x != 0) & ((x != 0).sum(0) == 1) if form == "unbiased" else torch.zeros_like(x).bool()
    assert (grad.sign() == x.sign())[~alone].all()


def test_unbiased_estimate_is_the_mean_over_batches() -> None:
    """Over all batches of two rows it averages to the value of the whole, which the squares overstate."""
    x = sparse(4, 7, 12).abs()
    pairs = [x[[i, k]] for i in range(7) for k in range(i)]
    whole = subspan.flops_loss(x, unbiased=True)
    assert torch.allclose(torch.stack([subspan.flops_loss(p, unbiased=True) for p in pairs]).mean(), whole, rtol=1e-13)
    assert torch.stack([subspan.flops_loss(p) for p in pairs]).mean() > 2 * whole
    assert subspan.flops_loss(x[:1], unbiased=True) == 0
    assert not gradient(lambda t: subspan.flops_loss(t, unbiased=True), x[:1])[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.bfloat16], ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_running_means(decay: float, dtype: torch.dtype) -> None:
    x, running = normal(5, 8, 6, dtype=dtype), normal(6, 6, dtype=dtype).abs()
    leaf = x.clone().requires_grad_()
    loss, means = subspan.flops_loss(leaf, ema=(running, decay))
    value, expected = reference.flops_loss(x.double().numpy(), ema=(running.double().numpy(), decay))
    compute = DOUBLE if dtype == DOUBLE else torch.float32
    assert loss.dtype == means.dtype == compute and not means.requires_grad
    relative = 20 * torch.finfo(compute).eps
    np.testing.assert_allclose(means.numpy(), expected, rtol=relative)
    np.testing.assert_allclose(loss.detach().numpy(), value, rtol=relative)
    (grad,) = torch.autograd.grad(loss, leaf)
    exact = 2 / 8 * torch.from_numpy(expected) * x.double().sign()
    torch.testing.assert_close(grad.double(), exact, rtol=max(relative, torch.finfo(dtype).eps), atol=0)


def test_running_means_of_no_memory_are_the_plain_loss() -> None:
    x = normal(7, 6, 5)
    plain = gradient(subspan.flops_loss, x)
    forgetful = gradient(lambda t: subspan.flops_loss(t, ema=(torch.ones(5, dtype=DOUBLE), 0.0))[0], x)
    assert torch.equal(plain[0], forgetful[0]) and torch.equal(plain[1], forgetful[1])


def test_gradient_of_running_means_is_a_derivative() -> None:
    """Of the loss over 1 - decay, of any order: two derivatives by differences, and by the composite."""
    x, running, decay = normal(8, 4, 3).requires_grad_(), normal(9, 3).abs(), 0.8

    class Undone(torch.autograd.Function):
        """The value over 1 - decay, whose derivative the gradient is."""

        @staticmethod
        def forward(value: torch.Tensor) -> torch.Tensor:
            return value / (1 - decay)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, *upstream: torch.Tensor) -> torch.Tensor:
            return upstream[0]

    def potential(t: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = Undone.apply(subspan.flops_loss(t, ema=(running, decay))[0])
        return value

    assert torch.autograd.gradcheck(potential, x)
    assert torch.autograd.gradgradcheck(potential, x)
    composite = pytest.importorskip("subspan.composite.sparse")
    value, means = composite.flops_loss(x, None, None, running, composite.MEANS, decay, False)
    ours, ours_means = subspan.flops_loss(x, ema=(running, decay))
    torch.testing.assert_close(value, ours, rtol=1e-14, atol=0)
    torch.testing.assert_close(means, ours_means, rtol=1e-14, atol=0)
    for one, other in zip(torch.autograd.grad(value, x), torch.autograd.grad(ours, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=0)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no pair": ({"ema": torch.ones(5)}, TypeError, "ema"),
    "decay of 1": ({"ema": (torch.ones(5), 1.0)}, ValueError, "ema"),
    "decay below 0": ({"ema": (torch.ones(5), -0.1)}, ValueError, "ema"),
    "decay of text": ({"ema": (torch.ones(5), "0.9")}, TypeError, "ema"),
    "means of rows": ({"ema": (torch.ones(7), 0.9)}, ValueError, "ema"),
    "means of another library": ({"ema": (np.ones(5), 0.9)}, TypeError, "ema"),
    "means with a gradient": ({"ema": (torch.ones(5, requires_grad=True), 0.9)}, ValueError, "ema"),
    "integer means": ({"ema": (torch.ones(5).long(), 0.9)}, TypeError, "ema"),
    "unbiased running means": ({"ema": (torch.ones(5), 0.9), "unbiased": True}, ValueError, "unbiased"),
    "running means of two sides": ({"ema": (torch.ones(5), 0.9), "y": torch.ones(3, 5)}, ValueError, "ema"),
    "mask of another library": ({"row_mask": np.ones(7, bool)}, TypeError, "row_mask"),
    "mask of another batch": ({"row_mask": torch.ones(4, 7).bool(), "y": torch.ones(3, 2, 5)}, ValueError, "row_mask"),
    "text for a group": ({"group": "gloo"}, TypeError, "group"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case: str) -> None:
    options, error, name = BAD[case]
    with pytest.raises(error, match=f"flops_loss: {name}: expected .*, got "):
        subspan.flops_loss(torch.ones(7, 5), **options)


# --- measures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_measures(dtype: torch.dtype, kind: str) -> None:
    q, d = sparse(10, 11, 60).to(dtype), sparse(11, 23, 60, density=0.1).to(dtype)
    exact = [reference.flops_metric(q.double(), d.double()), reference.flops_metric(q.double())]
    exact += [reference.r_sub(q.double(), d.double()), reference.r_sub(q.double())]
    if kind == "numpy":
        if dtype == torch.bfloat16:
            pytest.skip("NumPy has no bfloat16")
        q, d = q.numpy(), d.numpy()
    found = [subspan.flops_metric(q, d), subspan.flops_metric(q), subspan.r_sub(q, d), subspan.r_sub(q)]
    for value, expected in zip(found, exact, strict=True):
        assert value.dtype in ((torch.float64, np.float64) if dtype == DOUBLE else (torch.float32, np.float32))
        np.testing.assert_allclose(float(value), expected, rtol=50 * torch.finfo(torch.float32).eps)


def test_metric_counts_the_products_of_nonzeros() -> None:
    """Exactly: sum_{q, d} |supp q & supp d| = sum_j n_j^q n_j^d."""
    q, d = sparse(12, 16, 50), sparse(13, 32, 50)
    products = ((q != 0).double() @ (d != 0).double().mT).sum()
    assert subspan.flops_metric(q, d) * 16 * 32 == products


def test_measures_of_batches_and_of_nothing() -> None:
    q, d = sparse(14, 3, 1, 8, 20), sparse(15, 2, 5, 20)
    assert subspan.flops_metric(q, d).shape == subspan.r_sub(q, d).shape == (3, 2)
    assert subspan.flops_metric(q, d)[2, 1] == subspan.flops_metric(q[2, 0], d[1])
    assert subspan.flops_metric(q[:0, 0]).shape == (0,)
    assert subspan.flops_metric(torch.zeros(0, 4)) == 0 and subspan.r_sub(torch.zeros(3, 4)).isnan()
    assert np.isnan(subspan.r_sub(np.zeros((3, 4))))
    q.requires_grad_()
    assert not subspan.flops_metric(q, d).requires_grad and not subspan.r_sub(q).requires_grad


def test_measures_under_transforms() -> None:
    q, d = sparse(16, 4, 8, 20), sparse(17, 4, 5, 20)
    mapped = torch.vmap(subspan.r_sub)(q, d)
    torch.testing.assert_close(mapped, subspan.r_sub(q, d), rtol=1e-14, atol=0)


@pytest.mark.no_sanitizer
@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")
def test_measures_and_running_means_compile() -> None:
    q, d, running = sparse(18, 8, 20).requires_grad_(), sparse(19, 5, 20), torch.ones(20, dtype=DOUBLE)
    mask = torch.arange(8) < 6

    def both(q: torch.Tensor, d: torch.Tensor, running: torch.Tensor, mask: torch.Tensor) -> Any:
        return subspan.r_sub(q, d), *subspan.flops_loss(q, row_mask=mask, ema=(running, 0.9))

    torch._dynamo.reset()
    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    for found, expected in zip(compiled(q, d, running, mask), both(q, d, running, mask), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    found, expected = compiled(q, d, running, mask)[1], both(q, d, running, mask)[1]
    gradients = [torch.autograd.grad(loss, q)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-14, atol=0)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["flops_metric", "r_sub"])
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_measures_refuse(name: str, kind: str) -> None:
    array = torch.ones if kind == "torch" else np.ones
    function = getattr(subspan, name)
    other = np.ones if kind == "torch" else torch.ones
    for error, argument, call in (
        (TypeError, "q", lambda: function([[1.0]])),
        (ValueError, "q", lambda: function(array(3))),
        (TypeError, "d", lambda: function(array((3, 4)), other((3, 4)))),
        (ValueError, "d", lambda: function(array((3, 4)), array((3, 5)))),
        (ValueError, "d", lambda: function(array((2, 3, 4)), array((3, 3, 4)))),
        (ValueError, "d", lambda: function(array((3, 4)), array(4))),
    ):
        with pytest.raises(error, match=f"{name}: {argument}: expected .*, got "):
            call()
