"""Weights that stay orthogonal: a parametrisation for any module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from .. import _check
from ..composite.factor import result_dtype
from ..ops.dense import affine_product
from ..ops.householder import householder_product
from ..ops.orthonormalize import orthonormalize
from ..ops.skew import cayley_of_triangle, skew_expm

_MAPS = {"householder": 0, "cayley": 1, "matrix_exp": 2, "exp": 2}
_NAMES = ("householder", "cayley", "matrix_exp")


class Orthogonal(torch.nn.Module):
    """The map from a free parameter X to an orthogonal weight of its shape, as ``register_parametrization`` takes it.

    With m x n of the weight, or of its transpose where it is wide, m >= n, only the entries of X below the diagonal
    count. `base`, where there is one, is orthogonal of order m, and the weight at X = 0 is its first columns; otherwise
    `sign`, of the map "householder", holds 1 or -1 for every column. Both are buffers, which no optimiser touches.
    """

    base: Tensor | None
    sign: Tensor | None

    def __init__(self, weight: Tensor, orthogonal_map: str, trivial: bool) -> None:
        super().__init__()
        self.shape, self.orthogonal_map, self.trivial = tuple(weight.shape), orthogonal_map, trivial
        self.wide = self.shape[-2] < self.shape[-1]
        self.register_buffer("base", None)
        self.register_buffer("sign", None)
        if not trivial and orthogonal_map == "householder":
            signs = (*self.shape[:-2], min(self.shape[-2:]))
            self.sign = torch.ones(signs, dtype=weight.dtype, device=weight.device)

    def forward(self, X: Tensor) -> Tensor:
        weight = self._of_reflectors(X) if self.orthogonal_map == "householder" else self._of_skew(X)
        return weight if weight.dtype == X.dtype else weight.to(X.dtype)

    def _of_reflectors(self, X: Tensor) -> Tensor:
        """Of unit lower triangular vectors; those of X = 0 reflect all axes, which the base takes back."""
        Q = householder_product(X, lapack=True, layout="rows" if self.wide else "columns")
        if self.base is not None:
            left, right = (Q, self.base.to(Q.dtype)) if self.wide else (self.base.to(Q.dtype), Q.mT)
            turned: Tensor = affine_product(left, right, None, -1.0)
            return turned
        assert self.sign is not None
        sign = self.sign.to(Q.dtype)
        signed: Tensor = Q * (sign[..., :, None] if self.wide else sign[..., None, :])
        return signed

    def _of_skew(self, X: Tensor) -> Tensor:
        tall = X.mT if self.wide else X
        count, missing = tall.shape[-1], tall.shape[-2] - tall.shape[-1]
        square = torch.nn.functional.pad(tall, (0, missing)) if missing else tall
        base = None if self.base is None else self.base.to(result_dtype(X))
        if self.orthogonal_map == "cayley" and not missing:
            rotated: Tensor = cayley_of_triangle(square, base)
            return rotated
        Q: Tensor = cayley_of_triangle(square) if self.orthogonal_map == "cayley" else skew_expm(2 * square.tril(-1))
        columns = Q[..., :count]
        if base is not None:
            columns = affine_product(base, columns.mT)
        return columns.mT if self.wide else columns

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> Tensor:
        """X of a weight, or of the Q factor of one that is not orthogonal, R having a positive diagonal."""
        if tuple(weight.shape) != self.shape:
            raise ValueError(f"orthogonal: weight: expected shape {self.shape}, got shape {tuple(weight.shape)}")
        tall = (weight.mT if self.wide else weight).double()
        if self.trivial:
            self.base = completed(_with_orthonormal_columns(tall, result_dtype(weight))).to(result_dtype(weight))
            return torch.zeros_like(weight)
        if self.orthogonal_map != "householder":
            raise NotImplementedError(
                "orthogonal: weight: it is not possible to assign to the matrix exponential or the Cayley "
                "parametrization without a base: expected use_trivialization=True"
            )
        factors, tau = torch.geqrf(tall)
        positive = factors.diagonal(dim1=-2, dim2=-1) >= 0
        # LAPACK's last column, and one that needs no reflector, has tau = 0; here v = e_j reflects it.
        self.sign = torch.where(positive == (tau != 0), 1.0, -1.0).to(weight)
        vectors = factors.tril(-1).to(weight.dtype)
        return (vectors.mT if self.wide else vectors).contiguous()

    def extra_repr(self) -> str:
        kept = "" if self.base is None else f", base={tuple(self.base.shape)}"
        return f"shape={self.shape}, orthogonal_map={self.orthogonal_map!r}{kept}"


def _read_signs(parametrizations: torch.nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Of torch's checkpoint, where they are on the diagonal of X, shrunk perhaps by weight decay."""
    original = state.get(f"{prefix}original")
    for name, parametrization in parametrizations.named_children():
        sign = getattr(parametrization, "sign", None)
        if sign is not None and isinstance(original, Tensor) and f"{prefix}{name}.sign" not in state:
            negative = original.diagonal(dim1=-2, dim2=-1) < 0
            state[f"{prefix}{name}.sign"] = torch.where(negative, -1.0, 1.0).to(sign)


def _with_orthonormal_columns(tall: Tensor, dtype: torch.dtype) -> Tensor:
    """Items that are orthonormal to rounding of `dtype` as they are, Q of the others."""
    one = torch.eye(tall.shape[-1], dtype=tall.dtype, device=tall.device)
    allowed = 10 * tall.shape[-2] * torch.finfo(dtype).eps
    good = ((tall.mT @ tall - one).abs() <= allowed).all(-1, keepdim=True).all(-2, keepdim=True)
    return torch.where(good, tall, orthonormalize(tall))


def completed(columns: Tensor) -> Tensor:
    """A square matrix with orthonormal columns, these first."""
    length, count = columns.shape[-2:]
    if length == count:
        return columns
    vectors, tau = torch.geqrf(columns)
    whole = householder_product(vectors, tau, columns=length, lapack=True)
    return torch.cat([columns, whole[..., count:]], -1)


def orthogonal(
    module: torch.nn.Module,
    name: str = "weight",
    map: str | None = None,
    *,
    use_trivialization: bool = True,
    orthogonal_map: str | None = None,
) -> torch.nn.Module:
    r"""Makes a matrix of a module orthogonal and keeps it so: ``torch.nn.utils.parametrizations.orthogonal``, faster.

    .. math:: W^\top W = I \text{ for } W \in \mathbb{R}^{m \times n},\ m \ge n, \qquad W W^\top = I \text{ otherwise}

    With X the parameter, L its entries below the diagonal, K = L - L^T and B the orthogonal base, W is, of a tall or
    square matrix, the first n columns of

    .. math:: B\,(I - \tfrac12 K)^{-1} (I + \tfrac12 K), \qquad B \exp K, \qquad -B\,H_1 \cdots H_n

    for the maps "cayley", "matrix_exp" and "householder", where H_j reflects column j of I + L. B is chosen such that
    X = 0 is the weight assigned; parameters, shapes, initial values, assignment and gradients are those of torch's,
    whose checkpoints load. What differs: signs are kept in a buffer, so that weight decay leaves W orthogonal (torch
    keeps them on the diagonal of X and converts them to integers: the first step with weight decay makes W zero); the
    base of a matrix that is not square is completed without random numbers; square matrices have the map "cayley"
    unless another is asked for.

    The base of a half-precision weight is kept in float32; a module that is cast later casts its base too, and is then
    orthogonal to half precision only.

    Args:
        module: with the parameter or buffer; changed in place.
        name: of it: a matrix, or (\*batch, m, n); float64, float32, float16 or bfloat16, the latter two computed in
            float32.
        map: "cayley", "householder", or "matrix_exp", also called "exp". None for the fastest: "cayley" of a square
            matrix, "householder" of others. (torch's default for square ones is "matrix_exp": say so for its
            checkpoints.)
        use_trivialization: keep a base, as a buffer of order max(m, n). Without it "householder" takes memory and time
            of the weight alone, and weight decay leads to axes instead of the weight assigned; the other maps then
            cannot be assigned to.
        orthogonal_map: torch's name of ``map``.

    Returns:
        The module. ``module.weight = Q`` assigns, also a Q that is not orthogonal, of which it takes the Q factor.

    Raises:
        TypeError: no module, or a weight that is not real and floating point.
        ValueError: no such tensor, one of fewer than two dimensions, an unknown map; on assignment another shape.
        NotImplementedError: on assignment without a base where the map is not "householder".

    Cost:
        Forward and backward of order n: "cayley" 8 n^3 flops with the base, and 6 n^3 without. m x n by "householder":
        10 m n^2, and 4 m^2 n for a base; torch's gradient takes O(m^2 n) and m x m memory.

    Gradient:
        Zero on and above the diagonal of X; that of :func:`subspan.cayley`, :func:`subspan.skew_expm` and
        :func:`subspan.householder_product`.

    Source:
        Lezcano-Casado 2019, Trivializations for Gradient-Based Optimization on Manifolds; torch's
        ``torch/nn/utils/parametrizations.py``.

    >>> import torch
    >>> from subspan.nn import orthogonal
    >>> layer = orthogonal(torch.nn.Linear(20, 40))
    >>> bool((layer.weight.T @ layer.weight - torch.eye(20)).abs().max() < 1e-6)
    True
    """
    op = "orthogonal"
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"{op}: module: expected a torch.nn.Module, got {type(module).__name__}")
    weight = getattr(module, name, None) if isinstance(name, str) else None
    if not isinstance(weight, Tensor):
        raise ValueError(f"{op}: name: expected the name of a parameter or buffer of the module, got {name!r}")
    if map is not None and orthogonal_map is not None:
        raise ValueError(f"{op}: orthogonal_map: expected None beside map={map!r}, got {orthogonal_map!r}")
    wanted = map if orthogonal_map is None else orthogonal_map
    _check.flag(op, "use_trivialization", use_trivialization)
    _check.matrix(op, name, weight)
    if wanted is None:
        wanted = "cayley" if weight.shape[-1] == weight.shape[-2] else "householder"
    kind = _NAMES[_check.choice(op, "map" if orthogonal_map is None else "orthogonal_map", wanted, _MAPS)]
    parametrize.register_parametrization(module, name, Orthogonal(weight, kind, use_trivialization), unsafe=True)
    module.parametrizations[name].register_load_state_dict_pre_hook(_read_signs)  # type: ignore[index, union-attr]
    return module
