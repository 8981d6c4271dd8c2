"""Hypercomplex convolutions: against the framework's with a sum of Kronecker products, adjoints, memory, arguments."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import subspan
from resident_memory import extra_bytes, needs_counter
from sample_arrays import normal
from subspan import nn
from subspan.ops import phm_conv as module

CONVOLUTIONS = {
    (dims, transposed): getattr(subspan, f"phm_conv_transpose{dims}d" if transposed else f"phm_conv{dims}d")
    for dims, transposed in itertools.product((1, 2, 3), (False, True))
}
every_convolution = pytest.mark.parametrize(("dims", "transposed"), CONVOLUTIONS, ids=str)


def kronecker_weight(A: Tensor, S: Tensor, transposed: bool) -> Tensor:
    """Tap by tap, the sum of Kronecker products; of a transposed convolution its transpose."""
    taps = S.flatten(3)
    matrices = [
        torch.stack([torch.kron(a, s) for a, s in zip(A, taps[..., t], strict=True)]).sum(0)
        for t in range(taps.shape[-1])
    ]
    W = torch.stack([m.mT if transposed else m for m in matrices], -1)
    return W.reshape(*W.shape[:2], *S.shape[3:])


def expected(x: Tensor, A: Tensor, S: Tensor, bias: Tensor | None, transposed: bool, **options: Any) -> Tensor:
    dims = S.ndim - 3
    function = getattr(torch.nn.functional, f"conv_transpose{dims}d" if transposed else f"conv{dims}d")
    result: Tensor = function(x, kronecker_weight(A, S, transposed), bias, **options)
    return result


def arrays(dims: int, items: int, size: int, dtype: torch.dtype = torch.float64, l: int = 3) -> tuple[Tensor, ...]:  # noqa: E741
    """x, A, S and a bias for a rule that is not square, with another size in every dimension."""
    x = normal(1, items, 2 * 5, *range(size, size + dims), dtype=dtype)
    return (
        x,
        normal(2, 3, 4, 2, dtype=dtype),
        normal(3, 3, l, 5, *(3, 2, 2)[:dims], dtype=dtype),
        normal(4, 4 * l, dtype=dtype),
    )


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded": {"padding": 1},
    "strided": {"stride": 2, "padding": 1},
    "dilated": {"dilation": 2, "padding": 2},
    "all": {"stride": 3, "padding": 1, "dilation": 2},
}


@every_convolution
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("l", [3, 100], ids=["by weight", "by patches"])
def test_is_the_convolution_with_sums_of_kronecker_products(dims: int, transposed: bool, options: str, l: int) -> None:  # noqa: E741
    x, A, S, bias = arrays(dims, 2, 5, l=l)
    given = OPTIONS[options]
    for added in (bias, None):
        result = CONVOLUTIONS[dims, transposed](x, A, S, added, **given)
        torch.testing.assert_close(result, expected(x, A, S, added, transposed, **given), rtol=1e-12, atol=1e-12)
    one = CONVOLUTIONS[dims, transposed](x[0], A, S, bias, **given)
    torch.testing.assert_close(one, expected(x[0], A, S, bias, transposed, **given), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_options_of_each_dimension(dims: int) -> None:
    x, A, S, bias = arrays(dims, 2, 6)
    given = {"stride": (2, 1, 3)[:dims], "padding": (1, 0, 2)[:dims], "dilation": (1, 3, 2)[:dims]}
    wide = functools.partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
    wide(CONVOLUTIONS[dims, False](x, A, S, bias, **given), expected(x, A, S, bias, False, **given))
    given["output_padding"] = (1, 0, 1)[:dims]
    wide(CONVOLUTIONS[dims, True](x, A, S, bias, **given), expected(x, A, S, bias, True, **given))


@pytest.mark.parametrize(("rows", "patches"), [(12, False), (48, True)])
def test_few_positions_take_patches(rows: int, patches: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 positions: a quarter of 48 outputs, and not of 12."""
    taken = []
    original = module._patches
    monkeypatch.setattr(module, "_patches", lambda *args: taken.append(1) or original(*args))
    A, S = normal(1, 2, 4, 2), normal(2, 2, rows // 4, 3, 3, 3)
    x = normal(3, 2, 6, 3, 2)
    result = subspan.phm_conv2d(x, A, S, padding=1)
    torch.testing.assert_close(result, expected(x, A, S, None, False, padding=1), rtol=1e-12, atol=1e-12)
    assert bool(taken) == patches


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_transposed_is_the_adjoint_with_transposed_factors(dims: int) -> None:
    """<y, conv(x; A, S)> = <conv_transpose(y; A^T, S^T), x>."""
    x, A, S, _ = arrays(dims, 2, 5)
    convolved = CONVOLUTIONS[dims, False](x, A, S, stride=2, padding=1)
    y = normal(9, *convolved.shape)
    left = [(n + 2 - k) % 2 for n, k in zip(x.shape[2:], S.shape[3:], strict=True)]  # sizes that the stride forgets
    back = CONVOLUTIONS[dims, True](y, A.mT, S.transpose(1, 2), stride=2, padding=1, output_padding=tuple(left))
    torch.testing.assert_close((y * convolved).sum(), (back * x).sum(), rtol=1e-12, atol=1e-12)


def test_one_tap_is_a_linear_layer() -> None:
    x, A, S, bias = arrays(2, 3, 4)
    S = S[..., :1, :1]
    rows = subspan.phm_linear(x.movedim(1, -1), A, S[..., 0, 0], bias)
    torch.testing.assert_close(subspan.phm_conv2d(x, A, S, bias), rows.movedim(-1, 1), rtol=1e-12, atol=1e-12)


def test_quaternions_multiply_from_the_left_both_ways() -> None:
    """Norms multiply, and i j = k, in a convolution of one tap and its transposed form."""
    A = torch.from_numpy(subspan.algebra("quaternion", 4))
    i, j, k = torch.eye(4).double()[1:]
    for function in (subspan.phm_conv1d, subspan.phm_conv_transpose1d):
        torch.testing.assert_close(function(j.reshape(1, 4, 1), A, i.reshape(4, 1, 1, 1)).flatten(), k)


@every_convolution
@pytest.mark.parametrize("l", [1, 30])
def test_gradients(dims: int, transposed: bool, l: int) -> None:  # noqa: E741
    x, A = normal(1, 1, 2, *(3,) * dims), normal(2, 2, 2, 2)
    S, bias = normal(3, 2, l, 1, *(2,) * dims, scale=l**-0.5), normal(4, 2 * l)
    inputs = [t.requires_grad_() for t in (x, A, S, bias)]

    def function(*tensors: Tensor) -> Tensor:
        result: Tensor = CONVOLUTIONS[dims, transposed](*tensors, stride=2, padding=1)
        return result

    assert gradcheck(function, inputs, fast_mode=l > 1)
    assert gradgradcheck(function, inputs, fast_mode=True)


@every_convolution
def test_types(dims: int, transposed: bool) -> None:
    x, A, S, bias = arrays(dims, 2, 5)
    value = expected(x, A, S, bias, transposed)
    function = CONVOLUTIONS[dims, transposed]
    for dtype, rounding in ((torch.bfloat16, 2**-8), (torch.float16, 2**-11), (torch.float32, 2**-24)):
        result = function(*(t.to(dtype) for t in (x, A, S, bias)))
        assert result.dtype == torch.float32
        assert (result - value).abs().max() < 40 * rounding * value.abs().max()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same = function(*(t.float() for t in (x, A, S, bias)))
    torch.testing.assert_close(same, function(*(t.float() for t in (x, A, S, bias))), rtol=0, atol=0)
    array = function(*(t.numpy() for t in (x, A, S, bias)))
    assert isinstance(array, np.ndarray)
    np.testing.assert_allclose(array, value, atol=1e-12)
    reversed_x = x.numpy()[:, ::-1].copy()[:, ::-1]  # torch takes no negative strides
    np.testing.assert_allclose(function(reversed_x, *(t.numpy() for t in (A, S, bias))), value, atol=1e-12)


@pytest.mark.no_sanitizer
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler's own
@every_convolution
@pytest.mark.parametrize("l", [3, 100], ids=["by weight", "by patches"])
def test_compiles_to_one_graph(dims: int, transposed: bool, l: int) -> None:  # noqa: E741
    inputs = [t.requires_grad_() for t in arrays(dims, 2, 4, l=l)]
    function = CONVOLUTIONS[dims, transposed]
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    plain, traced = function(*inputs), compiled(*inputs)
    torch.testing.assert_close(traced, plain)
    for a, b in zip(
        torch.autograd.grad(traced.cos().sum(), inputs), torch.autograd.grad(plain.cos().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(a, b)


@needs_counter
def test_no_kronecker_product_is_in_memory() -> None:
    """W has 75 MB here: by its weight a step takes it and its gradient, by patches neither; four terms more peers."""
    A, S = normal(1, 8, 8, 8, dtype=torch.float32), normal(2, 8, 180, 180, 3, 3, dtype=torch.float32)
    A.requires_grad_(), S.requires_grad_()

    def step(x: Tensor) -> None:
        subspan.phm_conv2d(x, A, S, padding=1).sum().backward()
        A.grad = S.grad = None

    few = normal(3, 1, 1440, 4, 4, dtype=torch.float32)
    assert extra_bytes(lambda: step(few)) < 40 * 2**20
    many = normal(3, 30, 1440, 4, 4, dtype=torch.float32)
    assert extra_bytes(lambda: step(many)) < 350 * 2**20


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "channels": ({"x": torch.ones(1, 9, 5, 5)}, ValueError, r"x: expected 10 channels, 2 \* 5 of A .*, got 9"),
    "dimensions": ({"x": torch.ones(1, 1, 10, 5, 5)}, ValueError, r"x: expected \(\[items,\] channels, 2 sizes\), got"),
    "few dimensions": ({"x": torch.ones(10, 5)}, ValueError, "x: expected at least 3 dimensions, got"),
    "terms": ({"S": torch.ones(2, 3, 5, 3, 2)}, ValueError, "S: expected as many terms as the 3 of A .*, got"),
    "no taps": ({"S": torch.ones(3, 3, 5, 0, 2)}, ValueError, "S: expected .* without a zero, got"),
    "batched rule": ({"A": torch.ones(1, 3, 4, 2)}, ValueError, r"A: expected \(terms, p, q\) without a zero, got"),
    "bias": ({"bias": torch.ones(11)}, ValueError, r"bias: expected a last dimension of 12 = 4 \* 3 .*, got 11"),
    "integers": ({"x": torch.ones(1, 10, 5, 5).long()}, TypeError, "x: expected float64, float32, .*, got"),
    "another library": ({"S": np.ones((3, 3, 5, 3, 2))}, TypeError, "S: expected the array library of x .*, got"),
    "stride": ({"stride": 0}, ValueError, "stride: expected an integer or 2 of them, each at least 1, got 0"),
    "many strides": ({"stride": (1, 1, 1)}, ValueError, "stride: expected an integer or 2 of them, .*, got"),
    "padding": ({"padding": "same"}, TypeError, "padding: expected an integer or 2 of them, got 'same'"),
    "negative padding": ({"padding": (0, -1)}, ValueError, "padding: expected .* each at least 0, got"),
    "dilation": ({"dilation": 1.5}, TypeError, "dilation: expected an integer or 2 of them, got 1.5"),
    "too small": (
        {"x": torch.ones(1, 10, 2, 5)},
        ValueError,
        r"x: expected sizes of which the kernel \(3, 2\) .*, got",
    ),
    "nothing": ({"x": torch.ones(1, 10, 0, 5)}, ValueError, "x: expected sizes of which the kernel .*, got"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_arguments(name: str) -> None:
    changes, error, message = BAD[name]
    x, A, S, bias = arrays(2, 1, 5, torch.float32)
    arguments = {"x": x, "A": A, "S": S, "bias": bias} | changes
    with pytest.raises(error, match=f"^phm_conv2d: {message}"):
        subspan.phm_conv2d(**arguments)


def test_output_padding_below_stride() -> None:
    x, A, S, _ = arrays(2, 1, 5)
    with pytest.raises(ValueError, match=r"^phm_conv_transpose2d: output_padding: expected less than the stride"):
        subspan.phm_conv_transpose2d(x, A, S, stride=2, output_padding=2)


# --- modules ---


@every_convolution
@pytest.mark.parametrize("rule", ["learned", "quaternion"])
def test_layer_is_its_dense_layer(dims: int, transposed: bool, rule: str) -> None:
    kind = getattr(nn, f"PHMConvTranspose{dims}d" if transposed else f"PHMConv{dims}d")
    layer = kind(8, 12, 2, 4, 2, 1, rule=rule, bias=dims > 1).double()
    x = normal(1, 2, 8, *range(4, 4 + dims))
    dense = layer.to_dense()
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(x), expected(x, layer.A, layer.S, layer.bias, transposed, stride=2, padding=1))
    assert len(list(layer.parameters())) == 1 + (dims > 1) + (rule == "learned")


@every_convolution
def test_weights_start_with_the_variance_of_the_dense_layer(dims: int, transposed: bool) -> None:
    torch.manual_seed(1)
    kind = getattr(nn, f"PHMConvTranspose{dims}d" if transposed else f"PHMConv{dims}d")
    dense = getattr(torch.nn, f"ConvTranspose{dims}d" if transposed else f"Conv{dims}d")
    ours = torch.cat([kind(64, 32, 3, 4).to_dense().weight.flatten() for _ in range(20)])
    assert abs(ours.var() / dense(64, 32, 3).weight.var() - 1) < 0.15


def test_wrong_arguments_of_layers() -> None:
    with pytest.raises(ValueError, match="PHMConv2d: in_channels: expected a multiple of n = 4, got 6"):
        nn.PHMConv2d(6, 8, 3, 4)
    with pytest.raises(ValueError, match="PHMConv1d: kernel_size: expected an integer or 1 of them, each at least 1"):
        nn.PHMConv1d(4, 8, 0, 4)
    with pytest.raises(ValueError, match="n: expected 4 for 'quaternion', got 2"):
        nn.PHMConvTranspose3d(4, 8, 3, 2, rule="quaternion")
