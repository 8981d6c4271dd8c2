"""CRATE's blocks against the published formulas, written out in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import subspan
from sample_arrays import normal
from subspan.nn import ISTA, CRATEBlock, SubspaceAttention, layer_coding_rate
from subspan.ops.dense import affine_product


def published_ista(x: Tensor, weight: Tensor, step: float = 0.1, lambd: float = 0.1) -> Tensor:
    """Three products, as in the repository."""
    gradient = x @ weight - (x @ weight.T) @ weight
    return torch.relu(x + step * gradient - step * lambd)


def published_attention(x: Tensor, state: dict[str, Tensor], heads: int) -> Tensor:
    w = (x @ state["qkv.weight"].T).unflatten(-1, (heads, -1)).transpose(-2, -3)
    weights = torch.softmax(w @ w.mT / w.shape[-1] ** 0.5, -1)
    mixed = (weights @ w).transpose(-2, -3).flatten(-2)
    if "to_out.0.weight" not in state:
        return mixed
    return mixed @ state["to_out.0.weight"].T + state["to_out.0.bias"]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def check(actual: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)
    upstream = normal(9, *actual.shape)
    gradients = torch.autograd.grad(actual, inputs, upstream)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, inputs, upstream), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("lambd", [0.1, 0.5])
def test_ista_is_the_published_layer(lambd: float) -> None:
    module = ISTA(24, step_size=0.3, lambd=lambd).double()
    x = normal(1, 2, 9, 24).requires_grad_()
    check(module(x), published_ista(x, module.weight, 0.3, lambd), [x, module.weight])


def test_ista_of_an_orthonormal_dictionary_is_soft_thresholding() -> None:
    """x D - (x D^T) D = x (D - D^T D): with D^T D = I and D = I nothing is left of the gradient."""
    x = normal(2, 7, 5)
    torch.testing.assert_close(subspan.ista(x, torch.eye(5).double(), 0.5, 0.4), torch.relu(x - 0.2))


@pytest.mark.parametrize(("heads", "dim_head"), [(3, 4), (1, 12), (1, 8)])
def test_attention_is_the_published_layer(heads: int, dim_head: int) -> None:
    module = SubspaceAttention(12, heads, dim_head).double()
    x = normal(3, 2, 7, 12).requires_grad_()
    check(module(x), published_attention(x, dict(module.named_parameters()), heads), [x, *module.parameters()])


def test_block_is_the_published_layer_and_loads_its_checkpoints() -> None:
    """Names and shapes of one entry of transformer.layers."""
    dim, heads, dim_head = 12, 3, 4
    shapes = {
        "0.norm.weight": (dim,),
        "0.norm.bias": (dim,),
        "0.fn.qkv.weight": (heads * dim_head, dim),
        "0.fn.to_out.0.weight": (dim, heads * dim_head),
        "0.fn.to_out.0.bias": (dim,),
        "1.norm.weight": (dim,),
        "1.norm.bias": (dim,),
        "1.fn.weight": (dim, dim),
    }
    state = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    block = CRATEBlock(dim, heads, dim_head).double()
    assert list(block.state_dict()) == list(shapes)
    block.load_state_dict(state)
    x = normal(4, 2, 6, dim).requires_grad_()
    attention = {name.removeprefix("0.fn."): value for name, value in block.named_parameters() if "0.fn." in name}
    parameters = dict(block.named_parameters())
    normed = layer_norm(x, parameters["0.norm.weight"], parameters["0.norm.bias"])
    middle = x + published_attention(normed, attention, heads)
    normed = layer_norm(middle, parameters["1.norm.weight"], parameters["1.norm.bias"])
    check(block(x), published_ista(normed, parameters["1.fn.weight"]), [x, *block.parameters()])


def test_single_precision_and_half_precision_modules() -> None:
    block = CRATEBlock(16, 2, 8)
    x = normal(5, 3, 5, 16)
    exact = block.double()(x)
    torch.testing.assert_close(block.float()(x.float()).double(), exact, rtol=1e-4, atol=1e-5)
    assert block.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(block(x.bfloat16()).double(), exact, rtol=0.1, atol=0.1)


def test_dropout_is_for_training_only() -> None:
    module, x = SubspaceAttention(12, 3, 4, dropout=0.5).double(), normal(6, 2, 7, 12)
    torch.manual_seed(0)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))
    torch.testing.assert_close(module(x), published_attention(x, dict(module.named_parameters()), 3))


def test_layer_coding_rate_is_the_published_monitor() -> None:
    w = normal(7, 2, 3, 10, 4)
    unit = w / w.norm(dim=-1, keepdim=True)
    log_dets = torch.logdet(torch.eye(10).double() + 4 / (10 * 0.01) * unit @ unit.mT)  # the side of the tokens
    torch.testing.assert_close(layer_coding_rate(w), log_dets.sum(-1) / 2)
    block = CRATEBlock(12, 3, 4).double()
    x = normal(8, 2, 10, 12)
    projections = block.attention.projections(block.compress.norm(x))
    rate = block.layer_coding_rate(x)
    torch.testing.assert_close(rate, layer_coding_rate(projections).detach())
    assert not rate.requires_grad
    with pytest.raises(ValueError, match=r"layer_coding_rate: projections: expected .*\(4, 4\)"):
        layer_coding_rate(torch.eye(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_affine_product_of_any_layout(dtype: torch.dtype) -> None:
    """Transposed operands are views; depth 0, more than one block of depth, rows and columns beside whole tiles."""
    eps = torch.finfo(dtype).eps
    for m, n, k in itertools.product((1, 7, 50, 101), (1, 16, 130), (0, 1, 33, 1500)):
        for a, b, e in itertools.product((False, True), (False, True), ("none", "row", "transposed")):
            A = normal(1, k, m, dtype=dtype).T if a else normal(1, m, k, dtype=dtype)
            B = normal(2, k, n, dtype=dtype).T if b else normal(2, n, k, dtype=dtype)
            E = {
                "none": None,
                "row": normal(3, n, dtype=dtype).expand(m, n),
                "transposed": normal(3, n, m, dtype=dtype).T,
            }[e]
            expected = -0.7 * A.double() @ B.double().T + (0 if E is None else E.double()) + 0.3
            bound = 2 * (k + 3) * eps * (A.double().abs() @ B.double().abs().T + 5)
            for relu in (False, True):
                result = affine_product(A, B, E, -0.7, 0.3, relu)
                assert ((result - (expected.relu() if relu else expected)).abs() <= bound).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ISTA(0), ValueError, "ISTA: dim: "),
        (lambda: ISTA(4, step_size="1"), TypeError, "ISTA: step_size: "),  # type: ignore[arg-type]
        (lambda: SubspaceAttention(8, heads=0), ValueError, "SubspaceAttention: heads: "),
        (lambda: SubspaceAttention(8, dropout=1.5), ValueError, "SubspaceAttention: dropout: "),
        (lambda: CRATEBlock(8, 2.5), TypeError, "SubspaceAttention: heads: "),  # type: ignore[arg-type]
        (lambda: ISTA(4)(torch.ones(2, 5)), ValueError, r"ista: D: .*\(2, 5\)"),
    ],
)
def test_bad_input(make, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        make()
