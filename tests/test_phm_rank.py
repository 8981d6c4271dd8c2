"""Decompositions of rules, and the products of low rank that take them."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import subspan
from resident_memory import extra_bytes, needs_counter
from sample_arrays import normal
from subspan.composite import phm_rank as composite
from subspan.reference import phm as reference
from test_phm import kronecker

EXACT = 1e-15
#: name, n and the number of products.
KNOWN = [
    ("complex", 2, 3),
    ("quaternion", 4, 8),
    ("octonion", 8, 30),
    ("cyclic", 1, 1),
    ("cyclic", 3, 4),
    ("cyclic", 4, 5),
    ("cyclic", 5, 7),
    ("cyclic", 8, 11),
    ("cyclic", 12, 17),
    ("klein", 8, 8),
    ("klein", 16, 16),
]


@pytest.mark.parametrize(("name", "n", "rank"), KNOWN)
def test_known_rules_are_exact(name: str, n: int, rank: int) -> None:
    for side, conjugate in itertools.product(("left", "right"), (False, True)):
        A = subspan.algebra(name, n, side, conjugate)
        found = subspan.rank_decomposition(A)
        assert found.rank == rank
        error = abs(np.einsum("ir,pr,qr->ipq", found.U, found.P, found.V) - A).max()
        assert error <= 4 * EXACT and found.residual <= EXACT
        assert found.amplification < 10


def test_sedenions_take_fewer_products_than_entries() -> None:
    assert subspan.rank_decomposition(subspan.algebra("sedenion", 16)).rank < 128


def test_columns_times_rows_take_a_product_each() -> None:
    A = normal(1, 5, 4, 1) @ normal(2, 5, 1, 3)
    found = subspan.rank_decomposition(A)
    assert found.rank == 5 and found.residual < EXACT
    assert subspan.rank_decomposition(torch.diag_embed(torch.eye(6))).rank == 6


@pytest.mark.parametrize("shape", [(3, 3, 3), (4, 4, 4), (4, 3, 2)])
def test_learned_rules(shape: tuple[int, ...]) -> None:
    A = normal(3, *shape)
    found = subspan.rank_decomposition(A)
    assert found.rank < shape[1] * shape[2]
    assert found.residual <= 1e-8 and found.amplification <= 100
    np.testing.assert_allclose(np.einsum("ir,pr,qr->ipq", found.U, found.P, found.V), A, atol=1e-8 * A.norm())


@pytest.mark.parametrize("noise", [0.1, 0.01])
def test_rules_near_quaternions(noise: float) -> None:
    """At 0.01 rank 8 only holds in a limit of terms that grow and cancel: rank 9 is taken."""
    A = subspan.algebra("quaternion", 4) + noise * normal(4, 4, 4, 4).numpy()
    found = subspan.rank_decomposition(A)
    assert found.rank in (8, 9, 10) and found.residual <= 1e-8 and found.amplification <= 100


def test_what_has_no_decomposition_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rank_decomposition: A: expected .* of rank 2 within 1e-08, got residual"):
        subspan.rank_decomposition(normal(5, 3, 3, 3), rank=2)
    with pytest.raises(ValueError, match="rank_decomposition: A: expected finite values, got NaN"):
        subspan.rank_decomposition(np.full((2, 2, 2), np.nan))
    with pytest.raises(ValueError, match=r"rank_decomposition: A: expected shape \(terms, p, q\)"):
        subspan.rank_decomposition(np.ones((2, 2, 2, 2)))
    with pytest.raises(ValueError, match="rank_decomposition: tol: expected a number > 0"):
        subspan.rank_decomposition(np.ones((2, 2, 2)), tol=0.0)


# --- layers ---


@pytest.mark.parametrize(("name", "n", "rank"), KNOWN)
@pytest.mark.parametrize("rows", [1, 40, 150])
def test_layers_of_constant_rules(name: str, n: int, rank: int, rows: int) -> None:
    A = torch.from_numpy(subspan.algebra(name, n))
    amplification = subspan.rank_decomposition(A).amplification
    for dtype in (torch.float32, torch.float64):
        x, S = normal(1, rows, 21 * n, dtype=dtype), normal(2, n, 13, 21, dtype=dtype)
        bias = normal(3, 13 * n, dtype=dtype)
        expected = x.double() @ kronecker(A, S).mT + bias
        result = subspan.phm_linear(x, A, S, bias, method="rank")
        # In the norm: terms that cancel err by more than what is left of them.
        size = (x.double().norm() * S.double().norm() * A.norm()).item()
        limit = 4 * torch.finfo(dtype).eps * amplification * size
        assert result.dtype == dtype and (result.double() - expected).norm() <= limit
        as_numpy = subspan.phm_linear(x.numpy(), A.numpy(), S.numpy(), bias.numpy(), method="rank")
        np.testing.assert_array_equal(as_numpy, result)


@pytest.mark.parametrize("n", [3, 4, 5])
def test_layers_of_learned_rules_that_are_constant(n: int) -> None:
    x, A, S, bias = normal(1, 40, 45 * n), normal(2, n, n, n), normal(3, n, 50, 45), normal(4, 50 * n)
    found = subspan.rank_decomposition(A)
    expected = x @ kronecker(A, S).mT + bias
    error = subspan.phm_linear(x, A, S, bias, method="rank") - expected
    assert found.rank < n * n
    assert error.norm() <= 2 * found.residual * x.norm() * S.norm() * A.norm()


def test_a_rule_whose_values_change_is_read_again() -> None:
    x, A, S = normal(1, 3, 8), torch.from_numpy(subspan.algebra("quaternion", 4)), normal(3, 4, 3, 2)
    subspan.phm_linear(x, A, S, method="rank")
    A.data.mul_(-2)  # without a trace in its version
    torch.testing.assert_close(subspan.phm_linear(x, A, S, method="rank"), x @ kronecker(A, S).mT)
    A.data[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="phm_linear: A: expected finite values, got NaN"):
        subspan.phm_linear(x, A, S, method="rank")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_constant_rules_of_any_layout_and_type(dtype: torch.dtype) -> None:
    x, S = normal(1, 5, 8, dtype=torch.float32), normal(2, 4, 3, 2, dtype=torch.float32)
    A = torch.from_numpy(subspan.algebra("quaternion", 4)).to(dtype)
    transposed = A.mT.contiguous().mT
    expected = (x.double() @ kronecker(A, S).mT).float()
    for rule in (A, transposed):
        torch.testing.assert_close(subspan.phm_linear(x, rule, S, method="rank"), expected)


def test_gradients_of_a_constant_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    A = torch.from_numpy(subspan.algebra("quaternion", 4))
    inputs = [normal(i, *shape).requires_grad_() for i, shape in enumerate([(3, 8), (4, 3, 2), (12,)])]

    def layer(x: torch.Tensor, S: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return subspan.phm_linear(x, A, S, bias, method="rank")

    assert torch.autograd.gradcheck(layer, inputs)
    assert torch.autograd.gradgradcheck(layer, inputs)
    x, S, bias = inputs
    direct = torch.autograd.grad(subspan.phm_linear(x, A, S, bias).square().sum(), inputs)
    for strip in (composite._STRIP_ELEMENTS, 1):  # strips of one row
        monkeypatch.setattr(composite, "_STRIP_ELEMENTS", strip)
        for ours, expected in zip(torch.autograd.grad(layer(*inputs).square().sum(), inputs), direct, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_a_batch_of_weights_shares_a_constant_rule() -> None:
    A, x, S = subspan.algebra("complex", 2), normal(1, 3, 5, 8).numpy(), normal(2, 3, 2, 3, 4).numpy()
    expected = reference.phm_linear(x, A, S)
    np.testing.assert_allclose(subspan.phm_linear(x, A, S, method="rank"), expected, atol=1e-13)


def test_rules_that_are_no_constants_are_refused() -> None:
    x, A, S = normal(1, 3, 8), normal(2, 2, 2, 2), normal(3, 2, 3, 4)
    with pytest.raises(ValueError, match="phm_linear: A: expected a constant for method 'rank', got a tensor that"):
        subspan.phm_linear(x, A.clone().requires_grad_(), S, method="rank")
    with pytest.raises(ValueError, match=r"phm_linear: A: expected one rule \(terms, p, q\) for method 'rank'"):
        subspan.phm_linear(x[None], A[None], S, method="rank")
    with pytest.raises(ValueError, match="phm_linear: A: expected values that can be read"):
        torch.vmap(lambda rule: subspan.phm_linear(x, rule, S, method="rank"))(A[None])
    with torch.no_grad():
        subspan.phm_linear(x, A.clone().requires_grad_(), S, method="rank")


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 12, 16])
def test_low_rank_layers_are_sums_of_kronecker_products(n: int) -> None:
    for rows, (inner, outer), rank in itertools.product((1, 60), ((45, 50), (6, 1)), (1, 3)):
        x, S, bias = normal(1, rows, n * inner), normal(2, n, outer, inner), normal(3, n * outer)
        left, right = normal(4, n, n, 1), normal(5, n, 1, n)
        expected = x @ kronecker(left @ right, S).mT + bias
        torch.testing.assert_close(subspan.phm_linear_rank1(x, left, right, S, bias), expected, rtol=1e-11, atol=1e-10)
        A, U, V = normal(6, n, n, n), normal(7, n, outer, rank), normal(8, n, rank, inner)
        expected = x @ kronecker(A, U @ V).mT + bias
        torch.testing.assert_close(subspan.phm_linear_lowrank(x, A, U, V, bias), expected, rtol=1e-11, atol=1e-10)


def test_more_rows_than_are_taken_at_once() -> None:
    x, A, U, V = normal(1, 2100, 6), normal(2, 2, 3, 2), normal(3, 2, 5, 1), normal(4, 2, 1, 3)
    expected = reference.phm_linear_lowrank(x, A, U, V)
    np.testing.assert_allclose(subspan.phm_linear_lowrank(x, A, U, V), expected, atol=1e-12)
    np.testing.assert_allclose(subspan.phm_linear_lowrank(x[:, ::1].T.clone().T, A, U, V), expected, atol=1e-12)


@needs_counter
@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("kind", ["constant rule", "rank-one rule", "low rank"])
def test_weight_is_never_in_memory(kind: str, rows: int) -> None:
    """W has 64 MB. The gradient of S has 16, which a step keeps; that of its factors next to nothing."""

    def array(*shape: int) -> torch.Tensor:
        return normal(len(shape) + shape[-1], *shape, dtype=torch.float32)

    x, S = array(rows, 4096), array(4, 1024, 1024)
    if kind == "constant rule":
        A = torch.from_numpy(subspan.algebra("quaternion", 4)).float()
        inputs, call = [x, S], lambda: subspan.phm_linear(x, A, S, method="rank")
    elif kind == "rank-one rule":
        left, right = array(4, 4, 1), array(4, 1, 4)
        inputs, call = [x, left, right, S], lambda: subspan.phm_linear_rank1(x, left, right, S)
    else:
        A, U, V = array(4, 4, 4), array(4, 1024, 1), array(4, 1, 1024)
        inputs, call = [x, A, U, V], lambda: subspan.phm_linear_lowrank(x, A, U, V)
    call()
    assert extra_bytes(call) < 12 * 2**20
    for tensor in inputs:
        tensor.requires_grad_()
    assert extra_bytes(lambda: call().sum().backward()) < (8 if kind == "low rank" else 40) * 2**20
    assert all(tensor.grad is not None for tensor in inputs)


# --- memory ---


def within_guards(side: str, kind: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(__file__).with_name("guarded_pages.py")), side, kind]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)


@pytest.mark.no_sanitizer
@pytest.mark.skipif(sys.platform != "linux", reason="pages are protected as on Linux")
@pytest.mark.parametrize("side", ["end", "begin"])
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_lowrank_kernels_stay_within_their_arrays(side: str, kind: str) -> None:
    """Those of phm_linear_lowrank and phm_adapter, with inputs and outputs beside pages that nobody may touch."""
    done = within_guards(side, kind)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert within_guards(side, "beyond").returncode == -signal.SIGSEGV
