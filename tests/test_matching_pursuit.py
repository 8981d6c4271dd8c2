"""Matching pursuit beyond the op table: one choice on every path, its values, ties, NaN, and the closed form."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import subspan
from sample_arrays import normal
from subspan._native import cpu
from subspan.reference import sparse as reference

DOUBLE = torch.float64


def unit_atoms(seed: int, *shape: int, dtype: torch.dtype = DOUBLE) -> torch.Tensor:
    W = normal(seed, *shape)
    return (W / W.norm(dim=-1, keepdim=True)).to(dtype)


#: Enough rows and steps for products to be updated by the Gram matrix, while a row alone has its products formed anew.
UPDATED = {"n": 400, "d": 96, "atoms": 150, "steps": 9}


def updated(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, int]:
    x = normal(1, UPDATED["n"], UPDATED["d"], dtype=dtype)
    return x, unit_atoms(2, UPDATED["atoms"], UPDATED["d"], dtype=dtype), UPDATED["steps"]


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("by", ["value", "abs"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.bfloat16], ids=str)
def test_a_row_among_others_has_the_bits_of_a_row_alone(dtype: torch.dtype, by: str, relu: bool) -> None:
    x, W, steps = updated(dtype)
    rows, residual = subspan.matching_pursuit(x, W, steps, by, relu, return_residual=True)
    for part in (slice(0, 1), slice(1, 2), slice(150, 173), slice(399, 400)):
        own, rest = subspan.matching_pursuit(x[part], W, steps, by, relu, return_residual=True)
        assert torch.equal(own.indices, rows.indices[part]) and torch.equal(own.values, rows.values[part])
        assert torch.equal(rest, residual[part])


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_products_that_are_nearly_equal_are_told_apart_as_without_updates(dtype: torch.dtype) -> None:
    """Atoms twice, atoms that differ by few roundings, and residuals that are nothing but roundings."""
    generator = np.random.default_rng(3)
    W = unit_atoms(4, 60, 70).repeat(3, 1)
    W[60:120] *= torch.from_numpy(1 + 3 * torch.finfo(dtype).eps * generator.integers(-2, 3, (60, 70)))
    x = normal(5, 300, 70).to(dtype)
    x[::5] = W[:60].to(dtype)
    W = W.to(dtype)
    for by in ("value", "abs"):
        rows = subspan.matching_pursuit(x, W, 25, by, relu=False)
        for i in (0, 1, 2, 5, 150, 299):
            own = subspan.matching_pursuit(x[i : i + 1], W, 25, by, relu=False)
            assert torch.equal(own.indices[0], rows.indices[i]) and torch.equal(own.values[0], rows.values[i])


@pytest.mark.parametrize("by", ["value", "abs"])
def test_the_choice_is_the_largest_product(by: str) -> None:
    """In float64, with residuals formed anew from the returned codes; so are the coefficients and the residual."""
    x, W, steps = updated(torch.float32)
    rows, residual = subspan.matching_pursuit(x, W, steps, by, relu=False, return_residual=True)
    wide, atoms = x.double(), W.double()
    bound = 60 * UPDATED["d"] * torch.finfo(torch.float32).eps * x.double().norm(dim=1)
    for t in range(steps):
        products = wide @ atoms.T
        sizes = products.abs() if by == "abs" else products
        chosen = rows.indices[:, t].long()
        assert (sizes.gather(1, chosen[:, None])[:, 0] >= sizes.max(1).values - bound).all()
        value = rows.values[:, t].double()
        assert ((products.gather(1, chosen[:, None])[:, 0] - value).abs() <= bound).all()
        wide = wide - value[:, None] * atoms[chosen]
    assert ((wide - residual.double()).abs() <= bound[:, None]).all()


def test_values_are_the_closed_form() -> None:
    """v = L^-1 A x with A the chosen atoms and L = I + strict_lower(A A^T); x = sum_t v_t a_t + r."""
    x, W = normal(6, 20, 30), normal(7, 50, 30) / 5
    rows, residual = subspan.matching_pursuit(x, W, 6, relu=False, return_residual=True)
    A = W[rows.indices.long()]
    L = torch.eye(6, dtype=DOUBLE) + (A @ A.mT).tril(-1)
    exact = torch.linalg.solve_triangular(L, A @ x[..., None], upper=False)[..., 0]
    torch.testing.assert_close(rows.values, exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rows.to_dense() @ W + residual, x, rtol=1e-12, atol=1e-12)


def test_gradient_is_the_closed_form() -> None:
    """y = L^-T g, d_x = A^T y, dL/da_t = y_t r_{t-1} - v_t sum_{s > t} y_s a_s, in blocks of rows and of long ones."""
    n, d, steps = 9, 5000, 60  # two rows at a time
    x, W = normal(8, n, d), unit_atoms(9, 30, d)
    leaves = x.clone().requires_grad_(), W.clone().requires_grad_()
    rows = subspan.matching_pursuit(*leaves, steps, "abs", relu=False)
    g = normal(10, n, steps)
    d_x, d_W = torch.autograd.grad(rows.values, leaves, g)
    A = W[rows.indices.long()]
    L = torch.eye(steps, dtype=DOUBLE) + (A @ A.mT).tril(-1)
    y = torch.linalg.solve_triangular(L.mT, g[..., None], upper=True)[..., 0]
    torch.testing.assert_close(d_x, (A.mT @ y[..., None])[..., 0], rtol=1e-9, atol=1e-9)
    values = rows.values.detach()
    before = x[:, None] - (values[..., None] * A).cumsum(1) + values[..., None] * A
    later = (y[..., None] * A).flip(1).cumsum(1).flip(1) - y[..., None] * A
    d_A = y[..., None] * before - values[..., None] * later
    exact = torch.zeros_like(W).index_add(0, rows.indices.reshape(-1).long(), d_A.reshape(-1, d))
    torch.testing.assert_close(d_W, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("outputs", ["values", "residual", "both"])
@pytest.mark.parametrize("relu", [True, False])
def test_derivatives_of_each_output(outputs: str, relu: bool) -> None:
    x, W = normal(11, 4, 5).requires_grad_(), unit_atoms(12, 14, 5).requires_grad_()

    def code(x: torch.Tensor, W: torch.Tensor) -> Any:
        rows, residual = subspan.matching_pursuit(x, W, 3, relu=relu, return_residual=True)
        return {"values": rows.values, "residual": residual, "both": (rows.values, residual)}[outputs]

    assert torch.autograd.gradcheck(code, (x, W), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(code, (x, W))


def test_what_relu_cuts_off_moves_nothing() -> None:
    x, W = normal(13, 5, 6).abs().requires_grad_(), (-normal(14, 9, 6).abs()).requires_grad_()
    rows, residual = subspan.matching_pursuit(x, W, 2, return_residual=True)
    assert not rows.values.any() and torch.equal(residual, x.detach())
    d_x, d_W = torch.autograd.grad(rows.values.sum() + residual.sum(), (x, W))
    assert torch.equal(d_x, torch.ones_like(x)) and not d_W.any()


def test_residuals_shrink_with_atoms_of_length_one() -> None:
    x, W = normal(15, 30, 10), unit_atoms(16, 40, 10)
    norms = [
        subspan.matching_pursuit(x, W, steps, "abs", relu=False, return_residual=True)[1].norm(dim=1)
        for steps in (1, 2, 5, 20)
    ]
    assert all((after < before).all() for before, after in itertools.pairwise(norms))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_of_equal_products_the_lower_atom(dtype: torch.dtype) -> None:
    for atoms in (3, 20, 90):
        W = torch.zeros(atoms, 4, dtype=dtype)
        W[1::2, 0] = 1
        W[2::2, 0] = -1
        x = torch.ones(40, 4, dtype=dtype)
        x[1::2] *= -1
        for steps in (1, 30):
            first = subspan.matching_pursuit(x, W, steps).indices[:, 0]
            assert (first[::2] == 1).all() and (first[1::2] == 2).all()
            assert (subspan.matching_pursuit(x, W, steps, "abs").indices[:, 0] == 1).all()
    assert (subspan.matching_pursuit(0 * x, W, 3).indices == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("n", [5, 400])
def test_a_bad_number_shows_in_its_row_alone(n: int, value: float) -> None:
    x, W, steps = updated(torch.float32)
    x = x[:n].clone()
    clean = subspan.matching_pursuit(x, W, steps)
    x[3, 7] = value
    rows, residual = subspan.matching_pursuit(x, W, steps, return_residual=True)
    others = torch.arange(n) != 3
    assert torch.equal(rows.values[others], clean.values[others]) and residual[others].isfinite().all()
    assert torch.equal(rows.indices[others], clean.indices[others])
    assert rows.values[3].isnan().all() and residual[3].isnan().all()


def test_an_atom_of_nan_shows_in_every_row() -> None:
    x, W, steps = updated(torch.float32)
    for n in (3, 400):
        bad = W.clone()
        bad[77, 5] = float("nan")
        leaf = bad.requires_grad_()
        rows = subspan.matching_pursuit(x[:n], leaf, steps)
        assert rows.values.isnan().all() and (rows.indices[:, 0] == 77).all()
        assert torch.autograd.grad(rows.values.sum(), leaf)[0][77].isnan().all()


def test_one_dictionary_for_batches() -> None:
    x, W = normal(17, 2, 3, 4, 6), unit_atoms(18, 9, 6)
    rows, residual = subspan.matching_pursuit(x, W, 2, return_residual=True)
    assert rows.shape == (2, 3, 4, 9) and residual.shape == x.shape
    flat = subspan.matching_pursuit(x.reshape(-1, 6), W, 2)
    assert torch.equal(rows.values.reshape(-1, 2), flat.values)
    many = subspan.matching_pursuit(x[0, 0], W.expand(2, 3, 9, 6), 2)
    assert many.shape == (2, 3, 4, 9) and torch.equal(many.values[1, 2], many.values[0, 0])
    for shape in ((0, 4, 6), (3, 0, 6), (2, 4, 0)):
        atoms = torch.ones(5, shape[-1], dtype=DOUBLE)
        empty, rest = subspan.matching_pursuit(torch.zeros(shape, dtype=DOUBLE), atoms, 2, return_residual=True)
        assert empty.values.shape == (*shape[:2], 2) and rest.shape == shape and not empty.values.any()


@pytest.mark.parametrize("by", ["value", "abs"])
def test_composite(by: str) -> None:
    composite = pytest.importorskip("subspan.composite.matching_pursuit")
    x, W = normal(19, 12, 7), unit_atoms(20, 25, 7)
    rows, residual = subspan.matching_pursuit(x, W, 4, by, return_residual=True)
    values, rest, indices = composite.matching_pursuit(x, W, 4, int(by == "abs"), True)
    assert torch.equal(indices, rows.indices)
    torch.testing.assert_close(values, rows.values, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rest, residual, rtol=1e-12, atol=1e-12)
    exact = reference.matching_pursuit(x.numpy(), W.numpy(), 4, by)
    np.testing.assert_allclose(values.numpy(), exact[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("atom", [-1, 9, 2**31 - 1])
def test_atoms_that_do_not_exist_are_refused_by_the_compiled_functions(atom: int) -> None:
    x, W = normal(21, 4, 5), normal(22, 9, 5)
    indices = torch.zeros(4, 2, dtype=torch.int32)
    indices[3, 1] = atom
    values, residual = torch.zeros(4, 2, dtype=DOUBLE), torch.zeros(4, 5, dtype=DOUBLE)
    with pytest.raises(ValueError, match=r"matching_pursuit: indices: expected .*, got "):
        cpu.pursuit_values(x, W, indices, values, residual, True, 1)
    with pytest.raises(ValueError, match=r"matching_pursuit: indices: expected .*, got "):
        cpu.pursuit_gradient(x, W, indices, values, None, None, torch.zeros(9, 5, dtype=DOUBLE), True, 1)
