"""GrassmannLinear and SubspaceOrthogonalityLoss against the formulas that they stand for, written out in float64."""

from __future__ import annotations

import copy
import itertools
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sample_arrays import normal
from subspan.nn import GrassmannLinear, SubspaceOrthogonalityLoss

REAL = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
LAYOUT = pytest.mark.parametrize("layout", ["columns", "rows"])


def published_head(x: Tensor, weight: Tensor, k: int) -> Tensor:
    """GCR's: a linear layer of classes * k outputs, whose groups of k are normed."""
    projections = torch.nn.functional.linear(x / x.norm(dim=-1, keepdim=True), weight)
    return 25 * projections.reshape(len(x), -1, k).norm(dim=2)


# --- the head ---


def test_head_is_the_published_one_and_loads_its_checkpoints(tmp_path: Path) -> None:
    published = torch.nn.Linear(20, 7 * 3, bias=False).double()
    torch.save(published.state_dict(), tmp_path / "head.pt")
    head = GrassmannLinear(20, 7, 3, dtype=torch.float64)
    head.load_state_dict(torch.load(tmp_path / "head.pt"), strict=True)
    assert torch.equal(head.weight, published.weight)
    x, upstream = normal(1, 9, 20).requires_grad_(), normal(2, 9, 7)
    actual, expected = head(x), published_head(x, published.weight, 3)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(actual, [x, head.weight], upstream)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, [x, published.weight], upstream), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-11, atol=1e-11)


@LAYOUT
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_bases_begin_orthonormal_and_different(layout: str, dtype: torch.dtype) -> None:
    head = GrassmannLinear(20, 6, 4, layout=layout, dtype=dtype)
    bases = head.subspaces()
    assert bases.shape == (6, 20, 4) and head.weight.dtype == dtype
    assert bases.untyped_storage().data_ptr() == head.weight.untyped_storage().data_ptr()
    bases = bases.detach().double()
    identity = torch.eye(4, dtype=torch.float64).expand(6, 4, 4)
    torch.testing.assert_close(bases.mT @ bases, identity, rtol=0, atol=10 * torch.finfo(dtype).eps)
    assert ((bases[:1].mT @ bases[1:]).square().sum((1, 2)) < 3).all()  # 4 for equal subspaces


def test_layouts_are_two_ways_to_store_one_head() -> None:
    rows = GrassmannLinear(10, 4, 3, dtype=torch.float64)
    columns = GrassmannLinear(10, 4, 3, layout="columns", dtype=torch.float64)
    assert rows.weight.shape == (12, 10) and columns.weight.shape == (4, 10, 3)
    columns.load_state_dict({"weight": rows.subspaces().detach().clone()})
    x = normal(1, 5, 10)
    assert torch.equal(rows(x), columns(x))


def test_manifold_state_survives() -> None:
    """As an attribute of the weight it is lost in a deep copy and when a state is loaded."""
    head = GrassmannLinear(10, 4, 3, scale=7.0, layout="columns", normalize=False)
    loaded = GrassmannLinear(10, 4, 3, scale=7.0, layout="columns", normalize=False)
    loaded.load_state_dict(head.state_dict())
    x = normal(1, 2, 10).float()
    for copied in (copy.deepcopy(head), pickle.loads(pickle.dumps(head)), loaded):
        assert (copied.k, copied.layout, copied.classes) == (3, "columns", 4)
        assert torch.equal(copied(x), head(x))
        assert copied.subspaces().shape == (4, 10, 3)


def test_without_normalization_logits_grow_with_features() -> None:
    head = GrassmannLinear(10, 4, 3, scale=2.0, normalize=False, dtype=torch.float64)
    x = normal(1, 2, 5, 10)
    expected = 2 * torch.einsum("abn,cnk->abck", x, head.subspaces()).norm(dim=-1)
    torch.testing.assert_close(head(x), expected)


@REAL
def test_a_feature_of_zeros(dtype: torch.dtype) -> None:
    """Logits 0, gradients 0, second derivatives finite; other features are not affected."""
    head = GrassmannLinear(8, 3, 2, dtype=dtype)
    x = normal(1, 4, 8, dtype=dtype)
    x[2] = 0
    x.requires_grad_()
    logits = head(x)
    assert not logits[2].any() and (logits[[0, 1, 3]] > 0).all()
    for graph in (False, True):
        d_x, d_weight = torch.autograd.grad(logits.sum(), [x, head.weight], create_graph=graph, retain_graph=True)
        assert not d_x[2].any() and d_x[[0, 1, 3]].isfinite().all() and d_weight.isfinite().all()
    second = torch.autograd.grad(d_x.square().sum() + d_weight.square().sum(), [x, head.weight])
    assert all(derivative.isfinite().all() for derivative in second)
    others = head(x[[0, 1, 3]])
    torch.testing.assert_close(logits[[0, 1, 3]], others)


@pytest.mark.parametrize("size", [1e-36, 1e-25, 1e-12, 1e12, 1e25, 1e36])
def test_size_of_a_feature_does_not_matter(size: float) -> None:
    head, x = GrassmannLinear(8, 3, 2), normal(1, 4, 8).float()
    torch.testing.assert_close(head((x.double() * size).float()), head(x), rtol=1e-5, atol=1e-5)


def test_second_derivatives_of_the_head() -> None:
    head, x = GrassmannLinear(6, 3, 2, dtype=torch.float64), normal(1, 2, 6).requires_grad_()

    def function(x: Tensor, weight: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(head, {"weight": weight}, (x,))
        return result

    weight = head.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(function, (x, weight))
    assert torch.autograd.gradgradcheck(function, (x, weight))


@LAYOUT
def test_head_learns_subspaces(layout: str) -> None:
    """Features of three planes in five dimensions, mixed signs: no linear classifier separates them."""
    planes = torch.linalg.qr(normal(1, 3, 5, 2)).Q
    labels = torch.arange(150) % 3
    x = (planes[labels] @ normal(2, 150, 2, 1)).squeeze(-1)
    head = GrassmannLinear(5, 3, 2, layout=layout, dtype=torch.float64)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(head(x), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            head.subspaces().copy_(torch.linalg.qr(head.subspaces()).Q)
    assert (head(x).argmax(1) == labels).double().mean() > 0.9


# --- the loss ---


def overlap(bases: Tensor) -> Tensor:
    """The mean over all pairs, one by one."""
    pairs = list(itertools.permutations(range(len(bases)), 2))
    return torch.stack([(bases[c].T @ bases[d]).square().sum() / bases.shape[-1] for c, d in pairs]).mean()


#: Bases of all classes together fewer than the length of a vector, and more.
SIZES = pytest.mark.parametrize(("classes", "n", "k"), [(4, 30, 3), (5, 9, 4), (2, 8, 4), (6, 3, 1)])


@SIZES
@REAL
def test_loss_is_the_mean_over_pairs(classes: int, n: int, k: int, dtype: torch.dtype) -> None:
    bases = torch.linalg.qr(normal(1, classes, n, k)).Q.to(dtype).requires_grad_()
    exact = bases.detach().double().requires_grad_()
    expected = overlap(exact)
    (wanted,) = torch.autograd.grad(expected, exact)
    tolerance = 20 * torch.finfo(dtype).eps
    for loss in (SubspaceOrthogonalityLoss()(bases), SubspaceOrthogonalityLoss(layout="rows")(bases.mT)):
        assert loss.dtype == dtype and loss.shape == ()
        torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
        (gradient,) = torch.autograd.grad(loss, bases)
        torch.testing.assert_close(gradient.double(), wanted, rtol=tolerance, atol=tolerance)
    batch = torch.stack([bases, 2 * bases])
    torch.testing.assert_close(SubspaceOrthogonalityLoss()(batch), torch.stack([loss, 16 * loss]))


@SIZES
def test_second_derivatives_of_the_loss(classes: int, n: int, k: int) -> None:
    bases = normal(1, classes, n, k).requires_grad_()
    assert torch.autograd.gradcheck(SubspaceOrthogonalityLoss(), bases)
    assert torch.autograd.gradgradcheck(SubspaceOrthogonalityLoss(), bases, fast_mode=True)


def test_loss_at_its_ends() -> None:
    """Orthogonal subspaces exactly 0, also in float32; equal ones 1, whatever their bases; a single one 0."""
    loss = SubspaceOrthogonalityLoss()
    orthogonal = torch.linalg.qr(normal(1, 12, 12)).Q.reshape(12, 4, 3).transpose(0, 1)
    assert loss(orthogonal) < 1e-30
    assert loss(torch.eye(12).reshape(12, 4, 3).transpose(0, 1)) == 0
    basis = torch.linalg.qr(normal(2, 12, 3)).Q
    turned = torch.stack([basis @ torch.linalg.qr(normal(i, 3, 3)).Q for i in range(6)])
    torch.testing.assert_close(loss(turned), torch.ones((), dtype=torch.float64))
    single = normal(3, 1, 5, 2).requires_grad_()
    loss(single).backward()
    assert loss(single) == 0 and single.grad is not None and not single.grad.any()


def test_descent_pushes_subspaces_apart() -> None:
    head = GrassmannLinear(12, 4, 3)
    loss, optimiser = SubspaceOrthogonalityLoss(), torch.optim.SGD(head.parameters(), lr=2.0)
    before = loss(head.subspaces()).item()
    for _ in range(100):
        optimiser.zero_grad()
        loss(head.subspaces()).backward()
        optimiser.step()
        with torch.no_grad():
            head.subspaces().copy_(torch.linalg.qr(head.subspaces()).Q)
    assert loss(head.subspaces()).item() < before / 10


# --- arguments ---


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: GrassmannLinear(0, 3, 2), ValueError, r"GrassmannLinear: in_features: expected .+, got 0"),
        (lambda: GrassmannLinear(4, 3.0, 2), TypeError, r"GrassmannLinear: classes: expected .+, got float"),
        (lambda: GrassmannLinear(4, 3, 5), ValueError, r"GrassmannLinear: k: expected at most in_features 4, got 5"),
        (lambda: GrassmannLinear(4, 3, 2, scale="1"), TypeError, r"GrassmannLinear: scale: expected .+, got str"),
        (
            lambda: GrassmannLinear(4, 3, 2, layout="row"),
            ValueError,
            r"GrassmannLinear: layout: expected .+, got 'row'",
        ),
        (lambda: GrassmannLinear(4, 3, 2, normalize=1), TypeError, r"GrassmannLinear: normalize: expected .+, got int"),
        (lambda: GrassmannLinear(4, 3, 2)(torch.ones(2, 5)), ValueError, r"GrassmannLinear: x: expected .+\(2, 5\)"),
        (lambda: GrassmannLinear(4, 3, 2)(torch.ones(4).int()), TypeError, r"GrassmannLinear: x: expected .+int32"),
        (lambda: SubspaceOrthogonalityLoss(layout=1), ValueError, r"SubspaceOrthogonalityLoss: layout: expected"),
        (
            lambda: SubspaceOrthogonalityLoss()(torch.ones(2, 3)),
            ValueError,
            r"SubspaceOrthogonalityLoss: bases: expected at least 3 dimensions, got shape \(2, 3\)",
        ),
    ],
)
def test_bad_input(make, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        make()


def test_device_and_dtype_of_the_weight() -> None:
    head = GrassmannLinear(6, 3, 2, device="meta", dtype=torch.float16)
    assert head.weight.is_meta and head.weight.dtype == torch.float16
