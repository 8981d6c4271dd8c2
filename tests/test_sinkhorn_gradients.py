"""The three gradients of Sinkhorn's scaling: each is what it says, and they agree where they should."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import subspan
from sample_arrays import normal
from subspan.reference.sinkhorn import log_scalings

DOUBLE = torch.float64
SHAPES = pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (1, 5), (5, 1), (1, 1), (70, 90)], ids=str)
GRADS = pytest.mark.parametrize("grad", ["last", "unrolled", "implicit"])


def gradient_of(scores: Tensor, upstream: Tensor, temperature: float, iterations: int, grad: str) -> Tensor:
    leaf = scores.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(subspan.sinkhorn(leaf, temperature, iterations, grad), leaf, upstream)
    return gradient


@SHAPES
@pytest.mark.parametrize("iterations", [1, 4, 5])
def test_last_is_the_softmax_with_columns_held(shape: tuple[int, int], iterations: int) -> None:
    """First and second derivative."""
    scores, temperature = normal(18, *shape), 0.6
    log_v = torch.from_numpy(log_scalings(scores.numpy() / temperature, iterations)[-1][1])
    first, second = normal(19, *shape), normal(20, *shape)
    pairs = []
    for function in (
        lambda S: subspan.sinkhorn(S, temperature, iterations, "last"),
        lambda S: (S / temperature + log_v).softmax(-1),
    ):
        leaf = scores.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(leaf), leaf, first, create_graph=True)
        pairs.append((gradient.detach(), torch.autograd.grad(gradient, leaf, second)[0]))
    torch.testing.assert_close(pairs[0][0], pairs[1][0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(pairs[0][1], pairs[1][1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient_of(scores, first, temperature, iterations, "last"), pairs[1][0])


@SHAPES
@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("temperature", [0.05, 0.6])
def test_unrolled_is_autograd_of_the_loop(shape: tuple[int, int], iterations: int, temperature: float) -> None:
    scores, upstream = normal(21, *shape), normal(22, *shape)
    leaf = scores.clone().requires_grad_()
    x, mass = leaf / temperature, math.log(shape[0] / shape[1])
    f, g = torch.zeros(shape[0], 1, dtype=DOUBLE), torch.zeros(shape[1], dtype=DOUBLE)
    for remaining in range(iterations, 0, -1):
        if remaining % 2:
            f = -(x + g).logsumexp(1, keepdim=True)
        else:
            g = mass - (x + f).logsumexp(0)
    (expected,) = torch.autograd.grad((x + f + g).exp(), leaf, upstream)
    gradient = gradient_of(scores, upstream, temperature, iterations, "unrolled")
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12 / temperature)


@SHAPES
@pytest.mark.parametrize("iterations", [1, 5, 200])
def test_implicit_solves_the_adjoint_system(shape: tuple[int, int], iterations: int) -> None:
    """At P as returned, converged or not, against the least-squares solution of the singular system."""
    scores, upstream, temperature = normal(23, *shape), normal(24, *shape), 0.6
    P = subspan.sinkhorn(scores, temperature, iterations)
    system = torch.cat([torch.cat([P.sum(1).diag(), P], 1), torch.cat([P.mT, P.sum(0).diag()], 1)])
    rhs = torch.cat([(P * upstream).sum(1), (P * upstream).sum(0)])
    solution = torch.linalg.pinv(system, hermitian=True, rtol=1e-12) @ rhs
    torch.testing.assert_close(system @ solution, rhs)
    expected = P * (upstream - solution[: shape[0], None] - solution[shape[0] :]) / temperature
    gradient = gradient_of(scores, upstream, temperature, iterations, "implicit")
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-11)
    zero = torch.zeros(shape[0] + shape[1], dtype=DOUBLE)
    torch.testing.assert_close(torch.cat([gradient.sum(1), gradient.sum(0)]), zero, rtol=0, atol=1e-11)


@SHAPES
def test_unrolled_converges_to_implicit(shape: tuple[int, int]) -> None:
    scores, upstream = normal(25, *shape), normal(26, *shape)
    limit = gradient_of(scores, upstream, 1.0, 801, "implicit")
    errors = [
        float((gradient_of(scores, upstream, 1.0, iterations, "unrolled") - limit).abs().max())
        for iterations in (3, 21, 801)
    ]
    assert errors[2] <= 1e-11
    assert errors[1] <= errors[0] + 1e-11


def test_last_is_another_gradient() -> None:
    """Also in the limit."""
    scores, upstream = normal(27, 6, 6), normal(28, 6, 6)
    last, limit = (gradient_of(scores, upstream, 1.0, 801, grad) for grad in ("last", "implicit"))
    assert float((last - limit).norm() / limit.norm()) > 0.1


def test_one_half_step_has_one_gradient() -> None:
    scores, upstream = normal(29, 40, 30), normal(30, 40, 30)
    assert torch.equal(*(gradient_of(scores, upstream, 0.4, 1, grad) for grad in ("last", "unrolled")))


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (1, 4), (4, 1)], ids=str)
def test_implicit_gradient_is_that_of_the_limit(shape: tuple[int, int]) -> None:
    """Differences of a converged matrix, of first and second order."""
    scores = normal(31, *shape).requires_grad_()
    arguments = (lambda S: subspan.sinkhorn(S, 1.0, 301, "implicit"), scores)
    assert torch.autograd.gradcheck(*arguments, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(*arguments, fast_mode=True)


def test_implicit_gradient_of_matrices_that_fall_apart() -> None:
    """Two blocks have two null vectors, a permutation six: the factor must not break down, and each block's gradient is
    its own."""
    blocks = [normal(32, 3, 4), normal(33, 3, 2)]
    scores = torch.full((6, 6), -math.inf, dtype=DOUBLE)
    scores[:3, :4], scores[3:, 4:] = blocks[0], blocks[1]
    upstream = normal(34, 6, 6)
    gradient = gradient_of(scores, upstream, 1.0, 5, "implicit")
    P = subspan.sinkhorn(scores, 1.0, 5)
    for rows, columns in ((slice(3), slice(4)), (slice(3, 6), slice(4, 6))):
        block, G = P[rows, columns], upstream[rows, columns]
        system = torch.cat([torch.cat([block.sum(1).diag(), block], 1), torch.cat([block.mT, block.sum(0).diag()], 1)])
        rhs = torch.cat([(block * G).sum(1), (block * G).sum(0)])
        solution = torch.linalg.pinv(system, hermitian=True, rtol=1e-12) @ rhs
        expected = block * (G - solution[:3, None] - solution[3:])
        torch.testing.assert_close(gradient[rows, columns], expected, rtol=1e-8, atol=1e-11)
    permutation = torch.eye(6, dtype=DOUBLE)[torch.tensor([3, 0, 5, 1, 4, 2])]
    assert float(gradient_of(permutation, upstream, 1e-3, 5, "implicit").abs().max()) < 1e-9


@pytest.mark.no_sanitizer
@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("grad", ["last", "implicit"])
def test_other_gradients_compiled_and_mapped(grad: str) -> None:
    scores, upstream = normal(35, 3, 6, 4), normal(36, 3, 6, 4)
    expected = gradient_of(scores, upstream, 0.5, 5, grad)

    def loss(S: Tensor, G: Tensor) -> Tensor:
        return (subspan.sinkhorn(S, temperature=0.5, iterations=5, grad=grad) * G).sum()

    torch._dynamo.reset()
    leaf = scores.clone().requires_grad_()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(leaf, upstream), leaf)[0], expected)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(scores, upstream), expected)
    moved = torch.vmap(torch.func.grad(loss), in_dims=(2, None))(scores.movedim(0, 2), upstream[1])
    torch.testing.assert_close(moved[1], gradient_of(scores[1], upstream[1], 0.5, 5, grad))


@GRADS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_under_autocast(dtype: torch.dtype, grad: str) -> None:
    scores = normal(37, 12, 9, dtype=dtype)
    upstream = normal(38, 12, 9).float()
    gradient = gradient_of(scores, upstream, 0.5, 5, grad)
    assert gradient.dtype == dtype and subspan.sinkhorn(scores, 0.5).dtype == torch.float32
    assert torch.equal(gradient, gradient_of(scores.float(), upstream, 0.5, 5, grad).to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gradient, gradient_of(scores, upstream, 0.5, 5, grad))


@pytest.mark.parametrize("function", ["kernel", "composite"])
def test_no_matrix_is_saved_for_each_half_step(function: str) -> None:
    from subspan.composite import sinkhorn as composite

    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    scores = normal(39, 30, 20).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if function == "kernel":
            P = subspan.sinkhorn(scores, 0.5, 50, "unrolled")
        else:
            P = composite.sinkhorn(scores, 0.5, 50, composite.UNROLLED)
    assert 0 < sum(saved) <= 2 * scores.numel()
    P.sum().backward()
