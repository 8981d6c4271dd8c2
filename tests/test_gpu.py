"""What can only be seen on a CUDA device: compiled kernels, streams, graph capture, the op table on CUDA tensors.

`bench/gpu_check.sh test` runs this file; without a device every test is skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from op_row import Op, Sample, bounds, leaves, oracle, value_and_gradients, within
from op_table import OPS
from subspan import _native
from subspan.composite import coding_rate as composite

DEVICE = "cuda"
REAL = [torch.float32, torch.float64]

pytestmark = pytest.mark.gpu
every_dtype = pytest.mark.parametrize("dtype", REAL, ids=str)
every_form = pytest.mark.parametrize("implicit_identity", [False, True], ids=["plain", "implicit"])


@pytest.fixture(scope="module")
def kernels() -> Any:
    if problem := _native.cuda_problem():
        pytest.skip(problem)
    return _native.cuda()


def stream() -> int:
    return torch.cuda.current_stream().cuda_stream


def largest(kernels: Any, dtype: torch.dtype) -> int:
    return int(kernels.spd_logdet_max_size(dtype.itemsize, 0))


def outputs(A: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """logdet, inverse and info with a content that would be noticed."""
    logdet = torch.full(A.shape[:-2], 7, dtype=A.dtype, device=A.device)
    inverse = torch.full(A.shape, 7, dtype=A.dtype, device=A.device)
    return logdet, inverse, torch.full(A.shape[:-2], 99, dtype=torch.int32, device=A.device)


def spd_logdet(kernels: Any, A: torch.Tensor, implicit_identity: bool = False, with_inverse: bool = True) -> Any:
    logdet, inverse, info = outputs(A)
    kernels.spd_logdet(A, logdet, inverse if with_inverse else None, info, implicit_identity, stream())
    return logdet, inverse, info


def spd(batch: int, n: int, dtype: torch.dtype, *, implicit_identity: bool = False, seed: int = 0) -> torch.Tensor:
    """Gram matrices, plus the identity where the op does not add it."""
    generator = torch.Generator().manual_seed(seed)
    Z = torch.randn(batch, n + 3, n, dtype=dtype, generator=generator)
    A = Z.mT @ Z if implicit_identity else Z.mT @ Z + torch.eye(n, dtype=dtype)
    return A.to(DEVICE)


def double_matrix(A: torch.Tensor, implicit_identity: bool) -> torch.Tensor:
    """The float64 matrix that the lower triangle stands for, on the CPU."""
    lower = A.cpu().double().tril()
    full = lower + lower.tril(-1).mT
    return full + torch.eye(A.shape[-1], dtype=torch.float64) if implicit_identity else full


def check(result: Any, A: torch.Tensor, implicit_identity: bool, with_inverse: bool = True) -> None:
    """Four roundings in each pivot and one of the result; LAPACK's residual ratio of the inverse below 30."""
    logdet, inverse, info = (output.cpu() for output in result)
    M, n, eps = double_matrix(A, implicit_identity), A.shape[-1], torch.finfo(A.dtype).eps
    factor = torch.linalg.cholesky(M)
    expected = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) * 2
    assert ((logdet.double() - expected).abs() <= eps * (4 * n + expected.abs()) + 1e-15 * n).all()
    assert (info == 0).all()
    if with_inverse:
        residual = torch.linalg.matrix_norm(M @ inverse.double() - torch.eye(n, dtype=torch.float64))
        norms = torch.linalg.matrix_norm(M) * torch.linalg.matrix_norm(torch.cholesky_inverse(factor))
        assert (residual < 30 * n * eps * norms).all()
        assert torch.equal(inverse, inverse.mT)
    else:
        assert (inverse == 7).all()


# --- the kernels ----------------------------------------------------------------------------------------------------


@every_dtype
@every_form
@pytest.mark.parametrize("with_inverse", [False, True], ids=["logdet", "inverse"])
@pytest.mark.parametrize("n", [1, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 97, 128])
def test_kernel_values(kernels: Any, n: int, with_inverse: bool, implicit_identity: bool, dtype: torch.dtype) -> None:
    A = spd(37, n, dtype, implicit_identity=implicit_identity)
    check(spd_logdet(kernels, A, implicit_identity, with_inverse), A, implicit_identity, with_inverse)


@every_dtype
def test_largest_size(kernels: Any, dtype: torch.dtype) -> None:
    A = spd(5, largest(kernels, dtype), dtype)
    check(spd_logdet(kernels, A), A, False)


@every_dtype
def test_matrix_that_does_not_fit_is_refused(kernels: Any, dtype: torch.dtype) -> None:
    n = largest(kernels, dtype)
    with pytest.raises(ValueError, match=f"order at most {n} .*, got {n + 1}"):
        spd_logdet(kernels, torch.eye(n + 1, dtype=dtype, device=DEVICE)[None])


def test_array_on_another_device_is_refused(kernels: Any) -> None:
    with pytest.raises(ValueError, match="wrong device"):
        spd_logdet(kernels, torch.eye(4)[None])


@every_dtype
@pytest.mark.parametrize(("batch", "n"), [(100_000, 6), (5_000, 24), (700, 100)])
def test_large_batch(kernels: Any, batch: int, n: int, dtype: torch.dtype) -> None:
    A = spd(batch, n, dtype)
    check(spd_logdet(kernels, A, with_inverse=False), A, False, with_inverse=False)


@every_dtype
@pytest.mark.parametrize("n", [6, 40, 90])
def test_layouts(kernels: Any, n: int, dtype: torch.dtype) -> None:
    A = spd(6, n, dtype).reshape(2, 3, n, n)
    expected = spd_logdet(kernels, A)
    spaced = torch.full((2, 5, 2 * n, 3 * n), float("nan"), dtype=dtype, device=DEVICE)
    spaced[:, :3, ::2, ::3] = A
    upper = torch.ones(n, n, dtype=torch.bool, device=DEVICE).triu(1)
    layouts = {
        "columns first": A.mT.contiguous().mT,
        "batch last": A.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1),
        "spaced": spaced[:, :3, ::2, ::3],
        "upper triangle NaN": A.masked_fill(upper, float("nan")),
    }
    for name, layout in layouts.items():
        for got, want in zip(spd_logdet(kernels, layout), expected, strict=True):
            assert torch.equal(got, want), name


@every_dtype
@every_form
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("n", [5, 20, 50, 90])
def test_bad_item_stays_alone(kernels: Any, n: int, value: float, implicit_identity: bool, dtype: torch.dtype) -> None:
    A = spd(9, n, dtype, implicit_identity=implicit_identity)
    expected = spd_logdet(kernels, A, implicit_identity)
    A[4, n - 1, n - 1] = value
    logdet, inverse, info = spd_logdet(kernels, A, implicit_identity)
    good = torch.arange(9, device=DEVICE) != 4
    for got, want in zip((logdet, inverse, info), expected, strict=True):
        assert torch.equal(got[good], want[good])
    if implicit_identity and value == -1:
        assert info[4] == 1 and logdet[4].isfinite() and inverse[4].isfinite().all()  # the pivot is clamped
    else:
        assert info[4] == (-1 if implicit_identity else n)
        assert logdet[4].isnan() and inverse[4].isnan().all()


@every_dtype
@pytest.mark.parametrize("n", [16, 64, 120])
def test_repeats_are_bitwise_equal(kernels: Any, n: int, dtype: torch.dtype) -> None:
    A = spd(300, n, dtype)
    first = spd_logdet(kernels, A)
    for _ in range(5):
        for got, want in zip(spd_logdet(kernels, A), first, strict=True):
            assert torch.equal(got, want)


@every_dtype
@every_form
@pytest.mark.parametrize("n", [12, 64, 120])
def test_kernel_and_composite_agree(kernels: Any, n: int, implicit_identity: bool, dtype: torch.dtype) -> None:
    A = spd(11, n, dtype, implicit_identity=implicit_identity)
    logdet, inverse, info = spd_logdet(kernels, A, implicit_identity)
    other, other_info = composite.spd_logdet(A, implicit_identity)
    eps = torch.finfo(dtype).eps
    assert ((logdet - other).abs() <= 2 * eps * (4 * n + other.abs())).all()
    assert torch.equal(info, other_info)
    gradient = composite.spd_logdet_gradient(A, implicit_identity)
    condition = torch.linalg.cond(double_matrix(A, implicit_identity)).to(DEVICE)
    error = torch.linalg.matrix_norm((inverse - gradient).double())
    assert (error <= 30 * n * eps * condition * torch.linalg.matrix_norm(gradient.double())).all()


# --- streams and graphs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [16, 100])
def test_kernel_runs_on_the_current_stream(kernels: Any, n: int) -> None:
    """The input is written late on a side stream: a kernel on any other stream would read the zeros before it."""
    A = spd(50, n, torch.float64)
    source = torch.zeros_like(A)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        source.copy_(A)
        result = spd_logdet(kernels, source)
    side.synchronize()
    check(result, A, False)


@pytest.mark.parametrize("n", [16, 100])
def test_kernel_can_be_captured(kernels: Any, n: int) -> None:
    """Captured once, replayed on new input: nothing is allocated or synchronised behind the graph's back."""
    A = spd(50, n, torch.float64)
    result = outputs(A)
    spd_logdet(kernels, A)  # loads the kernel, which may allocate
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.spd_logdet(A, *result, False, stream())
    for seed in (1, 2):
        A.copy_(spd(50, n, torch.float64, seed=seed))
        graph.replay()
        torch.cuda.synchronize()
        check(result, A, False)


def test_public_function_can_be_routed_to_the_kernel() -> None:
    """SUBSPAN_CUDA_KERNELS is read at import. Value and gradient must be those of float64."""
    code = """
import torch, subspan
from subspan import _native, _route
assert not _native.cuda_problem(), _native.cuda_problem()
path = next(row for row in _route.paths() if row["op"] == "spd_logdet" and row["device"] == "cuda")
assert path["path"] == "kernel", path
Z = torch.randn(20, 40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
A = (Z.mT @ Z).cuda().requires_grad_()
logdet = subspan.spd_logdet(A)
(gradient,) = torch.autograd.grad(logdet.sum(), A)
torch.testing.assert_close(logdet, torch.logdet(A), rtol=1e-12, atol=1e-12)
torch.testing.assert_close(gradient, torch.linalg.inv(A), rtol=1e-9, atol=1e-12)
print("routed")
"""
    environment = os.environ | {"SUBSPAN_CUDA_KERNELS": "1"}
    environment.pop("SUBSPAN_DISABLE", None)
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0 and "routed" in answer.stdout, answer.stderr[-3000:]


# --- the op table on CUDA tensors -----------------------------------------------------------------------------------

every_sample = pytest.mark.parametrize(
    ("op", "name"), [(op, s.name) for op in OPS for s in op.samples(torch.float64)], ids=str
)


def on_device(op: Op, sample: Sample) -> Sample:
    moved = op.change(sample.arguments, lambda tensor: tensor.to(DEVICE))
    return Sample(sample.name, moved, sample.differentiable)


@every_sample
@every_dtype
def test_op_value_is_the_reference(op: Op, name: str, dtype: torch.dtype) -> None:
    sample = on_device(op, op.sample(dtype, name))
    expected = oracle(op, sample.arguments)
    for output, value, bound in zip(
        op(sample.arguments), expected, bounds(op, sample.arguments, dtype)[0], strict=True
    ):
        assert output.device.type == DEVICE and output.dtype == dtype
        within(output.cpu(), value, bound + 1e-14, "value")


@every_sample
@every_dtype
def test_op_gradient_is_that_of_the_cpu(op: Op, name: str, dtype: torch.dtype) -> None:
    sample = op.sample(dtype, name)
    expected = value_and_gradients(op, leaves(op, sample))[1]
    gradients = value_and_gradients(op, leaves(op, on_device(op, sample)))[1]
    assert gradients.keys() == expected.keys()
    limits = bounds(op, sample.arguments, dtype)[1]
    for argument, gradient in gradients.items():
        assert gradient.device.type == DEVICE
        within(gradient.cpu(), expected[argument], 2 * limits[argument] + 1e-14, f"gradient of {argument}")
