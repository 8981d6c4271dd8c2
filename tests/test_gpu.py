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
from subspan.composite import khatri_rao

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


# --- soft classes: packed triangles -------------------------------------------------------------------------------


def soft_classes(classes: int, samples: int, d: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    Z = torch.randn(samples, d, dtype=torch.float64, generator=generator).to(dtype)
    membership = torch.rand(classes, samples, dtype=torch.float64, generator=generator).to(dtype)
    return Z.to(DEVICE), membership.to(DEVICE)


def packed_outputs(triangles: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """logdet, info and gradient with a content that would be noticed."""
    logdet = torch.full(triangles.shape[:-1], 7, dtype=triangles.dtype, device=DEVICE)
    info = torch.full(triangles.shape[:-1], 99, dtype=torch.int32, device=DEVICE)
    return logdet, info, torch.full_like(triangles, 7)


def packed_logdet(kernels: Any, triangles: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, ...]:
    result = packed_outputs(triangles)
    kernels.packed_logdet(triangles, scale, *result, stream())
    return result


def unpacked(triangles: torch.Tensor, d: int, off_diagonal: float = 1.0) -> torch.Tensor:
    """Symmetric matrices from packed triangles, entries off the diagonal multiplied."""
    rows, columns = torch.triu_indices(d, d, device=triangles.device)
    full = triangles.new_zeros(*triangles.shape[:-1], d, d)
    full[..., rows, columns] = full[..., columns, rows] = triangles * torch.where(rows == columns, 1.0, off_diagonal)
    return full


@every_dtype
@pytest.mark.parametrize("n", [1, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 97, 128])
def test_kernel_values_of_triangles(kernels: Any, n: int, dtype: torch.dtype) -> None:
    A = spd(37, n, dtype, implicit_identity=True)
    A = A.tril() + A.tril(-1).mT
    rows, columns = torch.triu_indices(n, n, device=DEVICE)
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=dtype, device=DEVICE)[torch.arange(37, device=DEVICE) % 3]
    logdet, info, gradient = packed_logdet(kernels, A[..., rows, columns].contiguous(), scale)
    check((logdet, unpacked(gradient, n, 0.5), info), A * scale[:, None, None], True)
    plain = torch.full_like(logdet, 7)
    kernels.packed_logdet(A[..., rows, columns].contiguous(), scale, plain, None, None, stream())
    assert ((plain - logdet).abs() <= torch.finfo(dtype).eps * (8 * n + logdet.abs())).all()


@every_dtype
def test_largest_size_of_triangles(kernels: Any, dtype: torch.dtype) -> None:
    n = int(kernels.packed_logdet_max_size(dtype.itemsize, 0))
    A = spd(5, n, dtype, implicit_identity=True)
    A = A.tril() + A.tril(-1).mT
    rows, columns = torch.triu_indices(n, n, device=DEVICE)
    one = torch.ones(5, dtype=dtype, device=DEVICE)
    logdet, info, gradient = packed_logdet(kernels, A[..., rows, columns].contiguous(), one)
    check((logdet, unpacked(gradient, n, 0.5), info), A, True)
    with pytest.raises(ValueError, match=f"order at most {n} .*, got {n + 1}"):
        packed_logdet(kernels, one.new_zeros(5, (n + 1) * (n + 2) // 2), one)


@every_dtype
@pytest.mark.parametrize("n", [5, 20, 50, 90])
def test_bad_item_of_triangles_stays_alone(kernels: Any, n: int, dtype: torch.dtype) -> None:
    rows, columns = torch.triu_indices(n, n, device=DEVICE)
    triangles = spd(9, n, dtype, implicit_identity=True)[..., rows, columns].contiguous()
    one = torch.ones(9, dtype=dtype, device=DEVICE)
    expected = packed_logdet(kernels, triangles, one)
    triangles[4, n - 1] = float("nan")
    result = packed_logdet(kernels, triangles, one)
    good = torch.arange(9, device=DEVICE) != 4
    for got, want in zip(result, expected, strict=True):
        assert torch.equal(got[good], want[good])
    assert result[1][4] == -1 and result[0][4].isnan() and result[2][4].isnan().all()


@pytest.mark.parametrize("dtype", [*REAL, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [1, 31, 33, 64, 130, 4610])
def test_kernel_values_of_products(kernels: Any, d: int, dtype: torch.dtype) -> None:
    """Products to the last bit, also of a transposed array; the adjoint within its rounding errors."""
    Z = soft_classes(1, 300 if d < 1000 else 3, d, dtype)[0].T.contiguous().T
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    rows, columns = torch.triu_indices(d, d, device=DEVICE)
    products = torch.full((len(Z), len(rows)), 7, dtype=compute, device=DEVICE)
    kernels.khatri_rao_pack(Z, products, stream())
    assert torch.equal(products, Z.to(compute)[:, rows] * Z.to(compute)[:, columns])

    d_products, d_Z = torch.randn_like(products), torch.full(Z.shape, 7, dtype=compute, device=DEVICE)
    kernels.khatri_rao_unpack(d_products, Z, d_Z, stream())
    for i in (0, len(Z) // 2, len(Z) - 1):
        triangle = unpacked(d_products[i].double(), d).triu()
        both, z = triangle + triangle.mT, Z[i].double()
        bound = (d + 8) * torch.finfo(compute).eps * (both.abs() @ z.abs())
        assert ((d_Z[i].double() - both @ z).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [*REAL, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("classes", "samples", "d"), [(50, 60, 20), (300, 256, 128), (5, 40, 300)])
def test_soft_classes_through_kernels(
    kernels: Any, monkeypatch: pytest.MonkeyPatch, classes: int, samples: int, d: int, dtype: torch.dtype
) -> None:
    """Value and gradients against the same in float64 torch operations; the last case has matrices too large."""
    upstream = torch.linspace(-1, 2, classes, device=DEVICE)

    def run(Z: torch.Tensor, membership: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = Z.requires_grad_(), membership.requires_grad_()
        log_dets, mass = khatri_rao.soft_class_log_dets(*inputs, 0.5)
        return log_dets, mass, *torch.autograd.grad((log_dets * upstream).sum(), inputs)

    Z, membership = soft_classes(classes, samples, d, dtype)
    monkeypatch.setattr(khatri_rao, "kernels", lambda array: None)
    expected = run(Z.double(), membership.double())
    monkeypatch.setattr(khatri_rao, "kernels", lambda array: kernels)
    got = run(Z, membership)
    # With t_j about n / 2, c_j is about 4 d / n, and A_j at most Z^T Z.
    condition = 1 + 4 * d / samples * float(torch.linalg.matrix_norm(Z.detach().double(), 2)) ** 2
    bound = 30 * torch.finfo(got[0].dtype).eps * condition
    for one, other, argument in zip(got, expected, (*got[:2], Z, membership), strict=True):
        own = 2 * torch.finfo(argument.dtype).eps if argument.dtype == torch.bfloat16 else 0.0
        assert torch.linalg.vector_norm(one.double() - other) <= (bound + own) * torch.linalg.vector_norm(other)
    if dtype == torch.float32:
        for one, again in zip(got, run(Z, membership), strict=True):
            assert torch.equal(one, again)


def test_soft_class_kernels_can_be_captured(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(khatri_rao, "kernels", lambda array: kernels)
    Z, membership = soft_classes(30, 40, 24, torch.float32)
    with torch.no_grad():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):  # loads the kernels and cuBLAS, which may allocate
            khatri_rao.soft_class_log_dets(Z, membership, 0.5)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            log_dets, _ = khatri_rao.soft_class_log_dets(Z, membership, 0.5)
        for seed in (1, 2):
            for array, new in zip((Z, membership), soft_classes(30, 40, 24, torch.float32, seed), strict=True):
                array.copy_(new)
            graph.replay()
            expected, _ = khatri_rao.soft_class_log_dets(Z, membership, 0.5)
            torch.testing.assert_close(log_dets, expected, rtol=0, atol=0)


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
