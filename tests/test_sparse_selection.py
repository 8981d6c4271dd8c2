"""Activations that are chosen or cut off, beyond the op table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import subspan
from resident_memory import extra_bytes, needs_counter
from sample_arrays import normal
from subspan import SparseRows
from subspan.reference import sparse as reference

DOUBLE = torch.float64


def encoder(seed: int, n: int, d: int, features: int, dtype: torch.dtype = DOUBLE) -> tuple[torch.Tensor, ...]:
    return (
        normal(seed, n, d, dtype=dtype),
        normal(seed + 1, features, d, dtype=dtype),
        normal(seed + 2, features, dtype=dtype),
    )


# --- linear_topk: values ---


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_a_row_has_the_same_bits_in_any_batch(dtype: torch.dtype) -> None:
    """Rows alone, in other places of other batches, and with features split among threads."""
    for n, d, features, k in ((77, 33, 700, 9), (40, 1100, 90, 5), (3, 20, 9000, 40)):
        x, W, b = encoder(1, n, d, features, dtype)
        torch.set_num_threads(1)
        whole = subspan.linear_topk(x, W, b, k)
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            parts = [subspan.linear_topk(part, W, b, k) for part in x.split([1, 2, n - 3] if n > 3 else [1, 2])]
            assert torch.equal(torch.cat([p.values for p in parts]), whole.values)
            assert torch.equal(torch.cat([p.indices for p in parts]), whole.indices)


@pytest.mark.parametrize("by", ["value", "abs"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.bfloat16], ids=str)
def test_equal_outputs_infinities_and_nan_have_their_order(dtype: torch.dtype, by: str) -> None:
    """Small integers, whose products are exact; columns of the same numbers, rows of NaN, infinity and zeros."""
    generator = np.random.default_rng(3)
    for n, d, features in ((5, 3, 7), (70, 8, 650), (2, 4, 5000)):
        x = generator.integers(-2, 3, (n, d)).astype(float)
        W = generator.integers(-2, 3, (features, d)).astype(float)
        b = generator.integers(-1, 2, features).astype(float)
        x[0] = 0
        x[1, 0] = math.nan
        b[features // 2], b[features // 3] = math.nan, math.inf
        b[features - 1], b[0] = -math.inf, -math.inf
        for k in {1, 4, features // 2, features}:
            for relu in (True, False):
                values, order = reference.linear_topk(x, W, b, k, by=by, relu=relu)
                rows = subspan.linear_topk(*(torch.from_numpy(a).to(dtype) for a in (x, W, b)), k, by=by, relu=relu)
                assert np.array_equal(rows.indices.numpy(), order)
                assert np.array_equal(rows.values.double().numpy(), values, equal_nan=True)


def test_outputs_that_rise_and_fall_along_the_features() -> None:
    """Each output is larger than all before it: every one is a candidate."""
    slope = torch.linspace(-1, 1, 3000, dtype=DOUBLE)
    x = torch.tensor([[1.0], [-1.0], [0.0]], dtype=DOUBLE)
    for k in (1, 50, 700):
        rows = subspan.linear_topk(x, slope[:, None], None, k, relu=False)
        assert torch.equal(rows.indices[0], torch.arange(2999, 2999 - k, -1, dtype=torch.int32))
        assert torch.equal(rows.indices[1:], torch.arange(k, dtype=torch.int32).expand(2, k))


@pytest.mark.parametrize("kind", ["transposed", "half", "mixed", "stepped", "expanded"])
def test_weights_in_any_form(kind: str) -> None:
    """Rows that can be read in place, columns side by side as in a stored decoder, conversions: the same bits."""
    x, W, b = encoder(4, 30, 24, 203, torch.float32)
    W, b = W.bfloat16().float(), b.bfloat16().float()
    if kind == "expanded":
        W = W[:1].expand_as(W)
    forms: dict[str, Any] = {
        "transposed": (x, W.mT.contiguous().mT, b),
        "half": (x, W.bfloat16(), b.bfloat16()),
        "mixed": (x.bfloat16(), W, b.bfloat16()),
        "stepped": (x, torch.stack([W, W], -1)[..., 0], torch.stack([b, b], -1)[..., 1]),
        "expanded": (x, W, b),
    }
    expected = subspan.linear_topk(x.bfloat16().float() if kind == "mixed" else x, W.clone(), b, 11)
    found = subspan.linear_topk(*forms[kind], 11)
    assert torch.equal(found.indices, expected.indices) and torch.equal(found.values, expected.values)
    assert found.values.dtype == torch.float32


@needs_counter
@pytest.mark.no_sanitizer
def test_outputs_are_never_stored() -> None:
    """Nor are gathered rows: forward and backward together take less than a quarter of the outputs."""
    n, d, features, k = 2048, 32, 16384, 8
    x, W, b = (t.requires_grad_() for t in encoder(5, n, d, features, torch.float32))
    g = torch.ones(n, k)

    def both() -> None:
        torch.autograd.grad(subspan.linear_topk(x, W, b, k).values, (x, W, b), g)

    both()
    assert extra_bytes(both) < n * features * 4 / 4


# --- linear_topk: gradients ---


def dense_gradients(
    x: torch.Tensor, W: torch.Tensor, b: torch.Tensor, rows: SparseRows, g: torch.Tensor, relu: bool
) -> list[torch.Tensor]:
    """By autograd through the stored outputs."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, W, b)]
    outputs = torch.nn.functional.linear(*leaves).gather(-1, rows.indices.long())
    return list(torch.autograd.grad(outputs.relu() if relu else outputs, leaves, g))


@pytest.mark.parametrize("relu", [True, False])
def test_gradients_are_those_of_the_stored_outputs(relu: bool) -> None:
    x, W, b = (t.requires_grad_() for t in encoder(6, 12, 9, 40))
    rows = subspan.linear_topk(x, W, b, 25, relu=relu)
    assert relu == bool((rows.values == 0).any())
    g = normal(9, 12, 25)
    expected = dense_gradients(x, W, b, rows, g, relu)
    for found, right in zip(torch.autograd.grad(rows.values, (x, W, b), g), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


def test_picks_that_relu_cuts_off_move_nothing() -> None:
    """Sparsify's encoder passes gradient on to features that did not fire."""
    x, W, b = encoder(10, 5, 4, 10)
    leaves = [x.requires_grad_(), W.requires_grad_(), (b - 100).requires_grad_()]
    rows = subspan.linear_topk(*leaves, 3)
    assert not rows.values.any()
    assert not any(g.any() for g in torch.autograd.grad(rows.values.sum(), leaves))
    kept = subspan.linear_topk(*leaves, 3, relu=False)
    assert all(g.any() for g in torch.autograd.grad(kept.values.sum(), leaves))


def test_every_use_of_the_encoder_moves_it() -> None:
    """A loss of k, one of 4 k and one of the auxiliary features of a sparse autoencoder: their gradients add up."""
    x, W, b = (t.requires_grad_() for t in encoder(13, 8, 6, 60))
    D = normal(17, 60, 6)
    dead = torch.arange(60) % 3 == 0

    def losses() -> list[torch.Tensor]:
        codes = [subspan.linear_topk(x, W, b, 4), subspan.linear_topk(x, W, b, 16)]
        auxiliary = subspan.linear_topk(x, W[dead], b[dead], 5)
        few, many = (subspan.sparse_decode(rows, D) for rows in codes)
        rest = subspan.sparse_decode(auxiliary, D[dead])
        return [(few - x).square().sum(), (many - x).square().sum(), (rest - (x - few).detach()).square().sum()]

    alone = [torch.autograd.grad(losses()[i], (W, b)) for i in range(3)]
    together = torch.autograd.grad(sum(losses()), (W, b))
    for i, total in enumerate(together):
        assert all(part[i].any() for part in alone)
        torch.testing.assert_close(total, sum(part[i] for part in alone), rtol=1e-12, atol=1e-12)
    assert not alone[2][0][~dead].any() and alone[2][0][dead].any()


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32, torch.bfloat16], ids=str)
def test_ways_of_the_weight_gradient_agree(dtype: torch.dtype, with_bias: bool) -> None:
    x, W, b = (t.requires_grad_() for t in encoder(18, 9, 6, 50, dtype))
    bias = b if with_bias else None
    leaves = (x, b) if with_bias else (x,)

    def total(way: str) -> torch.Tensor:
        return subspan.linear_topk(x, W, bias, 3, weight_grad=way).values.sin().sum()

    *others, dense = torch.autograd.grad(total("dense"), (*leaves, W))
    *found, rows = torch.autograd.grad(total("rows"), (*leaves, W))
    assert rows.layout is torch.sparse_coo and rows.is_coalesced() and rows._nnz() < 50
    assert torch.equal(rows.to_dense(), dense)
    for one, other in zip(found, others, strict=True):
        assert torch.equal(one, other)
    for times in (1, 2):
        total("accumulate").backward()
        torch.testing.assert_close(W.grad, times * dense)
        torch.testing.assert_close(x.grad, times * others[0])
    assert not with_bias or b.grad is not None


def test_ways_are_refused_where_they_do_not_apply() -> None:
    x, W, b = (t.requires_grad_() for t in encoder(20, 4, 3, 8))
    with pytest.raises(ValueError, match=r"linear_topk: weight_grad: expected one of .*, got 'sparse'"):
        subspan.linear_topk(x, W, b, 2, weight_grad="sparse")
    with pytest.raises(ValueError, match=r"linear_topk: weight_grad: expected 'dense' where W .* got 'rows'"):
        subspan.linear_topk(x, W[None], b, 2, weight_grad="rows")
    with pytest.raises(ValueError, match=r"linear_topk: W: expected a leaf tensor .* got the result of"):
        subspan.linear_topk(x, W * 1, b, 2, weight_grad="accumulate")
    with pytest.raises(NotImplementedError, match=r"linear_topk: weight_grad: expected 'dense' for second derivatives"):
        torch.autograd.grad(subspan.linear_topk(x, W, b, 2, weight_grad="rows").values.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"linear_topk: weight_grad: expected 'dense' under torch\.compile"):
        torch.vmap(lambda t: subspan.linear_topk(t, W, b, 2, weight_grad="rows"))(x[None])


def test_codes_and_weights_may_be_one_tensor() -> None:
    x = normal(21, 6, 4).requires_grad_()
    copy = x.detach().clone().requires_grad_()
    (both,) = torch.autograd.grad(subspan.linear_topk(x, x, None, 3).values.sum(), x)
    parts = torch.autograd.grad(subspan.linear_topk(x, copy, None, 3).values.sum(), (x, copy))
    torch.testing.assert_close(both, sum(parts), rtol=1e-13, atol=1e-13)


# --- batch_topk ---


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_entries_of_all_rows_have_their_order(dtype: torch.dtype) -> None:
    """Many equal entries at the boundary, all in one row, zeros after a relu, NaN and infinity; any threads."""
    generator = np.random.default_rng(1)
    for n, columns in ((6, 5), (7, 640), (40, 300)):
        few = generator.integers(-3, 4, (n, columns)).astype(float)
        normal_rows = generator.standard_normal((n, columns))
        one = normal_rows.copy()
        one[n // 2] += 100
        odd = normal_rows.copy()
        odd[0, ::3], odd[1, ::2], odd[2, 1::4] = np.nan, np.inf, -np.inf
        for x in (
            few,
            normal_rows,
            one,
            odd,
            np.maximum(normal_rows - 1, 0),
            np.full((n, columns), -0.0),
            few * np.nan,
        ):
            for k in {1, 3, columns // 3, columns}:
                values, order, counts = reference.batch_topk(x, k, relu=False)
                for threads in (1, 3):
                    torch.set_num_threads(threads)
                    rows = subspan.batch_topk(torch.from_numpy(x).to(dtype), k, relu=False)
                    assert np.array_equal(rows.indices.numpy(), order)
                    assert np.array_equal(rows.offsets.diff().numpy(), counts)
                    np.testing.assert_array_equal(rows.values.numpy(), values.astype(rows.values.numpy().dtype))


def test_batch_of_one_is_topk_rows() -> None:
    x = normal(22, 1, 900)
    rows, alone = subspan.batch_topk(x, 31), subspan.topk_rows(x, 31)
    assert torch.equal(rows.to_dense(), alone.to_dense())


def test_batches_are_encoded_at_inference_by_their_threshold() -> None:
    """The least activation of a batch as a threshold gives the batch's own codes, but for the boundary itself."""
    x = normal(23, 50, 80)
    rows = subspan.batch_topk(x, 6)
    boundary = rows.values[rows.values > 0].min()
    own = rows.to_dense()
    assert torch.equal(subspan.jumprelu(x, boundary), torch.where(own > boundary, own, 0.0))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_csr_of_a_batch_goes_on() -> None:
    """Into products, scipy's matrices and torch's."""
    x = normal(24, 9, 30).requires_grad_()
    rows, W = subspan.batch_topk(x, 4), normal(25, 30, 5)
    torch.testing.assert_close(subspan.sparse_decode(rows, W), rows.to_dense() @ W)
    (grad,) = torch.autograd.grad(rows.values.square().sum(), x)
    assert torch.equal(grad, 2 * rows.to_dense().detach())
    checked = SparseRows(rows.indices, rows.values, rows.columns, rows.offsets)
    assert torch.equal(checked.to_torch().to_dense(), rows.to_dense())


def test_batches_of_batches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_topk: x: expected \(n, columns\), got shape \(2, 3, 4\)"):
        subspan.batch_topk(normal(26, 2, 3, 4), 2)


@needs_counter
@pytest.mark.no_sanitizer
@pytest.mark.parametrize("kind", ["normal", "zeros", "one row"])
def test_choice_takes_little_memory(kind: str) -> None:
    """Also where all entries are equal, or all large ones lie in one row."""
    x = (
        torch.zeros(512, 16384)
        if kind == "zeros"
        else torch.randn(512, 16384, generator=torch.Generator().manual_seed(1))
    )
    if kind == "one row":
        x[7] += 100
    subspan.batch_topk(x, 8)
    assert extra_bytes(lambda: subspan.batch_topk(x, 8)) < x.nbytes / 8


# --- thresholds ---


def test_jumprelu_moves_its_thresholds_by_the_window() -> None:
    """SAELens' gradient, with windows that hold entries; for thresholds of columns and for one."""
    x, threshold, g = normal(27, 300, 17), normal(28, 17).abs(), normal(29, 300, 17)
    for dtype in (torch.float32, DOUBLE):
        leaves = [t.to(dtype).clone().requires_grad_() for t in (x, threshold)]
        found = torch.autograd.grad(subspan.jumprelu(*leaves, 0.3), leaves, g.to(dtype))
        expected = reference.jumprelu_gradient(*(t.to(dtype).double().numpy() for t in (g, x, threshold)), 0.3)
        assert expected[1].all()
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(
                one.detach().numpy(),
                other,
                rtol=600 * torch.finfo(dtype).eps,
                atol=1e-4 if dtype is torch.float32 else 1e-12,
            )
    one = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    (grad,) = torch.autograd.grad(subspan.jumprelu(x, one, 0.3), one, g)
    columns = reference.jumprelu_gradient(g.numpy(), x.numpy(), np.full(17, 0.7), 0.3)[1]
    assert grad.shape == () and math.isclose(float(grad), columns.sum(), rel_tol=1e-12)


@pytest.mark.parametrize("op", [subspan.jumprelu, subspan.soft_threshold], ids=lambda op: op.__name__)
def test_second_derivatives_hold_the_windows(op: Any) -> None:
    """The gradient is differentiated as a function of the upstream gradient and the threshold; composites alike."""
    composite = pytest.importorskip("subspan.composite.sparse_thresholds")
    width = (0.3,) if op is subspan.jumprelu else ()
    x, threshold, g = normal(30, 20, 4), normal(31, 4).abs() + 0.1, normal(32, 20, 4)

    def gradients(function: Any) -> list[torch.Tensor]:
        leaves = [t.clone().requires_grad_() for t in (x, threshold, g)]
        first = torch.autograd.grad(function(*leaves[:2], *width), leaves[:2], leaves[2], create_graph=True)
        total = sum((f * f.detach().cos()).sum() for f in first)
        return [*first, *torch.autograd.grad(total, leaves[1:], allow_unused=op is subspan.soft_threshold)]

    kernel = gradients(op)
    torch_operations = gradients(lambda *args: getattr(composite, op.__name__)(*args)[0])
    for one, other in zip(kernel, torch_operations, strict=True):
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
    assert kernel[3].any()
    # Differences of the gradient itself, which is smooth in these two wherever no entry enters or leaves a window.
    leaves = [threshold.clone().requires_grad_(), g.clone().requires_grad_()]

    def gradient(t: torch.Tensor, up: torch.Tensor) -> Any:
        own = x.clone().requires_grad_()
        return torch.autograd.grad(op(own, t, *width), (own, t), up, create_graph=True)

    assert torch.autograd.gradcheck(gradient, leaves)


def test_soft_threshold_is_softshrink() -> None:
    x = normal(33, 4, 3, 70, dtype=torch.float32)
    for number in (0.0, 0.4, 1):
        assert torch.equal(subspan.soft_threshold(x, number), torch.nn.functional.softshrink(x, number))
        assert np.array_equal(subspan.soft_threshold(x.numpy(), number), subspan.soft_threshold(x, number).numpy())
        scalar = torch.tensor(float(number))
        assert torch.equal(subspan.soft_threshold(x, scalar), subspan.soft_threshold(x, number))


def test_numbers_as_thresholds() -> None:
    x = normal(34, 3, 5)
    expected = torch.where(x > 0.25, x, 0.0)
    for number in (
        0.25,
        np.float64(0.25),
        torch.tensor(0.25),
        torch.tensor([0.25]),
        torch.tensor(0.25, dtype=torch.bfloat16),
    ):
        assert torch.equal(subspan.jumprelu(x, number, 0.1), expected)
    for bad, error in ((math.nan, ValueError), (math.inf, ValueError), (True, TypeError), ("0", TypeError)):
        with pytest.raises(error, match=r"jumprelu: threshold: expected .*, got"):
            subspan.jumprelu(x, bad, 0.1)


def test_infinite_thresholds_cut_everything_off() -> None:
    x = normal(35, 30, 3).requires_grad_()
    threshold = torch.tensor([math.inf, 0.5, -math.inf], dtype=DOUBLE, requires_grad=True)
    y = subspan.jumprelu(x, threshold, 0.2)
    assert not y[:, 0].any() and torch.equal(y[:, 2], x[:, 2])
    d_x, d_threshold = torch.autograd.grad(y.sum(), (x, threshold))
    assert torch.equal(d_x, (x > threshold).double()) and torch.equal(d_threshold[::2], torch.zeros(2, dtype=DOUBLE))


@pytest.mark.parametrize("op", [subspan.jumprelu, subspan.soft_threshold], ids=lambda op: op.__name__)
def test_sums_down_long_columns_have_the_same_bits_for_any_threads(op: Any) -> None:
    x, g = normal(36, 1500, 2500, dtype=torch.float32), normal(37, 1500, 2500, dtype=torch.float32)
    for size in ((2500,), (1,), ()):
        t = torch.full(size, 0.5, requires_grad=True)
        results = []
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(torch.autograd.grad(op(x, t, *((0.2,) if op is subspan.jumprelu else ())), t, g)[0])
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2]) and results[0].any()
