"""Logits of classes that are subspaces: how long the projection of a feature on each of them is."""

from __future__ import annotations

import math
from typing import Any

from .. import _check, _native, _route

composite: Any = None  # without torch there is nothing to compose
if _check.torch is not None:
    from ..composite import subspace_logits as composite

_LAYOUTS = {"columns": 0, "rows": 1}


def _nothing_or(shape: tuple[int, ...], batch: Any, wanted: bool) -> tuple[int, ...]:
    return shape if wanted else (*batch, 0)


# Bases come with their vectors as rows, (*batch, classes, k, n), however they lie in memory. `columns`: d_W is given in
# the other layout, (*batch, classes, n, k).
_subspace_logits_gradient = _route.register(
    _route.Op(
        name="subspace_logits_gradient",
        inputs=(("x", 2), ("W", 3), ("projections", 2), ("upstream", 2)),
        schema="float scale, bool normalize, bool columns, bool wants_x, bool wants_W",
        outputs=("compute", "compute"),
        shapes=lambda x, W, projections, upstream, scale, normalize, columns, wants_x, wants_W: (
            _nothing_or(tuple(x.shape), x.shape[:-2], wants_x),
            _nothing_or(
                (*W.shape[:-2], W.shape[-1], W.shape[-2]) if columns else tuple(W.shape), x.shape[:-2], wants_W
            ),
        ),
        kernel=_native.cpu.subspace_logits_gradient,
        composite=lambda *args: _composite_gradient(*args),
        saves=(),
        public="subspace_logits",
    )
)


def _composite_gradient(x: Any, W: Any, z: Any, upstream: Any, scale: float, normalize: bool, *kind: bool) -> Any:
    d_x, d_W = composite.subspace_logits_gradient(x, W, z, upstream, scale, normalize)
    return d_x, d_W.mT if kind[0] else d_W


def _backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any, needed: tuple[bool, bool]) -> Any:
    """By kernel, but in torch operations where the gradient will be differentiated or is one of many."""
    x, W = tensors
    if _route.in_torch(g):
        d_x, d_W = composite.subspace_logits_gradient(x, W, saved[0], g, *parameters)
    else:
        columns = W.stride(-2) < W.stride(-1)  # the layout of memory, so that nobody has to copy the gradient
        d_x, d_W = _subspace_logits_gradient(2, x, W, saved[0], g, *parameters, columns, *needed)
        d_W = d_W.mT if columns and needed[1] else d_W
    return d_x.to(x.dtype) if needed[0] else None, d_W.to(W.dtype) if needed[1] else None


_subspace_logits = _route.register(
    _route.Op(
        name="subspace_logits",
        inputs=(("x", 2), ("W", 3)),
        schema="float scale, bool normalize",
        outputs=("compute",),
        shapes=lambda x, W, *_: ((*x.shape[:-1], W.shape[-3]),),
        kernel=_native.cpu.subspace_logits,
        composite=lambda *args: composite.subspace_logits(*args),
        gradient=lambda *args: composite.projections(*args),
        backward=_backward,
        selective=True,
        saved_shapes=lambda x, W, *_: ((*x.shape[:-2], W.shape[-3] * W.shape[-2], x.shape[-2]),),
    )
)


def subspace_logits(x: Any, W: Any, *, scale: float = 1.0, layout: str = "columns", normalize: bool = False) -> Any:
    r"""Length of the projection of features on the subspace of each class, times a scale.

    .. math:: \ell_c = \text{scale} \cdot \lVert W_c^\top x \rVert_2

    With orthonormal columns in W_c that is the length of a projection and, with ``normalize``, divided by ||x||, the
    cosine of the angle between the feature and the subspace. The columns are taken as they are.

    Args:
        x: (\*batch, n), features; float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        W: (classes, n, k), a basis per class, its vectors as columns; or (\*batch, classes, n, k), broadcast with the
            batch of x. Any floating type; read as the type computed in.
        scale: finite number.
        layout: "columns", or "rows" for W (\*batch, classes, k, n). Both are read in place. GCR's weight
            (classes k, n) is ``weight.view(classes, k, n)`` in the layout "rows".
        normalize: divide by the length of x. A feature of zeros has logits 0.

    Returns:
        (\*batch, classes), float64 for float64 x and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, a scale that is not a finite number, an unknown layout.

    Cost:
        2 m n classes k flops for m features. Without a gradient no projections are stored; in a traced call
        (torch.compile, torch.func) they are. Squares of float32 projections are added in float64: no length overflows
        or underflows. A batch of x that is not contiguous may be copied; half precision, and rows of W that are not
        evenly spaced, pass through buffers of some rows.

    Gradient:
        With z_c = W_c^T x and u_c = scale g_c z_c / ||z_c|| for the upstream gradient g: to x, sum_c W_c u_c; to W_c,
        x u_c^T; 4 m n classes k flops, half of them where only one is asked for. With ``normalize`` u_c is divided by
        ||x|| and the part along x is taken out of the gradient to x. z is saved, m classes k numbers. Where z_c = 0 the
        length has a kink: the gradient is 0 there, one of its subgradients, and second derivatives are 0.

    Source:
        Wang, Li, Zhang 2023, Get the Best of Both Worlds (Grassmann class representation, GCR); with ``normalize`` and
        scale 25 the head in ``gcr/grassmann_head.py`` of innerlee/GCR, as a module ``subspan.nn.GrassmannLinear``.

    >>> import numpy as np, subspan
    >>> W = np.stack([np.eye(3)[:, :2], np.eye(3)[:, 1:]])  # the planes of the first and of the last two axes
    >>> print(subspan.subspace_logits(np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 1.0]]), W))
    [[5. 4.]
     [0. 1.]]
    """
    op = "subspace_logits"
    _check.matrix(op, "x", x, least=1)
    _check.same_kind(op, "W", W, "x", x)
    _check.matrix(op, "W", W, least=3)
    scale = _check.number(op, "scale", scale)
    rows = _check.choice(op, "layout", layout, _LAYOUTS)
    _check.flag(op, "normalize", normalize)
    if not rows:
        W = W.mT if _check.is_torch(W) else W.swapaxes(-1, -2)
    features = x.shape[-1]
    if W.shape[-1] != features:
        got = tuple(W.shape) if rows else (*W.shape[:-2], W.shape[-1], W.shape[-2])
        expected = f"(*batch, classes, {'k, n' if rows else 'n, k'}) for x {tuple(x.shape)} in layout {layout!r}"
        raise ValueError(f"{op}: W: expected {expected}, got shape {got}")
    batch = _check.broadcast_batch(op, "W", W, 3, "x", x, 1)
    # Trailing batch dimensions that share their bases are rows of one product.
    own = (1,) * (len(batch) - W.ndim + 3) + tuple(W.shape[:-3])
    shared = len(batch)
    while shared > 0 and own[shared - 1] == 1:
        shared -= 1
    items = batch[:shared]
    x = _check.expand(x, (*batch, features)).reshape((*items, math.prod(batch[shared:]), features))
    W = _check.expand(W.reshape((*own[:shared], *W.shape[-3:])), (*items, *W.shape[-3:]))
    return _subspace_logits(1, x, W, scale, normalize)[0].reshape((*batch, W.shape[-3]))
