"""Wrong arguments of the similarity of representations, and the entropy's values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import subspan
from sample_arrays import SHAPES as FEATURES
from sample_arrays import delicate_features, features, normal
from subspan.nn import VNELoss
from subspan.reference import similarity as reference

X, Y = normal(1, 9, 4), normal(2, 9, 3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: subspan.cca([[1.0]], Y), TypeError, "cca: X: expected a torch tensor, NumPy array or CuPy array"),
        (lambda: subspan.cca(X, Y.numpy()), TypeError, "cca: Y: expected the array library of X"),
        (lambda: subspan.svcca(X[0], Y), ValueError, r"svcca: X: expected at least 2 dimensions, got shape \(4,\)"),
        (lambda: subspan.pwcca(X, Y[:8]), ValueError, r"pwcca: Y: expected as many samples .*\(9, 4\).*\(8, 3\)"),
        (lambda: subspan.linear_cka(X.long(), Y), TypeError, "linear_cka: X: expected float64"),
        (lambda: subspan.linear_cka(X.expand(2, 9, 4), Y.expand(3, 9, 3)), ValueError, "linear_cka: Y: .*broadcast"),
        (lambda: subspan.linear_cka(X[:3], Y[:3], debiased=True), ValueError, "linear_cka: X: expected at least 4 sam"),
        (lambda: subspan.linear_cka(X, Y, debiased=1), TypeError, "linear_cka: debiased: expected True or False"),
        (lambda: subspan.cca(X, Y, rank_tol=-1.0), ValueError, "cca: rank_tol: expected a number >= 0, got -1.0"),
        (lambda: subspan.pwcca(X, Y, rank_tol="0"), TypeError, "pwcca: rank_tol: expected a number"),
        (lambda: subspan.svcca(X, Y, rank=0), ValueError, "svcca: rank: expected an integer"),
        (lambda: subspan.svcca(X, Y, energy=1.5), ValueError, r"svcca: energy: expected a number in \(0, 1\], got 1.5"),
        (lambda: subspan.svcca(X, Y, energy=0), ValueError, "svcca: energy: expected a number > 0, got 0"),
        (lambda: subspan.svcca(X, Y, return_correlations=1), TypeError, "svcca: return_correlations: expected True"),
        (
            lambda: subspan.procrustes_distance(X, Y, metric="angle"),
            ValueError,
            "procrustes_distance: metric: expected one of 'chordal', 'angular', got 'angle'",
        ),
        (lambda: subspan.pairwise_cca(X), TypeError, r"pairwise_cca: Xs: expected a list .* array of shape \(9, 4\)"),
        (lambda: subspan.pairwise_svcca([]), TypeError, "pairwise_svcca: Xs: expected a list .*, got an empty list"),
        (lambda: subspan.pairwise_pwcca([X], 3), TypeError, "pairwise_pwcca: Ys: expected a list .*, got int"),
        (lambda: subspan.pairwise_linear_cka([X], [Y, Y[:4]]), ValueError, r"pairwise_linear_cka: Ys\[1\]: expected"),
        (lambda: subspan.pairwise_cca([X], [Y.expand(2, 9, 3)]), ValueError, r"pairwise_cca: Ys\[0\]: expected the sh"),
        (lambda: subspan.pairwise_linear_cka([X[:2]], debiased=True), ValueError, r"pairwise_linear_cka: Xs\[0\]: exp"),
        (lambda: subspan.pairwise_procrustes([X, "a"]), TypeError, r"pairwise_procrustes: Xs\[1\]: expected"),
        (lambda: subspan.von_neumann_entropy(X, normalize=None), TypeError, "von_neumann_entropy: normalize: expected"),
        (lambda: subspan.von_neumann_entropy(X[0]), ValueError, "von_neumann_entropy: H: expected at least 2"),
        (lambda: VNELoss(alpha=float("nan")), ValueError, "VNELoss: alpha: expected a finite number"),
        (lambda: VNELoss()(X[0]), ValueError, "VNELoss: H: expected at least 2"),
    ],
)
def test_wrong_arguments(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_entropy_is_the_paper_s(dtype: torch.dtype, normalize: bool) -> None:
    precision = 30 * torch.finfo(dtype).eps
    cases = dict(features(dtype, FEATURES)) | {k: v.to(dtype) for k, v in delicate_features().items()}
    for H in cases.values():
        result = subspan.von_neumann_entropy(H, normalize=normalize)
        assert result.dtype == dtype and result.shape == H.shape[:-2]
        arrays = torch.as_tensor(subspan.von_neumann_entropy(H.numpy(), normalize=normalize))
        torch.testing.assert_close(arrays, result, rtol=precision, atol=precision)
        if H.shape[-2] and H.numel():
            items = H.double().reshape(-1, *H.shape[-2:]).numpy()
            expected = np.array([reference.von_neumann_entropy(item, normalize) for item in items])
            bound = precision * max(1, abs(expected).max())
            assert abs(result.double().reshape(-1).numpy() - expected).max() <= bound
        else:
            assert result.eq(0).all()


def test_entropy_extremes() -> None:
    assert abs(float(subspan.von_neumann_entropy(torch.eye(7))) - np.log(7)) < 1e-6
    batch = normal(3, 3, 5, 4)
    batch[1, 0, 0] = np.inf
    assert subspan.von_neumann_entropy(batch).isnan().tolist() == [False, True, False]
    huge = torch.full((3, 2), 1e300, dtype=torch.float64)
    assert subspan.von_neumann_entropy(huge).isnan()  # its norm has no number


def test_vne_loss_is_the_published_regulariser() -> None:
    H = normal(4, 12, 8).requires_grad_()
    Z = torch.nn.functional.normalize(H, dim=1)
    values = torch.linalg.svdvals(Z / 12**0.5) ** 2
    expected = 0.3 * (values * values.log()).nansum()
    loss = VNELoss(alpha=0.3)(H)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, H)[0] for value in (loss, expected)), rtol=1e-11, atol=1e-14
    )
    torch.testing.assert_close(VNELoss(2.0)(torch.stack([H, 2 * H])), 2 * VNELoss(1.0)(H))
    assert repr(VNELoss(-0.5)) == "VNELoss(alpha=-0.5)"
